"""A grader whose samples are graded on the nodes of a Ray cluster. What it needs has to be there: a sandbox for python
graders, the paths of models, a way to the endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from pydantic import PrivateAttr

from iro_server.graders.base import Grade, Grader, Item, Sample
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.parsing import parse_grader
from iro_server.graders.ranking import same_item
from training.iro.pool import Pool
from training.json_values import JsonObject

MIN_SHARE = 8  # gradings that are worth another actor


class SpreadGrader(Grader):
    """Grades as the grader that ``spec`` describes does, by up to ``actors`` of it. It closes its pool with itself."""

    _pool: Pool = PrivateAttr()
    _actors: int = PrivateAttr()
    _like: Grader = PrivateAttr()

    @classmethod
    def over(cls, pool: Pool, actors: int, like: Grader) -> SpreadGrader:
        """``pool``: of GraderActor."""
        grader = cls(type=like.type, name=like.name)
        grader._pool, grader._actors, grader._like = pool, actors, like
        return grader

    @property
    def compares(self) -> bool:
        return self._like.compares

    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        """Pairs of an item stay together where the grader compares them."""
        groups = same_item([item for _, item in pairs]) if self.compares else [[place] for place in range(len(pairs))]
        shares = max(1, min(self._actors, len(pairs) // MIN_SHARE))
        size = -(-len(groups) // shares)
        parts = [list(chain(*groups[start : start + size])) for start in range(0, len(groups), size or 1)]
        work = [([pairs[place] for place in places],) for places in parts]
        graded = chain(*self._pool.map("grade_many", work, shares))
        grades = dict(zip(chain(*parts), graded, strict=True))
        return [grades[place] for place in range(len(pairs))]

    def close(self) -> None:
        self._pool.close()


class GraderActor:
    def __init__(self, spec: JsonObject, grader_environment: GraderEnvironment) -> None:
        self.spec, self.grader_environment = spec, grader_environment
        self.grader: Grader | None = None

    def ready(self) -> None:
        pass

    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        if self.grader is None:
            self.grader = parse_grader(self.spec, self.grader_environment)
        return self.grader.grade_many(pairs)
