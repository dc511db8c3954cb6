"""The server under load: ``python -m benchmarks.load --json``.

A real server process on the real model, called by the official client. (1) 64 clients mix chat, streams, searches and
uploads for a minute: errors, latencies, the server's memory. (2) The same with a key that may have 16 requests at
once: every refusal must be a clean 429. (3) The same completions by the engine alone and through the server, in turn.
Run it on a quiet machine; the clients take their share of its cores.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import openai
import psutil

from benchmarks.processes import ServerProcess, say, terminated_is_exit
from benchmarks.record import command_line, finish
from iro_server import JsonObject
from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from iro_server.settings import Settings
from iro_server.store import keys
from iro_server.store.database import open_database

MODEL = Settings().model_name
QUESTIONS = [
    "What is a tide?",
    "Name a river in France.",
    "Why is the sky blue?",
    "Tell me about bread.",
    "Who was Ada?",
]
ROWS = b"".join(json.dumps({"prompt": f"Row {i} of a file"}).encode() + b"\n" for i in range(500))
SEARCH = {"beam_width": 2, "num_successors": 2, "chunk_length": 8}
TOKENS, CLIENTS, AT_ONCE = 24, 64, 16


@dataclass
class Tally:
    """What the clients saw. Seconds by kind of request; ``refused``: 429s that say when to come back."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    first_chunk: list[float] = field(default_factory=list)
    refused: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    async def timed(self, kind: str, call: Awaitable[object]) -> None:
        start = time.perf_counter()
        try:
            await call
            self.seconds.setdefault(kind, []).append(time.perf_counter() - start)
        except openai.RateLimitError as error:
            clean = error.code == "rate_limit_exceeded" and error.response.headers.get("retry-after")
            self.refused += bool(clean)
            self.errors["429 without a word when to come back"] += not clean
            await asyncio.sleep(0.25)  # a client that is told off waits, if not as long as it was told
        except openai.OpenAIError as error:
            self.errors[f"{kind}: {type(error).__name__}"] += 1

    def summary(self) -> JsonObject:
        done = {kind: quantiles(seconds) for kind, seconds in self.seconds.items()}
        summary = {"done": done, "refused": self.refused, "errors": dict(+self.errors)}
        return summary | {"first_chunk": quantiles(self.first_chunk)}


def quantiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {"count": 0}
    p95 = statistics.quantiles(seconds, n=20)[18] if len(seconds) > 1 else seconds[0]
    return {"count": len(seconds), "p50": statistics.median(seconds), "p95": p95, "max": max(seconds)}


async def client(api: openai.AsyncOpenAI, number: int, until: float, tally: Tally) -> None:
    rng = random.Random(number)
    while time.monotonic() < until:
        messages = [{"role": "user", "content": rng.choice(QUESTIONS)}]
        ask: JsonObject = {"model": MODEL, "messages": messages, "max_tokens": TOKENS}
        kind = rng.choices(["chat", "stream", "search", "upload"], [4, 4, 1, 1])[0]
        if kind == "upload":
            await tally.timed(kind, api.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune"))
        elif kind == "stream":
            await tally.timed(kind, stream(api, ask, tally))
        else:
            extra = {"search": SEARCH} if kind == "search" else None
            await tally.timed(kind, api.chat.completions.create(**ask, extra_body=extra))


async def stream(api: openai.AsyncOpenAI, ask: JsonObject, tally: Tally) -> None:
    start, first = time.perf_counter(), True
    async for chunk in await api.chat.completions.create(**ask, stream=True):
        if first and chunk.choices and chunk.choices[0].delta.content:
            tally.first_chunk.append(time.perf_counter() - start)
            first = False


async def crowd(server: ServerProcess, key: str, seconds: float) -> tuple[Tally, list[int]]:
    """64 clients at once; what they saw, and the server's resident memory each second."""
    tally, memory = Tally(), [server.memory()]
    async with openai.AsyncOpenAI(base_url=server.url, api_key=key, max_retries=0, timeout=120) as api:
        until = time.monotonic() + seconds
        clients = asyncio.gather(*(client(api, number, until, tally) for number in range(CLIENTS)))
        while not clients.done():
            await asyncio.wait({clients}, timeout=1)
            memory.append(server.memory())
        await clients
    return tally, memory


def overhead(server: ServerProcess, key: str, at_once: int, repeats: int) -> JsonObject:
    """Wall seconds of the same completions by the engine alone and through the server, in turn."""
    seeds = range(at_once * 4)

    async def in_turns(send: Callable[[int], Awaitable[object]]) -> float:
        queue = iter(seeds)

        async def worker() -> None:
            for seed in queue:
                await send(seed)

        start = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(at_once)))
        return time.perf_counter() - start

    with EmbeddedEngine(prepare_model()) as engine:
        prompts = [engine.tokenizer(question)["input_ids"] for question in QUESTIONS]
        stops = engine.info.eos_ids

        async def alone(seed: int) -> object:
            sampling = Sampling(seed=seed, stop_ids=stops)
            prompt = prompts[seed % len(prompts)]
            return await guided_search(engine, prompt, SearchParams.model_validate({}), sampling, 48)

        async def served() -> float:
            async with openai.AsyncOpenAI(base_url=server.url, api_key=key, max_retries=0) as api:

                async def ask(seed: int) -> object:
                    prompt = QUESTIONS[seed % len(QUESTIONS)]
                    return await api.completions.create(model=MODEL, prompt=prompt, seed=seed, max_tokens=48)

                return await in_turns(ask)

        asyncio.run(in_turns(alone)), asyncio.run(served())  # warm up
        pairs = [(asyncio.run(in_turns(alone)), asyncio.run(served())) for _ in range(repeats)]
    ratio = statistics.median(through / direct for direct, through in pairs)
    return {"requests_at_once": at_once, "engine_and_server_seconds": pairs, "overhead": ratio - 1}


def measure(seconds: float, repeats: int) -> JsonObject:
    with tempfile.TemporaryDirectory(prefix="iro-load-") as folder:
        sessions = open_database(Settings(data_dir=Path(folder)))
        free, limited = keys.create(sessions, "free")[1], keys.create(sessions, "limited", concurrency=AT_ONCE)[1]
        with ServerProcess(Path(folder)) as server:
            say("warming up")
            asyncio.run(crowd(server, free, 5))
            say(f"{CLIENTS} clients")
            below, memory = asyncio.run(crowd(server, free, seconds))
            say(f"{CLIENTS} clients with a key for {AT_ONCE}")
            above, _ = asyncio.run(crowd(server, limited, seconds / 4))
            say("engine alone and server in turn")
            overheads = [overhead(server, free, at_once, repeats) for at_once in (1, 8)]
    quarter = len(memory) // 4
    early, late = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[-quarter:])
    return {
        "below_the_limit": below.summary(),
        "above_the_limit": above.summary(),
        "memory": {"second_quarter": early, "last_quarter": late, "growth": late / early - 1, "each_second": memory},
        "overhead": overheads,
        "seconds": seconds,
        "cores": psutil.cpu_count(),
    }


def checks(result: JsonObject) -> list[JsonObject]:
    below, above = result["below_the_limit"], result["above_the_limit"]
    measured = [
        ("errors below the limit", 0, sum(below["errors"].values()) + below["refused"]),
        ("errors above the limit other than clean 429s", 0, sum(above["errors"].values())),
        ("growth of the server's memory over the minute", 0.05, result["memory"]["growth"]),
    ]
    measured += [
        (f"overhead over the engine alone, {each['requests_at_once']} at once", 0.05, each["overhead"])
        for each in result["overhead"]
    ]
    return [{"name": name, "at_most": most, "got": got, "holds": got <= most} for name, most, got in measured]


def main() -> None:
    parser = command_line("load", __doc__)
    parser.add_argument("--seconds", type=float, default=60, help="seconds of load below the limit")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    terminated_is_exit()
    result = measure(args.seconds, args.repeats)
    result["checks"] = checks(result)
    finish(args, result, report)


def report(result: JsonObject) -> None:
    for check in result["checks"]:
        mark = "holds" if check["holds"] else "falls short"
        print(f"{check['name']}: {check['got']:.3g}, at most {check['at_most']}: {mark}")
    for kind, latencies in result["below_the_limit"]["done"].items():
        print(f"{kind:8} {latencies['count']:5} done, seconds p50 {latencies['p50']:.2f}, p95 {latencies['p95']:.2f}")
    first = result["below_the_limit"]["first_chunk"]
    if first["count"]:
        print(f"time to a stream's first chunk: p50 {first['p50']:.2f} s, p95 {first['p95']:.2f} s")


if __name__ == "__main__":
    main()
