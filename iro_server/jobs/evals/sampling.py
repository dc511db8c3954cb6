"""Samples of a run's model, asked of this server's own chat route: the same search and limits as for any request."""

from __future__ import annotations

from collections.abc import Sequence

from iro_server import JsonObject
from iro_server.graders.asking import Answer, Asker
from iro_server.graders.base import Sample
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.posting import Endpoint
from iro_server.jobs.evals.source import BadItem, NoSample, messages_for
from iro_server.store.tables import EvalItem, EvalRun

ATTEMPTS = 20  # of a request; one that is refused for the key's limit waits for the next minute and spends none
NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "cached_tokens": 0}


class Sampler:
    """Asks a run's model. The item at ``position`` gets the run's seed plus it, so that its sample is the same again.

    ``run.sampling``: ``request``, the fields of each request; ``shown``, what samples say of them. ``timeout``: seconds
    that one request may take.
    """

    def __init__(self, run: EvalRun, environment: GraderEnvironment, timeout: float) -> None:
        assert environment.base_url is not None
        self.run, self.limit = run, environment.max_text_bytes
        endpoint = Endpoint(environment.base_url, environment.api_key, environment.project, quoted=True)
        self.asker = Asker(endpoint, attempts=ATTEMPTS, timeout=timeout, retries_timeouts=False)
        self.asker.poster.wait_for_limits()

    def sample(self, items: Sequence[EvalItem]) -> list[tuple[Sample | None, JsonObject]]:
        """For each item its sample, None where there is none, and what is shown of it."""
        requests: dict[int, JsonObject] = {}
        answers: dict[int, Answer] = {}
        for item in items:
            try:
                requests[item.position] = self._request(item)
            except BadItem as error:
                answers[item.position] = Answer(error=str(error))
        answers |= zip(requests, self.asker.ask(list(requests.values())), strict=True)
        return [self._read(item, requests.get(item.position, {}), answers[item.position]) for item in items]

    def close(self) -> None:
        self.asker.close()

    def _request(self, item: EvalItem) -> JsonObject:
        messages = messages_for(self.run.data_source["input_messages"], item.item, self.limit)
        seed = self.run.sampling["shown"]["seed"] + item.position
        return {"model": self.run.model, "messages": messages, "item": item.item, "seed": seed} | self._fields

    @property
    def _fields(self) -> JsonObject:
        fields: JsonObject = self.run.sampling["request"]
        return fields

    def _read(self, item: EvalItem, request: JsonObject, answer: Answer) -> tuple[Sample | None, JsonObject]:
        messages = [_plain(message) for message in request.get("messages", [])]
        shown = self.run.sampling["shown"] | {"model": self.run.model, "input": messages}
        shown |= {"seed": self.run.sampling["shown"]["seed"] + item.position}
        if answer.error is not None:
            error = {"code": "sampling_failed", "message": answer.error}
            return None, shown | {"error": error, "output": [], "finish_reason": "error", "usage": NO_TOKENS}
        choice, usage = answer.body["choices"][0], answer.body["usage"]
        shown |= {"error": None, "finish_reason": choice["finish_reason"], "usage": _tokens(usage)}
        sample = Sample(answer.text, output_tools=choice["message"].get("tool_calls"), choices=answer.body["choices"])
        return sample, shown | {"output": [_output_message(sample)]}


def shown_sample(sample: Sample) -> JsonObject:
    """What is shown of a sample that came with its item; no output where none came."""
    shown: JsonObject = {"error": None, "model": "", "input": [], "finish_reason": "stop", "usage": NO_TOKENS}
    shown |= {"max_completion_tokens": 0, "seed": 0, "temperature": 1.0, "top_p": 1.0}
    return shown | {"output": [] if isinstance(sample, NoSample) else [_output_message(sample)]}


def _output_message(sample: Sample) -> JsonObject:
    calls = {"tool_calls": sample.output_tools} if sample.output_tools else {}
    return {"role": "assistant", "content": sample.output_text} | calls


def _tokens(usage: JsonObject) -> JsonObject:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: int(usage[name]) for name in names} | {"cached_tokens": cached}


def _plain(message: JsonObject) -> JsonObject:
    """A message with its content as one text."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return {"role": str(message.get("role", "")), "content": "" if content is None else str(content)}
