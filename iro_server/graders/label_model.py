"""The label_model grader: whether the label that a chat model answers with is a passing one."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from iro_server.graders.answers import read_label
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.model import ModelGrader

Label = Annotated[str, Field(min_length=1)]


class LabelModel(ModelGrader):
    """1 where the label a chat model answers with is one of ``passing_labels``, else 0.

    ``sampling_params`` is an extension: OpenAI's shape has none here.
    """

    type: Literal["label_model"]
    labels: list[Label] = Field(min_length=1, max_length=1000)
    passing_labels: list[Label] = Field(min_length=1, max_length=1000)

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: list[str]) -> list[str]:
        if len({label.casefold() for label in labels}) < len(labels):
            raise ValueError("labels must differ in more than case")
        return labels

    @field_validator("passing_labels")
    @classmethod
    def _are_labels(cls, passing: list[str], info: ValidationInfo) -> list[str]:
        if others := [label for label in passing if label not in info.data.get("labels", passing)]:
            raise ValueError(f"{', '.join(others)}: not among the labels")
        return passing

    @classmethod
    def check_model(cls, model: str, grader_environment: GraderEnvironment) -> str:
        if model in grader_environment.reward_models:
            raise ValueError(f"{model!r} is a reward model, which gives scores: use score_model")
        return super().check_model(model, grader_environment)

    @property
    def instruction(self) -> str:
        labels = ", ".join(json.dumps(label, ensure_ascii=False) for label in self.labels)
        return f'End your answer with a JSON object {{"result": x}}, where x is one of {labels}.'

    def read(self, text: str, cut: bool) -> float:
        return float(read_label(text, self.labels, cut) in self.passing_labels)
