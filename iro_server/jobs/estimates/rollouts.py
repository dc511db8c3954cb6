"""Plain rollouts of a few training prompts, asked of this server's own routes, and their grades, until time is up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from iro_server import JsonObject
from iro_server.alignment.definition import AlignmentOptions
from iro_server.graders.asking import Answer, Asker
from iro_server.graders.base import Grade, Grader, Sample
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.posting import Endpoint
from iro_server.graders.response_format import parse_response_format
from iro_server.jobs.background import Lease
from iro_server.telemetry.grading import graded

FIRST_BATCH, BATCH = 1, 4  # prompts that are sampled at once
SLICE = 4  # completions that one call of a grader gets, between looks at the clock
REPEATED = 2  # completions of a prompt that are graded twice
CONTINUATION_TOKENS = 48  # of a text where the job measures its own length, as in the job
MESSAGE_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id")  # a row's messages may have others
REFUSED_SCHEMA = "Invalid 'response_format'"  # how the server begins to refuse a schema


@dataclass(frozen=True)
class Completion:
    """A text, without its calls, and its grade. ``prompt``: its number."""

    prompt: int
    text: str
    grade: Grade


@dataclass
class Rollouts:
    """What was sampled and graded so far. Seconds are of the wall clock, ``graded`` the calls that they were for."""

    by_prompt: list[list[Completion]] = field(default_factory=list)
    repeats: list[tuple[float, float]] = field(default_factory=list)
    tokens: int = 0
    sampled: int = 0
    sampling_seconds: float = 0.0
    graded: int = 0
    grading_seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    @property
    def rewards(self) -> list[list[float]]:
        return [[completion.grade.reward for completion in of_prompt] for of_prompt in self.by_prompt]


class Roller:
    """Samples ``rows``, training rows, as a job would, and grades what it gets. Close it, from any thread.

    ``response_format``: of the job, if it has one. ``holds_schemas``: whether its completions are held to it, as far as
    the engine can.
    """

    def __init__(
        self,
        model: str,
        options: AlignmentOptions,
        grader: Grader,
        environment: GraderEnvironment,
        response_format: JsonObject | None,
        holds_schemas: bool,
        seed: int,
        completions: int,
        seconds: float,
    ) -> None:
        assert environment.base_url is not None
        self.model, self.options, self.grader = model, options, grader
        self.form = parse_response_format(response_format or {"type": "text"})
        self.asked_format = response_format if holds_schemas else None
        self.seed, self.completions, self.seconds = seed, completions, seconds
        endpoint = Endpoint(environment.base_url, environment.api_key, environment.project, quoted=True)
        self.chat = Asker(endpoint, timeout=seconds, retries_timeouts=False)
        self.text = Asker(endpoint, route="completions", timeout=seconds, retries_timeouts=False)

    def roll_out(self, rows: Sequence[JsonObject], lease: Lease) -> Rollouts:
        """As many of the rows as ``seconds`` leave time for, the first of them in any case."""
        rollouts, deadline, start = Rollouts(), time.monotonic() + self.seconds, 0
        while start < len(rows):
            began = time.monotonic()
            batch = range(start, min(start + (BATCH if start else FIRST_BATCH), len(rows)))
            answers = self._sample(rows, batch, rollouts)
            lease.check()
            for number, answer in zip(batch, answers, strict=True):
                if not rollouts.by_prompt or time.monotonic() < deadline:
                    self._grade(number, rows[number], answer, rollouts, deadline)
                    lease.check()
            start = batch.stop
            if 2 * time.monotonic() - began > deadline:  # another batch would end too late
                break
        return rollouts

    def close(self) -> None:
        for asker in (self.chat, self.text):
            asker.close()

    def _sample(self, rows: Sequence[JsonObject], batch: range, rollouts: Rollouts) -> list[Answer]:
        began = time.monotonic()
        numbers = {route: [n for n in batch if ("messages" in rows[n]) == route] for route in (True, False)}
        answers: dict[int, Answer] = {}
        for route, asker in ((True, self.chat), (False, self.text)):
            requests = [self._request(n, rows[n]) for n in numbers[route]]
            answers |= zip(numbers[route], self._ask(asker, requests), strict=True)
        rollouts.sampling_seconds += time.monotonic() - began
        for answer in answers.values():
            rollouts.tokens += answer.body.get("usage", {}).get("completion_tokens", 0)
            rollouts.sampled += len(answer.body.get("choices", []))
        return [answers[n] for n in batch]

    def _ask(self, asker: Asker, requests: list[JsonObject]) -> list[Answer]:
        """Without the response format where the engine cannot hold to it: then the job does not either."""
        answers = asker.ask(requests)
        if self.asked_format and any(REFUSED_SCHEMA in (answer.error or "") for answer in answers):
            self.asked_format = None
            without = [{name: request[name] for name in request if name != "response_format"} for request in requests]
            return asker.ask(without)
        return answers

    def _request(self, number: int, row: JsonObject) -> JsonObject:
        request: JsonObject = {"model": self.model, "n": self.completions, "temperature": self.options.temperature}
        request["seed"] = self.seed + number * self.completions
        if self.options.max_tokens != "auto":
            request["max_tokens"] = self.options.max_tokens
        if "messages" in row:
            request["messages"] = [
                {name: message[name] for name in MESSAGE_FIELDS if name in message} for message in row["messages"]
            ]
            if row.get("tools"):
                return request | {"tools": row["tools"]}
        else:
            request = {"max_tokens": CONTINUATION_TOKENS} | request | {"prompt": row["prompt"]}
        return request | {"response_format": self.asked_format} if self.asked_format else request

    def _grade(self, number: int, row: JsonObject, answer: Answer, rollouts: Rollouts, deadline: float) -> None:
        if answer.error is not None:
            rollouts.errors.append(answer.error)
            return
        samples = [self._sample_of(choice) for choice in answer.body["choices"]]
        rollouts.by_prompt.append(completions := [])
        size = len(samples) if self.grader.compares else SLICE
        for start in range(0, len(samples), size):
            part = samples[start : start + size]
            texts = [_text(choice) for choice in answer.body["choices"][start : start + size]]
            completions += [
                Completion(number, *pair) for pair in zip(texts, self._grades(part, row, rollouts), strict=True)
            ]
            if not start:
                second = slice(None, None, -1) if self.grader.compares else slice(REPEATED)  # all, in another order
                repeated = self._grades(part[second], row, rollouts)
                first = [completion.grade.reward for completion in completions[second]]
                rollouts.repeats += zip(first, [grade.reward for grade in repeated], strict=True)
            if time.monotonic() > deadline:
                return

    def _grades(self, samples: Sequence[Sample | Grade], row: JsonObject, rollouts: Rollouts) -> list[Grade]:
        pairs = [(sample, row) for sample in samples if isinstance(sample, Sample)]
        began = time.monotonic()
        with graded(self.grader.type):
            grades = iter(self.grader.grade_many(pairs) if pairs else [])
        rollouts.grading_seconds += time.monotonic() - began
        rollouts.graded += self.grader.num_calls(len(pairs))
        return [next(grades) if isinstance(sample, Sample) else sample for sample in samples]

    def _sample_of(self, choice: JsonObject) -> Sample | Grade:
        """As a job grades: calls without their ids, and 0 for a text without the response format."""
        text = _text(choice)
        if calls := choice.get("message", {}).get("tool_calls"):
            return Sample(text, output_tools=[{name: call[name] for name in call if name != "id"} for call in calls])
        try:
            return Sample(text, output_json=self.form.parse(text))
        except ValueError as error:
            return Grade(0.0, error=f"response_format: {error}", flag="sample_parse_error")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _text(choice: JsonObject) -> str:
    return str(choice["message"]["content"] or "") if "message" in choice else str(choice["text"])
