"""What graders that ask a chat model have in common: the input, the endpoint, the request, and the answer's grade."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, PrivateAttr, ValidationInfo, field_validator

from iro_server import JsonObject
from iro_server.graders.answers import Unreadable
from iro_server.graders.asking import Answer, Asker
from iro_server.graders.base import Grade
from iro_server.graders.endpoint_limits import TokenPrice
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.messages import Message, render_messages, with_instruction
from iro_server.graders.posting import Endpoint
from iro_server.graders.templated import TemplatedGrader

Chat = list[dict[str, str]]
Reading = TypeVar("Reading")
Tokens = Annotated[int, Field(ge=1)]


class SamplingParams(BaseModel):
    """OpenAI's, and ``max_tokens``; what is left out is the asked server's own default. ``reasoning_effort`` goes to
    other endpoints only: the models served here do not reason apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_completions_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    def as_request(self) -> JsonObject:
        """As fields of a chat completion request."""
        fields = self.model_dump(exclude_none=True)
        if (most := fields.pop("max_completions_tokens", None)) is not None:
            fields["max_completion_tokens"] = most
        return fields


class ModelGrader(TemplatedGrader[Chat]):
    """``base_url``, an extension: another OpenAI-compatible endpoint that has the model, where the server allows it."""

    base_url: HttpUrl | None = None
    model: str = Field(min_length=1)
    input: list[Message] = Field(min_length=1)
    sampling_params: SamplingParams = SamplingParams()

    _asker: Asker | None = PrivateAttr(None)
    _price: TokenPrice | None = PrivateAttr(None)

    @field_validator("base_url")
    @classmethod
    def _allowed(cls, url: HttpUrl | None, info: ValidationInfo) -> HttpUrl | None:
        grader_environment = GraderEnvironment.of_validation(info)
        if url is not None and not grader_environment.any_endpoint and _plain(url) not in _keys(grader_environment):
            raise ValueError(f"{url} is not among the endpoints this server allows (IRO_GRADER_ENDPOINTS)")
        return url

    @field_validator("model")
    @classmethod
    def _answered(cls, model: str, info: ValidationInfo) -> str:
        if "base_url" not in info.data or info.data["base_url"] is not None:
            return model
        return cls.check_model(model, GraderEnvironment.of_validation(info))

    @classmethod
    def check_model(cls, model: str, grader_environment: GraderEnvironment) -> str:
        """The name, where something here answers to it. Raises ValueError."""
        if grader_environment.base_url is None:
            raise ValueError(f"no server runs here that could be asked for {model!r}; give its base_url")
        return model

    def model_post_init(self, context: GraderEnvironment) -> None:
        super().model_post_init(context)
        self._price = context.prices.get(self.model)
        if self.base_url is not None:
            self._asker = Asker(_named_endpoint(self.base_url, context), retries_bounded=True)
        elif context.base_url is not None:
            endpoint = Endpoint(context.base_url.rstrip("/"), context.api_key, context.project, quoted=True)
            self._asker = Asker(endpoint, timeout=context.answer_seconds)

    def served_models(self) -> dict[str, str]:
        return {"model": self.model} if self.base_url is None else {}

    def templates(self) -> list[str]:
        return [text for message in self.input for text in message.content]

    def fill(self, scope: JsonObject) -> Chat:
        return render_messages(self.input, scope, self._max_bytes)

    def grade_filled(self, filled: Sequence[Chat]) -> list[Grade]:
        return [self._grade(answer) for answer in self.ask(with_instruction(chat, self.instruction) for chat in filled)]

    def ask(self, chats: Iterable[Chat]) -> list[Answer]:
        """The model's answer to each conversation."""
        assert self._asker is not None
        return self._asker.ask([self._request(chat) for chat in chats])

    @property
    @abstractmethod
    def instruction(self) -> str:
        """What to answer with, told to the model after the input."""

    @abstractmethod
    def read(self, text: str, cut: bool) -> float:
        """The reward in an answer, ``cut`` where a token limit ended it. Raises Unreadable."""

    def _request(self, messages: Chat) -> JsonObject:
        sampling = self.sampling_params.as_request()
        if self.base_url is None:
            sampling.pop("reasoning_effort", None)
        return {"model": self.model, "messages": messages, **sampling}

    def _grade(self, answer: Answer) -> Grade:
        reward = self.interpret(answer, self.read)
        return self.charged(reward if isinstance(reward, Grade) else Grade.of(reward), answer)

    def interpret(self, answer: Answer, read: Callable[[str, bool], Reading]) -> Reading | Grade:
        """What ``read`` makes of an answer, or the failed grade where there is none, or it raises Unreadable."""
        if answer.error is not None:
            return Grade.failed(f"{self.model}: {answer.error}", answer.flag)
        try:
            return read(answer.text, answer.cut)
        except Unreadable as error:
            reason = error if self._asker and self._asker.endpoint.quoted else error.reason
            return Grade.failed(f"{self.model}: {reason}", "model_grader_parse_error")

    def charged(self, grade: Grade, answer: Answer) -> Grade:
        """The grade with the tokens of the answer, and what they cost."""
        if not answer.tokens:
            return grade
        grade = replace(grade, tokens={self.model: answer.tokens})
        if self._price is None:
            return grade
        cost = self._price.cost(answer.tokens - answer.completion_tokens, answer.completion_tokens)
        return replace(grade, costs={self.model: cost})

    def wait_for_limits(self) -> None:
        if self._asker is not None and self.base_url is None:
            self._asker.poster.wait_for_limits()

    def close(self) -> None:
        if self._asker is not None:
            self._asker.close()


def _plain(url: HttpUrl | str) -> str:
    return str(HttpUrl(str(url))).rstrip("/")


def _named_endpoint(url: HttpUrl, grader_environment: GraderEnvironment) -> Endpoint:
    """The one at ``url``, quoted where the server's operator named it."""
    keys = _keys(grader_environment)
    limits = {_plain(limited): limit for limited, limit in grader_environment.limits.items()}
    address = _plain(url)
    return Endpoint(address, keys.get(address, ""), quoted=address in keys, limits=limits.get(address))


def _keys(grader_environment: GraderEnvironment) -> dict[str, str]:
    """The keys of the endpoints that the operator named, "" for none needed."""
    return {_plain(allowed): key for allowed, key in grader_environment.endpoints.items()}
