"""The score_model grader: the number that a chat model answers with, or a reward model's score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jinja2 import TemplateError
from pydantic import FiniteFloat, PrivateAttr, field_validator

from iro_server.graders.answers import read_score
from iro_server.graders.base import Grade
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.local_models import chat_text, is_model, reward
from iro_server.graders.model import Chat, ModelGrader


class ScoreModel(ModelGrader):
    """The number a chat model answers with, clamped to ``range`` as OpenAI does; [0, 1] where none is given.

    ``model`` may also name one of the server's reward models, which scores the conversation itself; its score is
    clamped only where ``range`` is given. ``pass_threshold`` does not change the reward.
    """

    type: Literal["score_model"]
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    pass_threshold: FiniteFloat | None = None

    _reward_model: Path | None = PrivateAttr(None)

    @field_validator("range")
    @classmethod
    def _ordered(cls, range: tuple[float, float] | None) -> tuple[float, float] | None:
        if range is not None and range[0] >= range[1]:
            raise ValueError("the first number must be below the second")
        return range

    @classmethod
    def check_model(cls, model: str, grader_environment: GraderEnvironment) -> str:
        if model not in grader_environment.reward_models:
            return super().check_model(model, grader_environment)
        if not is_model(grader_environment.reward_models[model]):
            raise ValueError(f"the directory that this server names for the reward model {model!r} holds no model")
        return model

    def model_post_init(self, context: GraderEnvironment) -> None:
        super().model_post_init(context)
        if self.base_url is None:
            self._reward_model = context.reward_models.get(self.model)

    def served_models(self) -> dict[str, str]:
        return {} if self._reward_model else super().served_models()

    def grade_filled(self, filled: Sequence[Chat]) -> list[Grade]:
        if self._reward_model is None:
            return super().grade_filled(filled)
        try:
            texts = [chat_text(self._reward_model, chat) for chat in filled]
        except TemplateError as error:
            return [Grade.failed(f"{self.model}'s chat template refuses the input: {error}")] * len(filled)
        scores = reward(self._reward_model, [text for text, _ in texts], special_tokens=texts[0][1])
        return [Grade.of(self._clamped(float(score), self.range)) for score in scores]

    @property
    def instruction(self) -> str:
        low, high = self.range or (0, 1)
        return f'End your answer with a JSON object {{"result": x}}, where x is a number from {low:g} to {high:g}.'

    def read(self, text: str) -> float:
        return self._clamped(read_score(text), self.range or (0.0, 1.0))

    @staticmethod
    def _clamped(score: float, range: tuple[float, float] | None) -> float:
        return score if range is None else min(max(score, range[0]), range[1])
