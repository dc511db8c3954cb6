"""The beams of a round that live on: selection rules by name.

To add a rule: a subclass of ``SelectionRule`` and its line in ``RULES``. Rules import torch when they run: the command
line reads their names without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, ClassVar

from iro_server.decoding.beam import Beam

if TYPE_CHECKING:
    import torch


def top(values: Sequence[float], width: int) -> list[int]:
    """The ``width`` highest values, best first."""
    return sorted(range(len(values)), key=lambda i: -values[i])[:width]


def diversity_first(values: Sequence[float], texts: Sequence[Hashable], width: int) -> list[int]:
    """The paper's rule: the best of each group of identical rows first, by value; then duplicates, by value."""
    texts_so_far: set[Hashable] = set()
    distinct: list[int] = []
    duplicates: list[int] = []
    for i in top(values, len(values)):
        (duplicates if texts[i] in texts_so_far else distinct).append(i)
        texts_so_far.add(texts[i])
    return (distinct + duplicates)[:width]


def resample(log_weights: Sequence[float], width: int, generator: torch.Generator) -> list[int]:
    """SMC: ``width`` rows drawn in proportion to their weights, by systematic resampling (unbiased, low variance)."""
    import torch

    weights = torch.softmax(torch.tensor(log_weights, dtype=torch.float32).double(), dim=0)
    points = (torch.arange(width) + torch.rand((), generator=generator, dtype=torch.float64)) / width
    places: list[int] = torch.searchsorted(weights.cumsum(0), points).clamp_max(len(weights) - 1).tolist()
    return places


class SelectionRule(ABC):
    """How a search chooses among its beams. All searches share a rule: it keeps nothing between calls.

    A ``pool`` holds the rows of a round's chunk and the beams that finished before. ``generator`` is the search's own.
    """

    samples: ClassVar[bool] = False
    """Whether finals are exchangeable samples of the guided distribution; else they are ranked by value."""

    @abstractmethod
    def select(self, pool: Sequence[Beam], width: int, generator: torch.Generator) -> list[int]:
        """Places of the ``width`` beams that the next round continues, or fewer; a place may repeat."""

    def finish(self, pool: Sequence[Beam], width: int, generator: torch.Generator) -> list[int]:
        """Places of the finals in the last round's pool."""
        return list(range(len(pool)))

    def order(self, finals: Sequence[Beam], generator: torch.Generator) -> list[int]:
        """Places of the finals in the order of the result."""
        return top([beam.value for beam in finals], len(finals))

    def max_finals(self, width: int, num_successors: int) -> int:
        """The most finals of a search."""
        return width * num_successors


class TopValues(SelectionRule):
    """The highest values."""

    def select(self, pool: Sequence[Beam], width: int, generator: torch.Generator) -> list[int]:
        return top([beam.value for beam in pool], width)


class DiversityFirst(SelectionRule):
    """The highest values among beams of different tokens; duplicates fill the width."""

    def select(self, pool: Sequence[Beam], width: int, generator: torch.Generator) -> list[int]:
        return diversity_first([beam.value for beam in pool], pool, width)


def effective_size(log_weights: Sequence[float]) -> float:
    """(sum w)^2 / sum w^2: equally weighted rows that would estimate as precisely as these."""
    import torch

    weights = torch.softmax(torch.tensor(log_weights, dtype=torch.float64), dim=0)
    return float(1 / weights.square().sum())


class SequentialMonteCarlo(SelectionRule):
    """Resampling by weight: as the width grows, a final is a draw from pi_base * exp(sum_t V_t/beta_t).

    Twisted SMC (arXiv:2404.17546) with the twist exp(sum_t V_t/beta_t). Rows with one successor each keep their weights
    while their effective size is at least half of their number.
    """

    samples = True

    def select(self, pool: Sequence[Beam], width: int, generator: torch.Generator) -> list[int]:
        if len(pool) == width and effective_size([beam.log_weight for beam in pool]) >= width / 2:
            return list(range(width))
        return self._resampled(pool, width, generator)

    def finish(self, pool: Sequence[Beam], width: int, generator: torch.Generator) -> list[int]:
        return self._resampled(pool, width, generator)

    def _resampled(self, pool: Sequence[Beam], width: int, generator: torch.Generator) -> list[int]:
        places = resample([beam.log_weight for beam in pool], width, generator)
        for place in places:
            pool[place].log_weight = 0.0
        return places

    def order(self, finals: Sequence[Beam], generator: torch.Generator) -> list[int]:
        """At random: resampling keeps the pool's order, in which rows that stopped early come first."""
        import torch

        places: list[int] = torch.randperm(len(finals), generator=generator).tolist()
        return places

    def max_finals(self, width: int, num_successors: int) -> int:
        return width


RULES: dict[str, SelectionRule] = {
    "diversity": DiversityFirst(),
    "top": TopValues(),
    "smc": SequentialMonteCarlo(),
}
