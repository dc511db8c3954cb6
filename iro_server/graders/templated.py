"""A grader whose fields are templates, which each sample and its item fill in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from iro_server.graders.base import Grade, Grader, Item, Sample
from iro_server.graders.templates import MissingField, item_fields

Filled = TypeVar("Filled")


class TemplatedGrader(Grader, Generic[Filled]):
    """Fills its templates in for every pair, and grades those that have all the fields together."""

    @abstractmethod
    def templates(self) -> list[str]:
        """All that are filled in."""

    def item_fields(self) -> set[str]:
        return set().union(*map(item_fields, self.templates()))

    @abstractmethod
    def fill(self, scope: dict[str, Any]) -> Filled:
        """Raises MissingField."""

    @abstractmethod
    def grade_filled(self, filled: Sequence[Filled]) -> list[Grade]: ...

    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        grades: dict[int, Grade] = {}
        filled: dict[int, Filled] = {}
        for i, (sample, item) in enumerate(pairs):
            try:
                filled[i] = self.fill({"sample": sample.as_dict(), "item": item})
            except MissingField as missing:
                grades[i] = Grade.failed(str(missing), missing.flag)
        if filled:
            grades |= zip(filled, self.grade_filled(list(filled.values())), strict=True)
        return [grades[i] for i in range(len(pairs))]
