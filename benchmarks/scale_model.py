"""A server as a queue: users who ask, read and ask again, and an engine that makes one step at a time for all rows.

As the server does: requests are admitted in order while their rows fit, a prompt is read in the step in which it joins,
each step gives every live row one token. What a step costs is measured (``scale.py``), or reckoned by a roofline.
"""

from __future__ import annotations

import bisect
import random
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Self

import simpy

from iro_server.settings import Settings

LIMIT = {"first_chunk_p95": 2.0, "whole_p95": 30.0}  # seconds that users put up with
MOST_ROWS: int = Settings.model_fields["max_active_rows"].default
PREFILL_TOKENS = 512  # of prompts that join one step


@dataclass(frozen=True)
class Costs:
    """``seconds[i]``: of a step of ``rows[i]`` rows; between them by interpolation, beyond in proportion.
    ``prompt_token``: seconds of each token of a prompt."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    prompt_token: float

    def step(self, rows: int, prompt_tokens: int) -> float:
        return (self._rows(rows) if rows else 0.0) + prompt_tokens * self.prompt_token

    def _rows(self, rows: int) -> float:
        index = bisect.bisect_left(self.rows, rows)
        if index == len(self.rows):
            return self.seconds[-1] * rows / self.rows[-1]
        if self.rows[index] == rows or index == 0:
            return self.seconds[index]
        share = (rows - self.rows[index - 1]) / (self.rows[index] - self.rows[index - 1])
        return self.seconds[index - 1] + share * (self.seconds[index] - self.seconds[index - 1])


@dataclass(frozen=True)
class Workload:
    """``think``: mean seconds between an answer and its user's next request, exponential. Tokens are of a request."""

    users: int
    think: float
    beam_width: int
    num_successors: int
    chunk_length: int
    prompt_tokens: int
    tokens: int

    @property
    def rows(self) -> int:
        return self.beam_width * self.num_successors

    def of(self, users: int) -> Workload:
        return replace(self, users=users)

    def searching(self, beam_width: int, num_successors: int) -> Workload:
        return replace(self, beam_width=beam_width, num_successors=num_successors)


@dataclass(frozen=True)
class Outcome:
    """``first_chunk``, ``whole``: p50 and p95 in seconds. ``busy``: share of the time in which the engine steps."""

    requests_per_second: float
    first_chunk: tuple[float, float]
    whole: tuple[float, float]
    busy: float

    @classmethod
    def of(
        cls, durations: list[float], first: list[float], seconds: float, busy: float, num_unfinished: int = 0
    ) -> Self:
        """Of so many seconds. ``num_unfinished``: how many of the requests have lasted so long, and go on."""
        return cls((len(durations) - num_unfinished) / seconds, _quantiles(first), _quantiles(durations), busy)

    def bearable(self) -> bool:
        return self.first_chunk[1] <= LIMIT["first_chunk_p95"] and self.whole[1] <= LIMIT["whole_p95"]


def _quantiles(seconds: list[float]) -> tuple[float, float]:
    if len(seconds) < 2:
        return (float("nan"), float("nan"))
    return statistics.median(seconds), statistics.quantiles(seconds, n=20)[18]


@dataclass(frozen=True)
class Request:
    """``first`` fires after the first chunk, ``done`` after the last."""

    rows: int
    prompt: int
    chunk: int
    tokens: int
    first: simpy.Event
    done: simpy.Event


@dataclass
class Server:
    """One engine behind one queue. ``due[n]``: what step n brings about."""

    env: simpy.Environment
    costs: Costs
    waiting: deque[Request] = field(default_factory=deque)
    joining: deque[Request] = field(default_factory=deque)
    admitted: int = 0  # rows
    live: int = 0  # rows that step
    steps: int = 0
    due: defaultdict[int, list[Callable[[], object]]] = field(default_factory=lambda: defaultdict(list))
    busy: float = 0.0
    wake: simpy.Event | None = None

    def ask(self, request: Request) -> None:
        self.waiting.append(request)
        self._admit()

    def _admit(self) -> None:
        while self.waiting and (not self.admitted or self.admitted + self.waiting[0].rows <= MOST_ROWS):
            request = self.waiting.popleft()
            self.admitted += request.rows
            self.joining.append(request)
        if self.joining and self.wake and not self.wake.triggered:
            self.wake.succeed()

    def run(self) -> Generator[simpy.Event, object, None]:
        while True:
            if not (self.live or self.joining):
                self.wake = self.env.event()
                yield self.wake
            joined = self._joined()
            seconds = self.costs.step(self.live, sum(each.prompt for each in joined))
            self.busy += seconds
            self.steps += 1
            yield self.env.timeout(seconds)
            for happen in self.due.pop(self.steps, ()):
                happen()
            for request in joined:
                self._begin(request)

    def _joined(self) -> list[Request]:
        joined: list[Request] = []
        while self.joining and (not joined or sum(r.prompt for r in joined) + self.joining[0].prompt <= PREFILL_TOKENS):
            joined.append(self.joining.popleft())
        return joined

    def _begin(self, request: Request) -> None:
        def end() -> None:
            self.live -= request.rows
            self.admitted -= request.rows
            request.done.succeed()
            self._admit()

        self.live += request.rows
        self.due[self.steps + min(request.chunk, request.tokens)].append(request.first.succeed)
        self.due[self.steps + request.tokens].append(end)


def simulate(costs: Costs, workload: Workload, seconds: float, seed: int = 0) -> Outcome:
    """What users see in so many simulated seconds, after a tenth of them."""
    env = simpy.Environment()
    server = Server(env, costs)
    env.process(server.run())
    first: list[float] = []
    durations: list[float] = []
    begin = seconds / 10

    def user(rng: random.Random) -> Generator[simpy.Event, object, None]:
        while True:
            yield env.timeout(rng.expovariate(1 / workload.think))
            start = env.now
            request = Request(
                workload.rows,
                workload.prompt_tokens,
                workload.chunk_length,
                workload.tokens,
                env.event(),
                env.event(),
            )
            server.ask(request)
            yield request.first
            first_chunk = env.now - start
            yield request.done
            if env.now >= begin:
                first.append(first_chunk)
                durations.append(env.now - start)

    for number in range(workload.users):
        env.process(user(random.Random(f"{seed}-{number}")))
    env.run(until=begin + seconds)
    return Outcome.of(durations, first, seconds, server.busy / env.now)


def carried(costs: Costs, workload: Workload) -> int:
    """The most users within LIMIT, to a twentieth; 0 where one is too many already."""

    def bears(users: int) -> bool:
        return simulate(costs, workload.of(users), seconds=max(120.0, 8 * workload.think)).bearable()

    if not bears(1):
        return 0
    low, high = 1, 2
    while bears(high):
        low, high = high, high * 2
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if bears(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Model:
    """``kv_bytes``: of one token's keys and values, all layers, bf16."""

    name: str
    parameters: float
    kv_bytes: int


@dataclass(frozen=True)
class Gpu:
    """One engine's GPUs together: bytes, bytes a second and bf16 operations a second by data sheet."""

    name: str
    memory: float
    bandwidth: float
    flops: float

    def fits(self, model: Model) -> bool:
        return 2 * model.parameters < 0.7 * self.memory  # the rest for keys and values


H100 = (80e9, 3.35e12, 989e12)
GPUS = [Gpu("1 x H100", *H100), Gpu("4 x H100", *(4 * each for each in H100))]
MODELS = [Model("Llama 3 8B", 8.0e9, 131_072), Model("Llama 3 70B", 70.6e9, 327_680)]
REACHED = {
    "bandwidth": 0.6,
    "flops": 0.4,
}  # shares of the data sheet's figures that serving engines reach, by experience
ROWS = (1, 4, 16, 64, 256, 512)


def reckoned(gpu: Gpu, model: Model, workload: Workload) -> Costs:
    """A roofline: a step reads all weights and the live rows' keys and values, and computes two operations a weight and
    row; whichever takes longer. Rows of a request share their prompt's keys and values."""
    bandwidth, flops = REACHED["bandwidth"] * gpu.bandwidth, REACHED["flops"] * gpu.flops
    context = workload.prompt_tokens / workload.rows + workload.tokens / 2

    def step(rows: int) -> float:
        read = 2 * model.parameters + rows * context * model.kv_bytes
        return max(read / bandwidth, 2 * model.parameters * rows / flops)

    return Costs(ROWS, tuple(step(rows) for rows in ROWS), 2 * model.parameters / flops)
