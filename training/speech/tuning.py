"""The selection of a rate: a grid that grows until the best value is not at its edge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class GridSearch:
    """``grid``: values to try, ascending, none below 0. Where the best is the least or the greatest that was tried, the
    next value in the ratio of the grid's first two above 0 is tried, ``extensions`` times at most, within ``bounds``.

    Nothing follows 0, or a grid with fewer than two values above it.
    """

    grid: tuple[float, ...]
    extensions: int = 0
    bounds: tuple[float, float] = (0.0, math.inf)
    tried: dict[float, float] = field(default_factory=dict)  # error rate by value

    def pending(self) -> list[float]:
        """The values to try next; none once the search has ended."""
        if untried := [value for value in self.grid if value not in self.tried]:
            return untried
        if not self.at_edge or len(self.tried) >= len(self.grid) + self.extensions:
            return []
        positive = [value for value in self.grid if value > 0]
        if self.best == 0 or len(positive) < 2:
            return []
        ratio = positive[0] / positive[1]
        following = self.best * (ratio if self.best == min(self.tried) else 1 / ratio)
        low, high = self.bounds
        return [following] if low <= following <= high else []

    def add(self, rates: Mapping[float, float]) -> None:
        self.tried |= rates

    @property
    def best(self) -> float:
        """The value with the least error rate, the least of equals."""
        return min(sorted(self.tried), key=self.tried.__getitem__)

    @property
    def at_edge(self) -> bool:
        return len(self.grid) > 1 and self.best in (min(self.tried), max(self.tried))
