"""What a grader reads (a sample and its item) and what it gives (a grade)."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from iro_server import JsonObject, JsonValue

Item = JsonObject
LARGEST_REWARD = 1e100  # in size: the squares of many such rewards add up to a finite number


class GraderError(ValueError):
    """A grader that cannot be used as specified. ``param`` is the field at fault, such as ``grader.input``."""

    def __init__(self, message: str, param: str):
        super().__init__(message)
        self.message = message
        self.param = param


class TextTooLong(ValueError):
    """A text to be graded takes more than ``limit`` bytes in UTF-8."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"a text to be graded is over the limit of {limit} bytes (IRO_MAX_GRADED_BYTES)")
        self.limit = limit


def check_length(text: str, limit: int) -> int:
    """The bytes that ``text`` takes in UTF-8. Raises TextTooLong."""
    size = len(text.encode(errors="surrogatepass"))
    if size > limit:
        raise TextTooLong(limit)
    return size


@dataclass(frozen=True)
class Sample:
    """What the model wrote. ``output_json`` None: ``output_text`` is parsed where it is JSON."""

    output_text: str
    output_json: Any = None
    output_tools: list[JsonObject] | None = None
    choices: list[JsonObject] | None = None

    def as_dict(self) -> JsonObject:
        """The sample in OpenAI's shape, as templates and python graders see it."""
        message = {"role": "assistant", "content": self.output_text}
        return {
            "output_text": self.output_text,
            "output_json": _parsed(self.output_text) if self.output_json is None else self.output_json,
            "output_tools": self.output_tools or [],
            "choices": self.choices or [{"index": 0, "finish_reason": "stop", "message": message}],
        }


class Reference(Sample):
    """A sample that the others of its item are compared with, by a grader that compares."""


def _parsed(text: str) -> JsonValue:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


Flag = Literal[
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
]


@dataclass(frozen=True)
class Grade:
    """``reward`` is NaN where ``error`` tells why there is none, and ``flag`` which of OpenAI's errors that is.

    ``sub_rewards``: by grader name, of a multi grader. ``tokens``: used by each model that was asked, by its name;
    ``costs``: what they cost, of models whose prices the operator gave.
    """

    reward: float
    sub_rewards: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    flag: Flag = "other_error"
    tokens: dict[str, int] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)

    @classmethod
    def failed(
        cls,
        error: str,
        flag: Flag = "other_error",
        sub_rewards: dict[str, float] | None = None,
        tokens: dict[str, int] | None = None,
    ) -> Grade:
        return cls(math.nan, sub_rewards or {}, error, flag, tokens or {})

    @classmethod
    def of(
        cls, reward: float, sub_rewards: dict[str, float] | None = None, tokens: dict[str, int] | None = None
    ) -> Grade:
        """A grade, failed unless ``reward`` is finite and at most ``LARGEST_REWARD`` in size."""
        if not math.isfinite(reward) or abs(reward) > LARGEST_REWARD:
            expected = f"at most {LARGEST_REWARD:g} in size" if math.isfinite(reward) else "a finite number"
            message = f"the reward is {reward}, not {expected}"
            return cls.failed(message, "unresponsive_reward_error", sub_rewards, tokens)
        return cls(reward, sub_rewards or {}, tokens=tokens or {})


class Grader(BaseModel, ABC):
    """Turns samples into rewards. It may hold processes or connections: close it, or use it as a context manager."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    name: str = Field("grader", min_length=1)

    @abstractmethod
    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        """One grade for each (sample, item), in order. A pair that cannot be graded gets a grade with an error."""

    def grade(self, sample: Sample, item: Item) -> Grade:
        return self.grade_many([(sample, item)])[0]

    @property
    def compares(self) -> bool:
        """Whether a sample's reward depends on the other samples of its item in the same call of ``grade_many``."""
        return False

    def num_calls(self, completions: int) -> int:
        """The gradings that so many completions of one item take."""
        return completions

    def check_texts(self, sample: Sample, item: Item) -> None:
        """Raise TextTooLong where a text that the pair is graded by is too long."""

    def served_models(self) -> dict[str, str]:
        """The chat models of this server that it asks, each by the field that names it, such as ``graders.a.model``."""
        return {}

    def item_fields(self) -> set[str]:
        """The fields of items that it is known to read."""
        return set()

    def reads_sample(self) -> bool:
        """False where every sample of an item surely has the same reward, since none of it is read."""
        return True

    def wait_for_limits(self) -> None:
        """Have requests to this server's models that meet their key's limit per minute wait until it has room, or the
        grader is closed."""

    def close(self) -> None:
        """Free what the grader holds, from any thread; grades asked of it afterwards fail."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
