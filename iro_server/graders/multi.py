"""The multi grader: several graders and a formula over their rewards."""

from __future__ import annotations

import ast
import keyword
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, field_validator

from iro_server.graders.base import Grade, Grader, Item, Reference, Sample
from iro_server.graders.formula import as_identifier, evaluate, parse_formula
from iro_server.graders.label_model import LabelModel
from iro_server.graders.python import PythonGrader
from iro_server.graders.score_model import ScoreModel
from iro_server.graders.text import StringCheck, TextSimilarity

Single = Annotated[StringCheck | TextSimilarity | PythonGrader | ScoreModel | LabelModel, Field(discriminator="type")]


def _by_name(graders: object) -> object:
    """The three shapes that OpenAI publishes, graders by name, a list of them, and one alone, as the first."""
    if isinstance(graders, dict) and isinstance(graders.get("type"), str):
        graders = [graders]
    if isinstance(graders, list):
        names = [grader.get("name") if isinstance(grader, dict) else None for grader in graders]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a grader that is not under a key needs a name")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"two graders have the name {twice[0]!r}")
        graders = dict(zip(names, graders, strict=True))
    if isinstance(graders, dict):
        for name, grader in graders.items():
            if isinstance(grader, dict) and grader.get("type") == "multi":
                raise ValueError(f"{name}: a multi grader cannot hold another")
    return graders


class MultiGrader(Grader):
    """``calculate_output`` is a formula over the names of ``graders``, such as ``0.7 * style + 0.3 * match``."""

    type: Literal["multi"]
    graders: Annotated[dict[str, Single], Field(min_length=1, max_length=64), BeforeValidator(_by_name)]
    calculate_output: str

    _formula: ast.expr = PrivateAttr()

    @field_validator("graders")
    @classmethod
    def _named(cls, graders: dict[str, Grader]) -> dict[str, Grader]:
        for name in graders:
            if not name.isidentifier() or keyword.iskeyword(name):
                raise ValueError(f"the name {name!r} cannot stand in a formula; use letters, digits and _")
        counts = Counter(map(as_identifier, graders))
        if repeated := [name for name in graders if counts[as_identifier(name)] > 1]:
            raise ValueError(f"two graders have the name {repeated[0]!r}, once Unicode is normalised (NFKC)")
        return graders

    @field_validator("calculate_output")
    @classmethod
    def _is_formula(cls, formula: str, info: ValidationInfo) -> str:
        if "graders" in info.data:  # else their own error is reported
            parse_formula(formula, info.data["graders"])
        return formula

    def model_post_init(self, context: object) -> None:
        self._formula = parse_formula(self.calculate_output, self.graders)

    def served_models(self) -> dict[str, str]:
        return {
            f"graders.{name}.{field}": model
            for name, grader in self.graders.items()
            for field, model in grader.served_models().items()
        }

    @property
    def compares(self) -> bool:
        return any(grader.compares for grader in self.graders.values())

    def num_calls(self, completions: int) -> int:
        return max(grader.num_calls(completions) for grader in self.graders.values())

    def check_texts(self, sample: Sample, item: Item) -> None:
        for grader in self.graders.values():
            grader.check_texts(sample, item)

    def item_fields(self) -> set[str]:
        return set().union(*(grader.item_fields() for grader in self.graders.values()))

    def reads_sample(self) -> bool:
        return any(grader.reads_sample() for grader in self.graders.values())

    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        by_grader = {name: _grades(grader, pairs) for name, grader in self.graders.items()}
        return [self._combine({name: grades[i] for name, grades in by_grader.items()}) for i in range(len(pairs))]

    def _combine(self, grades: dict[str, Grade]) -> Grade:
        rewards = {name: grade.reward for name, grade in grades.items()}
        tokens = dict(sum((Counter(grade.tokens) for grade in grades.values()), Counter()))
        costs: dict[str, float] = {}
        for grade in grades.values():
            costs |= {model: costs.get(model, 0.0) + cost for model, cost in grade.costs.items()}
        return replace(self._combined(grades, rewards, tokens), costs=costs)

    def _combined(self, grades: dict[str, Grade], rewards: dict[str, float], tokens: dict[str, int]) -> Grade:
        failed = {name: grade for name, grade in grades.items() if grade.error}
        if failed:
            error = "; ".join(f"{name}: {grade.error}" for name, grade in failed.items())
            return Grade.failed(error, next(iter(failed.values())).flag, rewards, tokens)
        try:
            return Grade.of(evaluate(self._formula, rewards), rewards, tokens)
        except (ArithmeticError, ValueError) as error:
            return Grade.failed(f"calculate_output: {error}", "formula_parse_error", rewards, tokens)

    def wait_for_limits(self) -> None:
        for grader in self.graders.values():
            grader.wait_for_limits()

    def close(self) -> None:
        for grader in self.graders.values():
            grader.close()


def _grades(grader: Grader, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
    """References, whose grades nobody reads, are graded by graders alone that compare."""
    if grader.compares or not any(isinstance(sample, Reference) for sample, _ in pairs):
        return grader.grade_many(pairs)
    graded = iter(grader.grade_many([pair for pair in pairs if not isinstance(pair[0], Reference)]))
    return [Grade(0.0) if isinstance(sample, Reference) else next(graded) for sample, _ in pairs]
