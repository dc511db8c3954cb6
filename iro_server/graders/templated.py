"""A grader whose fields are templates, which each sample and its item fill in."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from pydantic import PrivateAttr

from iro_server import JsonObject
from iro_server.graders.base import Grade, Grader, Item, Sample, TextTooLong
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.templates import MissingField, item_fields, reads_sample, render

Filled = TypeVar("Filled")


class TemplatedGrader(Grader, Generic[Filled]):
    """Fills its templates in for every pair, and grades those that have all the fields together."""

    _max_bytes: int = PrivateAttr()

    def model_post_init(self, context: GraderEnvironment) -> None:
        self._max_bytes = context.max_text_bytes

    @abstractmethod
    def templates(self) -> list[str]:
        """All that are filled in."""

    def item_fields(self) -> set[str]:
        return set().union(*map(item_fields, self.templates()))

    def reads_sample(self) -> bool:
        return any(map(reads_sample, self.templates()))

    @abstractmethod
    def fill(self, scope: JsonObject) -> Filled:
        """Raises MissingField, and TextTooLong for a text over the server's limit."""

    def render(self, template: str, scope: JsonObject) -> str:
        return render(template, scope, self._max_bytes)

    def check_texts(self, sample: Sample, item: Item) -> None:
        with contextlib.suppress(MissingField):
            self.fill({"sample": sample.as_dict(), "item": item})

    @abstractmethod
    def grade_filled(self, filled: Sequence[Filled]) -> list[Grade]: ...

    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        grades: dict[int, Grade] = {}
        filled: dict[int, Filled] = {}
        for i, (sample, item) in enumerate(pairs):
            try:
                filled[i] = self.fill({"sample": sample.as_dict(), "item": item})
            except (MissingField, TextTooLong) as unfilled:
                grades[i] = failed_fill(unfilled)
        if filled:
            grades |= zip(filled, self.grade_filled(list(filled.values())), strict=True)
        return [grades[i] for i in range(len(pairs))]


def failed_fill(unfilled: MissingField | TextTooLong) -> Grade:
    """The grade of a pair that a template could not be filled in for."""
    return Grade.failed(str(unfilled), unfilled.flag if isinstance(unfilled, MissingField) else "other_error")
