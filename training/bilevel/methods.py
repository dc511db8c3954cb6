"""The algorithms that runs compare, what a step of each costs one agent, and how they are run beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from training.bilevel.baselines import MaDsboGt, Mdbo, single_level, sldbo
from training.bilevel.compressors import Compressor, Field, RandK, TopK
from training.bilevel.problem import BilevelProblem, Tree
from training.bilevel.soba import EFSoba, Soba, bits_up
from training.bilevel.sparkle import STRATEGIES, Sparkle, Strategy, diffusion

INNER, TERMS = 5, 10  # MA-DSBO-GT's inner steps, MDBO's Neumann terms


class Setting(NamedTuple):
    """What all methods share. x and y: where each agent starts. ``kept``: the share of coordinates that are sent."""

    problem: BilevelProblem
    W: torch.Tensor
    x: Tree
    y: Tree
    alpha: float
    beta: float
    theta: float
    kept: float

    @property
    def sizes(self) -> tuple[int, int]:
        x, y = (sum(leaf.numel() for leaf in tree_leaves(tree)) for tree in (self.x, self.y))
        return x, y


@dataclass(frozen=True)
class Decentralized:
    """``evaluations`` a step: gradients of f and of g, and second-order products, of a batch. ``vectors``: how many of
    x's and of y's size an agent sends to each of its two neighbours; two for each tracked variable, one for others."""

    make: Callable[[Setting], Any]
    evaluations: int
    vectors: tuple[int, int]
    corrects: bool = False  # heterogeneity, of both levels

    def start(self, setting: Setting, batch: Tree) -> Any:
        return self.make(setting).start(setting.x, setting.y, batch)

    def step(self, setting: Setting, state: Any, batch: Tree, generator: torch.Generator) -> Any:
        return self.make(setting).step(state, batch)

    def sent(self, setting: Setting) -> float:
        """Bytes a step."""
        return 2 * 4 * sum(count * size for count, size in zip(self.vectors, setting.sizes, strict=True))

    def upper(self, state: Any) -> Tree:
        """x of stacked runs, [runs, n, ...]."""
        return getattr(state.x, "s", state.x)

    def lower(self, state: Any) -> Tree:
        """y likewise."""
        return getattr(state.y, "s", state.y)


@dataclass(frozen=True)
class Compressed:
    """A server, and workers that send it messages."""

    make: Callable[[Setting], Soba | EFSoba]
    evaluations: int = 3
    corrects: bool = False

    def start(self, setting: Setting, batch: Tree) -> Any:
        algorithm = self.make(setting)
        if isinstance(algorithm, EFSoba):
            return algorithm.start(setting.x, setting.y, len(setting.W))
        return algorithm.start(setting.x, setting.y)

    def step(self, setting: Setting, state: Any, batch: Tree, generator: torch.Generator) -> Any:
        return self.make(setting).step(state, batch, generator)

    def sent(self, setting: Setting) -> float:
        """Bytes a step, from a worker to the server."""
        return bits_up(self.make(setting), setting.x, setting.y) / 8

    def upper(self, state: Any) -> Tree:
        """x of stacked runs, [runs, 1, ...]."""
        return tree_map(lambda leaf: leaf[:, None], state.x)

    def lower(self, state: Any) -> Tree:
        return tree_map(lambda leaf: leaf[:, None], state.y)


@dataclass(frozen=True)
class Whole(Compressor):
    """No compression."""

    unbiased = True

    def omega(self, d: int) -> float:
        return 0.0

    def layout(self, d: int, float_bits: int = 32) -> list[Field]:
        return [Field(d, float_bits, floats=True)]

    def encode(self, vectors: torch.Tensor, seeds: torch.Tensor) -> list[torch.Tensor]:
        return [vectors]

    def decode(self, fields: Sequence[torch.Tensor], d: int, dtype: torch.dtype, seeds: torch.Tensor) -> torch.Tensor:
        return fields[0]


def _sparkle(lower: Callable[[torch.Tensor], Strategy], upper: Callable[[torch.Tensor], Strategy]) -> Any:
    def make(at: Setting) -> Sparkle:
        return Sparkle(at.problem, lower(at.W), upper(at.W), at.alpha, at.beta, at.beta, at.theta)

    return make


def _strategy_pair(lower: str, upper: str) -> Decentralized:
    vectors = {name: 2 if name.endswith("GT") else 1 for name in STRATEGIES}
    return Decentralized(
        _sparkle(STRATEGIES[lower], STRATEGIES[upper]), 3, (vectors[upper], 2 * vectors[lower]), corrects=True
    )


def _random(at: Setting) -> tuple[RandK, RandK]:
    x, y = (max(1, round(at.kept * size)) for size in at.sizes)
    return RandK(x, shared_seed=True), RandK(y, shared_seed=True)


def _largest(at: Setting) -> tuple[TopK, TopK]:
    x, y = (max(1, round(at.kept * size)) for size in at.sizes)
    return TopK(x), TopK(y)


Method = Decentralized | Compressed

METHODS: dict[str, Method] = {
    "D-SOBA": Decentralized(_sparkle(diffusion, diffusion), 3, (1, 2)),
    "ED": _strategy_pair("ED", "ED"),
    "ED/ATC-GT": _strategy_pair("ED", "ATC-GT"),
    "SOBA": Compressed(lambda at: Soba(at.problem, Whole(), Whole(), at.alpha, at.beta, at.beta, at.theta)),
    "EF-SOBA, top-k": Compressed(lambda at: EFSoba(at.problem, *_largest(at), at.alpha, at.beta, at.beta, at.theta)),
    "C-SOBA, rand-k": Compressed(lambda at: Soba(at.problem, *_random(at), at.alpha, at.beta, at.beta)),
    "ATC-GT": _strategy_pair("ATC-GT", "ATC-GT"),
    "EF-SOBA, rand-k": Compressed(lambda at: EFSoba(at.problem, *_random(at), at.alpha, at.beta, at.beta, at.theta)),
    "CM-SOBA, rand-k": Compressed(lambda at: Soba(at.problem, *_random(at), at.alpha, at.beta, at.beta, at.theta)),
    "EXTRA": _strategy_pair("EXTRA", "EXTRA"),
    "single-level ED": Decentralized(lambda at: single_level(at.problem, at.W, at.beta), 1, (0, 1)),
    "SLDBO": Decentralized(lambda at: sldbo(at.problem, at.W, at.alpha, at.beta, at.beta), 3, (2, 4)),
    "MDBO": Decentralized(
        lambda at: Mdbo(at.problem, at.W, at.alpha, at.beta, at.beta / 4, at.theta, TERMS), TERMS + 2, (2, 2)
    ),
    "MA-DSBO-GT": Decentralized(
        lambda at: MaDsboGt(at.problem, at.W, at.alpha, at.beta / INNER, at.beta / INNER, at.theta, INNER),
        2 * INNER + 3,
        (2, 4 * INNER),
    ),
}


def follow(
    method: Method,
    settings: Sequence[Setting],
    like: Tree,
    draw: Callable[[], Tree],
    noise: torch.Generator,
    tested: Sequence[int],
    look: Callable[[Any], None],
) -> Any:
    """Run ``method`` from each of ``settings``, all runs at once; ``look`` at their stacked state after the steps of
    ``tested``, and give the last. They differ in where they start and in their batches.

    ``like``: a batch of one run, for its shapes. ``draw``: a batch of all runs, [runs, n, ...]. ``noise``: the
    compressors'.
    """
    states = [method.start(setting, like) for setting in settings]
    state = tree_map(lambda *leaves: torch.stack(leaves), *states)
    step = vmap(lambda state, batch: method.step(settings[0], state, batch, noise), randomness="different")
    for k in range(max(tested) + 1):
        if k:
            state = step(state, draw())
        if k in tested:
            look(state)
    return state


def bytes_ratio(curve: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
    """Bytes over ``dense``'s to the best mean accuracy that both reach. bytes [points], accuracy [points][runs]."""
    goal = min(float(np.mean(each["accuracy"], axis=1).max()) for each in (curve, dense))
    return {"accuracy": goal, "ratio": reached(curve, goal) / reached(dense, goal)}


def reached(curve: dict[str, Any], goal: float) -> float:
    """Bytes at the first point whose mean accuracy is at least ``goal``, on the line from the point before."""
    means, sent = np.mean(curve["accuracy"], axis=1), curve["bytes"]
    at = int(np.argmax(means >= goal))
    return float(sent[0] if at == 0 else np.interp(goal, means[at - 1 : at + 1], sent[at - 1 : at + 1]))
