"""Graders that compare two texts: string_check and text_similarity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import FiniteFloat, PrivateAttr, ValidationInfo, field_validator

from iro_server import JsonObject
from iro_server.concurrency.worker_processes import WorkerKilled
from iro_server.graders.base import Grade
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.local_models import bundled_embedding_model, embed_tokens, is_model, max_tokens, token_ids
from iro_server.graders.similarity import METRICS, similarity
from iro_server.graders.templated import TemplatedGrader
from iro_server.graders.templates import Template


class _Comparison(TemplatedGrader[tuple[str, str]]):
    input: Template
    reference: Template

    def templates(self) -> list[str]:
        return [self.input, self.reference]

    def fill(self, scope: JsonObject) -> tuple[str, str]:
        return self.render(self.input, scope), self.render(self.reference, scope)


class StringCheck(_Comparison):
    """1 or 0: equal (eq), not equal (ne), contains the reference (like), contains it in any case (ilike)."""

    type: Literal["string_check"]
    operation: Literal["eq", "ne", "like", "ilike"]

    def grade_filled(self, filled: Sequence[tuple[str, str]]) -> list[Grade]:
        return [Grade.of(float(self._holds(text, reference))) for text, reference in filled]

    def _holds(self, text: str, reference: str) -> bool:
        match self.operation:
            case "eq":
                return text == reference
            case "ne":
                return text != reference
            case "like":
                return reference in text
            case "ilike":
                return reference.casefold() in text.casefold()


Metric = Literal[
    "cosine", "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
]


class TextSimilarity(_Comparison):
    """Similarity of two texts by ``evaluation_metric``: in [0, 1], and cosine in [-1, 1]; all metrics run offline.

    ``pass_threshold`` is part of OpenAI's shape; it tells evaluations what passes, and does not change the reward.
    """

    type: Literal["text_similarity"]
    evaluation_metric: Metric
    pass_threshold: FiniteFloat | None = None

    _embedding_model: Path | None = PrivateAttr(None)

    @field_validator("evaluation_metric")
    @classmethod
    def _has_its_model(cls, metric: Metric, info: ValidationInfo) -> Metric:
        directory = _embedding_model(GraderEnvironment.of_validation(info))
        if metric == "cosine" and (directory is None or not is_model(directory)):
            others = ", ".join(METRICS)
            raise ValueError(f"cosine needs an embedding model: set IRO_EMBEDDING_MODEL to its folder, or use {others}")
        return metric

    def model_post_init(self, context: GraderEnvironment) -> None:
        super().model_post_init(context)
        self._embedding_model = _embedding_model(context)

    def grade_filled(self, filled: Sequence[tuple[str, str]]) -> list[Grade]:
        if self.evaluation_metric == "cosine":
            return self._cosines(filled)
        return [self._compared(text, reference) for text, reference in filled]

    def _compared(self, text: str, reference: str) -> Grade:
        try:
            return Grade.of(similarity(self.evaluation_metric, text, reference))
        except (TimeoutError, MemoryError, WorkerKilled) as error:
            return Grade.failed(f"{self.evaluation_metric} {error}")

    def _cosines(self, filled: Sequence[tuple[str, str]]) -> list[Grade]:
        assert self._embedding_model is not None
        texts = sorted({text for pair in filled for text in pair})  # a reference serves many samples
        ids = dict(zip(texts, token_ids(self._embedding_model, texts), strict=True))
        longest = max_tokens(self._embedding_model)
        fitting = [text for text in texts if len(ids[text]) <= longest]
        embeddings = embed_tokens(self._embedding_model, [ids[text] for text in fitting])
        embedding_of = dict(zip(fitting, embeddings, strict=True))

        def grade(pair: tuple[str, str]) -> Grade:
            if lengths := [len(ids[text]) for text in pair if text not in embedding_of]:
                return Grade.failed(f"a text has {max(lengths)} tokens, the embedding model of cosine reads {longest}")
            return Grade.of(float(embedding_of[pair[0]] @ embedding_of[pair[1]]))

        return [grade(pair) for pair in filled]


def _embedding_model(grader_environment: GraderEnvironment) -> Path | None:
    return grader_environment.embedding_model or bundled_embedding_model()
