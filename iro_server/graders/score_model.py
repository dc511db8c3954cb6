"""The score_model grader: a chat model's number, a place in its ranking, or a reward model's score."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jinja2 import TemplateError
from pydantic import FiniteFloat, PrivateAttr, ValidationInfo, field_validator

from iro_server.graders.answers import read_ranking, read_score
from iro_server.graders.asking import Answer
from iro_server.graders.base import Grade, Item, Reference, Sample, TextTooLong
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.local_models import chat_text, check_reward_model, is_model, max_tokens, reward, token_ids
from iro_server.graders.messages import with_instruction, without_surrogates
from iro_server.graders.model import Chat, ModelGrader
from iro_server.graders.ranking import ALONE, Group, Ranking, group_of, same_item
from iro_server.graders.templated import failed_fill
from iro_server.graders.templates import MissingField, reads_sample

logger = logging.getLogger(__name__)


class ScoreModel(ModelGrader):
    """The number a chat model answers with, clamped to ``range`` as OpenAI does; [0, 1] where none is given.

    ``model`` may also name one of the server's reward models, which scores the conversation itself; its score is
    clamped only where ``range`` is given. ``pass_threshold`` does not change the reward. With ``ranking``, an
    extension, the model ranks all completions of an item in one answer; their places are spread evenly over ``range``.
    """

    type: Literal["score_model"]
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    pass_threshold: FiniteFloat | None = None
    ranking: Ranking | None = None

    _reward_model: Path | None = PrivateAttr(None)

    @field_validator("range")
    @classmethod
    def _ordered(cls, range: tuple[float, float] | None) -> tuple[float, float] | None:
        if range is not None and range[0] >= range[1]:
            raise ValueError("the first number must be below the second")
        return range

    @field_validator("ranking")
    @classmethod
    def _is_possible(cls, ranking: Ranking | None, info: ValidationInfo) -> Ranking | None:
        if ranking is None or "model" not in info.data or "input" not in info.data:
            return ranking
        reward_models = GraderEnvironment.of_validation(info).reward_models
        if info.data["base_url"] is None and info.data["model"] in reward_models:
            raise ValueError("a reward model scores completions one at a time; a chat model can rank them")
        if any(reads_sample(text) for message in info.data["input"] for text in message.content):
            message = "input is sent once for all completions of an item and reads item fields alone"
            raise ValueError(f"{message}; completion says what is shown of each sample")
        return ranking

    @classmethod
    def check_model(cls, model: str, grader_environment: GraderEnvironment) -> str:
        if model not in grader_environment.reward_models:
            return super().check_model(model, grader_environment)
        directory = grader_environment.reward_models[model]
        named = f"the directory that this server names for the reward model {model!r}"
        if not is_model(directory):
            raise ValueError(f"{named} holds no model")
        try:
            check_reward_model(directory)
        except (OSError, ValueError) as error:
            logger.warning("the reward model %s: %s", model, error)
            raise ValueError(f"{named} holds none that can be loaded: the server's log says why") from error
        return model

    def model_post_init(self, context: GraderEnvironment) -> None:
        super().model_post_init(context)
        if self.base_url is None:
            self._reward_model = context.reward_models.get(self.model)

    def served_models(self) -> dict[str, str]:
        return {} if self._reward_model else super().served_models()

    @property
    def compares(self) -> bool:
        return self.ranking is not None

    def num_calls(self, completions: int) -> int:
        return completions if self.ranking is None else 1

    def templates(self) -> list[str]:
        return [*super().templates(), *([self.ranking.completion] if self.ranking else [])]

    def check_texts(self, sample: Sample, item: Item) -> None:
        super().check_texts(sample, item)
        if self.ranking is not None:
            with contextlib.suppress(MissingField):
                self._shown(self.ranking, sample, item)

    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        return super().grade_many(pairs) if self.ranking is None else self._ranked(self.ranking, pairs)

    def _ranked(self, ranking: Ranking, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        """Grades by one answer for each item."""
        grades: dict[int, Grade] = {}
        groups: list[tuple[list[int], Group]] = []
        chats: list[Chat] = []
        for places in same_item([item for _, item in pairs]):
            filled = {place: self._filled(ranking, *pairs[place]) for place in places}
            grades |= {place: part for place, part in filled.items() if isinstance(part, Grade)}
            shown = {place: part for place, part in filled.items() if not isinstance(part, Grade)}
            samples = [pairs[place][0] for place in shown]
            if len(shown) < 2 or all(isinstance(sample, Reference) for sample in samples):
                grades |= dict.fromkeys(shown, Grade.failed(ALONE))
            else:
                group = group_of(ranking, samples, [text for _, text in shown.values()], pairs[places[0]][1])
                groups.append((list(shown), group))
                chats.append(with_instruction(shown[next(iter(shown))][0], group.instruction))
        graded = self._grade_groups([group for _, group in groups], chats)
        for (places, _), of_group in zip(groups, graded, strict=True):
            grades |= zip(places, of_group, strict=True)
        return [grades[place] for place in range(len(pairs))]

    def _filled(self, ranking: Ranking, sample: Sample, item: Item) -> tuple[Chat, str] | Grade:
        """The input, and what is shown of the sample; a failed grade where a field is missing or a text too long."""
        try:
            return self.fill({"sample": {}, "item": item}), self._shown(ranking, sample, item)
        except (MissingField, TextTooLong) as unfilled:
            return failed_fill(unfilled)

    def _grade_groups(self, groups: Sequence[Group], chats: Sequence[Chat]) -> list[list[Grade]]:
        """Equal texts need no judge."""
        requests = [chat for group, chat in zip(groups, chats, strict=True) if len(group.shown) > 1]
        answers = iter(self.ask(requests) if requests else [])
        return [
            self._standings(group, next(answers)) if len(group.shown) > 1 else self._rewards(group, [0])
            for group in groups
        ]

    def _shown(self, ranking: Ranking, sample: Sample, item: Item) -> str:
        return without_surrogates(self.render(ranking.completion, {"sample": sample.as_dict(), "item": item}))

    def _standings(self, group: Group, answer: Answer) -> list[Grade]:
        """The answer's tokens are those of the first grade."""
        places = self.interpret(answer, lambda text, cut: read_ranking(text, len(group.shown), cut))
        grades = [places] * len(group.texts) if isinstance(places, Grade) else self._rewards(group, places)
        return [self.charged(grades[0], answer), *grades[1:]]

    def _rewards(self, group: Group, places: Sequence[int]) -> list[Grade]:
        low, high = self.range or (0.0, 1.0)
        return [Grade.of(low + (high - low) * share) for share in group.shares(places)]

    def grade_filled(self, filled: Sequence[Chat]) -> list[Grade]:
        return (
            super().grade_filled(filled) if self._reward_model is None else self._rewarded(self._reward_model, filled)
        )

    def _rewarded(self, reward_model: Path, filled: Sequence[Chat]) -> list[Grade]:
        try:
            texts = [chat_text(reward_model, chat) for chat in filled]
        except TemplateError as error:
            return [Grade.failed(f"{self.model}'s chat template refuses the input: {error}")] * len(filled)
        ids = token_ids(reward_model, [text for text, _ in texts], special_tokens=texts[0][1])
        longest = max_tokens(reward_model)
        fitting = [place for place, tokens in enumerate(ids) if len(tokens) <= longest]
        scores = dict(zip(fitting, reward(reward_model, [ids[place] for place in fitting]), strict=True))
        return [
            Grade.of(self._clamped(float(scores[place]), self.range))
            if place in scores
            else Grade.failed(
                f"the conversation has {len(tokens)} tokens, the reward model {self.model} reads {longest}"
            )
            for place, tokens in enumerate(ids)
        ]

    @property
    def instruction(self) -> str:
        low, high = self.range or (0, 1)
        return f'End your answer with a JSON object {{"result": x}}, where x is a number from {low:g} to {high:g}.'

    def read(self, text: str, cut: bool) -> float:
        return self._clamped(read_score(text, cut), self.range or (0.0, 1.0))

    @staticmethod
    def _clamped(score: float, range: tuple[float, float] | None) -> float:
        return score if range is None else min(max(score, range[0]), range[1])
