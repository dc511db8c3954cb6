"""Testing criteria: graders, and the score from which each passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from iro_server import JsonObject
from iro_server.graders.base import Grade, Grader, Item, Sample
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.parsing import parse_grader
from iro_server.telemetry.grading import graded

KNOW_THRESHOLDS = ("score_model", "text_similarity")  # graders of which it is a field
MIDDLE = 0.5


def grader_spec(criterion: JsonObject) -> JsonObject:
    """The criterion as a grader: without what evals alone have, and what an export adds."""
    evals_alone = {"id"} if criterion.get("type") in KNOW_THRESHOLDS else {"id", "pass_threshold"}
    return {name: value for name, value in criterion.items() if name not in evals_alone and value is not None}


def threshold(criterion: JsonObject) -> float:
    """The score from which it passes: ``pass_threshold``, else the middle of its range (0.5 where it has none).

    Reconstruction: OpenAI does not say what passes without a threshold.
    """
    if (least := criterion.get("pass_threshold")) is not None:
        return float(least)
    low, high = criterion.get("range") or (0.0, 1.0)
    return float(low + high) * MIDDLE


def criterion_names(criteria: Sequence[JsonObject]) -> list[str]:
    """Their names, told apart by a number where two have the same."""
    counts: Counter[str] = Counter()
    names = []
    for criterion in criteria:
        name = criterion.get("name") or str(criterion["type"])
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return names


@dataclass(frozen=True)
class Result:
    """What one criterion says of one sample."""

    name: str
    type: str
    grade: Grade
    passed: bool

    def as_json(self) -> JsonObject:
        score = 0.0 if self.grade.error else self.grade.reward
        fields: JsonObject = {"name": self.name, "type": self.type, "score": score, "passed": self.passed}
        if self.grade.sub_rewards:
            fields["sub_scores"] = {name: None if reward != reward else reward for name, reward in self._parts()}
        return fields | ({"error": self.grade.error} if self.grade.error else {})

    def _parts(self) -> Any:
        return self.grade.sub_rewards.items()


class Criteria:
    """An eval's graders, open. Close it, from any thread, or use it as a context manager.

    Raises GraderError where one cannot be used any more, such as a judge that was taken away.
    """

    def __init__(self, criteria: Sequence[JsonObject], environment: GraderEnvironment) -> None:
        self.names, self.types = criterion_names(criteria), [str(criterion["type"]) for criterion in criteria]
        self.thresholds = [threshold(criterion) for criterion in criteria]
        self.graders: list[Grader] = []
        try:
            for criterion in criteria:
                self.graders.append(parse_grader(grader_spec(criterion), environment))
        except BaseException:
            self.close()
            raise

    def grade(self, pairs: Sequence[tuple[Sample, Item]]) -> list[list[Result]]:
        """For each pair what each criterion says, in order."""
        columns = [self._column(number, pairs) for number in range(len(self.graders))]
        return [[column[row] for column in columns] for row in range(len(pairs))]

    def _column(self, number: int, pairs: Sequence[tuple[Sample, Item]]) -> list[Result]:
        with graded(self.types[number]):
            grades = self.graders[number].grade_many(pairs) if pairs else []
        return [Result(self.names[number], self.types[number], grade, self._passes(number, grade)) for grade in grades]

    def _passes(self, number: int, grade: Grade) -> bool:
        return grade.error is None and grade.reward >= self.thresholds[number]

    def wait_for_limits(self) -> None:
        """As each grader's."""
        for grader in self.graders:
            grader.wait_for_limits()

    def close(self) -> None:
        for grader in self.graders:
            grader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
