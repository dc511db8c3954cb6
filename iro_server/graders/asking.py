"""Asking a chat model by HTTP, and reading what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import httpx

from iro_server import JsonObject
from iro_server.graders.base import Flag
from iro_server.graders.posting import TIMEOUT, Endpoint, Poster, Reply


@dataclass(frozen=True)
class Answer:
    """``text``: what the model said, ``cut`` where a token limit ended it. ``error``: why it said nothing, and ``flag``
    what OpenAI calls that. ``body``: the chat completion itself. ``tokens``: in all; ``completion_tokens`` of them are
    of the answer."""

    text: str = ""
    tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None
    flag: Flag = "model_grader_server_error"
    body: JsonObject = field(default_factory=dict)
    cut: bool = False


class Asker:
    """Asks one endpoint, from any thread, until it is closed. ``route`` "completions": requests continue texts.
    ``timeout``, ``retries_timeouts``, ``retries_bounded``: as of ``Poster``.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        attempts: int | None = None,
        route: Literal["chat/completions", "completions"] = "chat/completions",
        retries_bounded: bool = False,
        timeout: float = TIMEOUT,
        retries_timeouts: bool = True,
    ) -> None:
        self.endpoint, self.route = endpoint, route
        self.poster = Poster(
            endpoint,
            attempts,
            timeout=timeout,
            retries_bounded=retries_bounded,
            retries_timeouts=retries_timeouts,
        )

    def ask(self, requests: Sequence[JsonObject]) -> list[Answer]:
        """One answer to each chat completion request, in order."""
        return [_answer(reply, self.endpoint.quoted) for reply in self.poster.post_all(self.route, requests)]

    def close(self) -> None:
        """Ask nothing further, nor again."""
        self.poster.close()


def _answer(reply: Reply, quoted: bool) -> Answer:
    if reply.response is None:
        return Answer(error=reply.error)
    if reply.response.status_code != 200:
        return Answer(error=_refusal(reply.response, quoted))
    return _read(reply.response, quoted)


def _refusal(response: httpx.Response, quoted: bool) -> str:
    if not quoted:
        return f"answered {response.status_code}"
    try:
        message = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = response.text
    return f"answered {response.status_code}: {str(message)[:300]}"


def _read(response: httpx.Response, quoted: bool) -> Answer:
    try:
        body = response.json()
        (choice, *_), usage = body["choices"], body.get("usage") or {}
        counts = int(usage.get("total_tokens") or 0), int(usage.get("completion_tokens") or 0)
        message = choice["message"] if "message" in choice else {"content": choice["text"]}
        refusal, text = message.get("refusal"), message.get("content") or ""
    except (ValueError, LookupError, TypeError, AttributeError):
        return Answer(error="answered what is no chat completion" + (f": {response.text[:100]}" if quoted else ""))
    if refusal or choice.get("finish_reason") == "content_filter":
        error = "the model refused" + (f": {str(refusal or text)[:300]}" if quoted else "")
        return Answer("", *counts, error, "model_grader_refusal_error")
    return Answer(str(text), *counts, body=body, cut=choice.get("finish_reason") == "length")
