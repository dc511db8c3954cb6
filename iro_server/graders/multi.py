"""The multi grader: several graders and a formula over their rewards."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, field_validator

from iro_server.graders.base import Grade, Grader, Item, Sample
from iro_server.graders.formula import evaluate, parse_formula
from iro_server.graders.python import PythonGrader
from iro_server.graders.text import StringCheck, TextSimilarity

Single = Annotated[StringCheck | TextSimilarity | PythonGrader, Field(discriminator="type")]


class MultiGrader(Grader):
    """``calculate_output`` is a formula over the keys of ``graders``, such as ``0.7 * style + 0.3 * match``."""

    type: Literal["multi"]
    graders: dict[str, Single] = Field(min_length=1)
    calculate_output: str

    _formula: ast.expr = PrivateAttr()

    @field_validator("graders")
    @classmethod
    def _named(cls, graders: dict[str, Grader]) -> dict[str, Grader]:
        for name in graders:
            if not name.isidentifier():
                raise ValueError(f"the name {name!r} cannot stand in a formula; use letters, digits and _")
        return graders

    @field_validator("calculate_output")
    @classmethod
    def _is_formula(cls, formula: str, info) -> str:
        if "graders" in info.data:  # else their own error is reported
            parse_formula(formula, info.data["graders"])
        return formula

    def model_post_init(self, context: object) -> None:
        self._formula = parse_formula(self.calculate_output, self.graders)

    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        by_grader = {name: grader.grade_many(pairs) for name, grader in self.graders.items()}
        return [self._combine({name: grades[i] for name, grades in by_grader.items()}) for i in range(len(pairs))]

    def _combine(self, grades: dict[str, Grade]) -> Grade:
        rewards = {name: grade.reward for name, grade in grades.items()}
        errors = [f"{name}: {grade.error}" for name, grade in grades.items() if grade.error]
        if errors:
            flag = next(grade.flag for grade in grades.values() if grade.error)
            return Grade.failed("; ".join(errors), flag, rewards)
        try:
            return Grade.of(evaluate(self._formula, rewards), rewards)
        except (ArithmeticError, ValueError) as error:
            return Grade.failed(f"calculate_output: {error}", "formula_parse_error", rewards)

    def close(self) -> None:
        for grader in self.graders.values():
            grader.close()
