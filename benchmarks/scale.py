"""How many servers so many users need: ``python -m benchmarks.scale --json``.

Measures what a step of the embedded engine costs by its rows, simulates a server that makes such steps for users who
ask, read and ask again, and checks the simulation against a real server with as many real clients. Then it asks the
simulation how many users one engine carries: this machine's, and GPUs whose steps are reckoned from their data sheets
(``scale_model.py``), which nothing here has measured. Run it on a quiet machine.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import openai
import psutil

from benchmarks.processes import ServerProcess, terminated_is_exit
from benchmarks.record import command_line, finish
from benchmarks.scale_model import GPUS, LIMIT, MODELS, Costs, Outcome, Workload, carried, reckoned, simulate
from benchmarks.tables import gpus
from benchmarks.workload import linear_heads
from iro_server import JsonObject
from iro_server.decoding.base import Scorer
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from iro_server.graders.base import Sample
from iro_server.graders.parsing import parse_grader
from iro_server.settings import Settings
from value_heads import LoraBackbone, LoraValues

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LENGTH, PROMPT = 16, 128
CHECKED = (1, 4, 16, 48)  # users of the real server
HERE = Workload(users=1, think=1.0, beam_width=1, num_successors=8, chunk_length=8, prompt_tokens=40, tokens=32)
THERE = Workload(users=1, think=20.0, beam_width=4, num_successors=4, chunk_length=16, prompt_tokens=500, tokens=250)


def measured_costs(repeats: int) -> Costs:
    """A step's seconds by rows and a prompt token's, medians; contexts of some fifty tokens."""

    async def steps(engine: EmbeddedEngine, rows: int) -> float:
        session = await engine.open(list(range(100, 140)), Sampling(seed=1))
        start = time.perf_counter()
        await session.extend([0], rows, LENGTH)
        seconds = time.perf_counter() - start
        session.close()
        return seconds / LENGTH

    async def prefill(engine: EmbeddedEngine) -> float:
        start = time.perf_counter()
        (await engine.open(list(range(100, 100 + PROMPT)), Sampling(seed=1))).close()
        return (time.perf_counter() - start) / PROMPT

    with EmbeddedEngine(prepare_model()) as engine:
        asyncio.run(steps(engine, 16))
        seconds = [statistics.median(asyncio.run(steps(engine, rows)) for _ in range(repeats)) for rows in ROWS]
        token = statistics.median(asyncio.run(prefill(engine)) for _ in range(repeats))
    return Costs(ROWS, tuple(seconds), token)


async def scoring(engine: EmbeddedEngine, values: Scorer) -> float:
    """Seconds that value functions take for a chunk of a search of 16 rows, after one before it."""
    prompt = list(range(100, 140))
    session = await engine.open(prompt, Sampling(seed=1), values.layers)
    state = values.start(prompt)
    await state.score([0], 16, await session.extend([0], 16, LENGTH))
    chunk = await session.extend([0, 1, 2, 3], 4, LENGTH)
    start = time.perf_counter()
    await state.score([0, 1, 2, 3], 4, chunk)
    seconds = time.perf_counter() - start
    session.close()
    return seconds


def grading(repeats: int) -> float:
    """Seconds of one grade by a python grader, of many at once in warm sandboxes."""
    spec = {"type": "python", "name": "e", "source": "def grade(sample, item): return sample['output_text'].count('e')"}
    samples: list[tuple[Sample, JsonObject]] = [(Sample("What is asked here is answered there. " * 5), {})] * 64
    with parse_grader(spec) as grader:
        grader.grade_many(samples)
        return median_seconds(repeats, lambda: grader.grade_many(samples)) / len(samples)


def uploading(server: ServerProcess, repeats: int) -> float:
    """Seconds of an upload of 500 rows, checked and on disk when it is answered."""
    rows = b"".join(json.dumps({"prompt": f"Row {i} of a file"}).encode() + b"\n" for i in range(500))
    with openai.OpenAI(base_url=server.url, api_key="none") as api:
        return median_seconds(repeats, lambda: api.files.create(file=("rows.jsonl", rows), purpose="fine-tune"))


def median_seconds(repeats: int, work: Callable[[], object]) -> float:
    def seconds() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return statistics.median(seconds() for _ in range(repeats))


def arrows(repeats: int) -> dict[str, float]:
    """Seconds of what a request or a sample of a job costs beside the engine's steps: medians."""
    with EmbeddedEngine(prepare_model()) as engine:
        third = engine.info.num_layers // 3
        backbone = LoraBackbone(prepare_model(), third)
        backbone.add_iteration()
        kinds: dict[str, Scorer] = {"linear": linear_heads(engine.info, 3), "lora": LoraValues(backbone, [1.0])}
        seconds = {
            f"{name} values of 16 rows x {LENGTH} tokens": statistics.median(
                asyncio.run(scoring(engine, values)) for _ in range(repeats)
            )
            for name, values in kinds.items()
        }
    seconds["a python grader's grade"] = grading(repeats)
    with tempfile.TemporaryDirectory(prefix="iro-scale-") as folder, ServerProcess(Path(folder)) as server:
        seconds["an upload of 500 rows"] = uploading(server, repeats)
    return seconds


async def real_users(server: ServerProcess, workload: Workload, seconds: float) -> Outcome:
    """What so many clients saw of the real server in so many seconds, after a tenth of them. A request that goes on at
    their end counts as long as it has lasted: the quantiles are lower bounds then."""
    begin = time.monotonic() + seconds / 10
    end = begin + seconds
    spans: list[RequestSpan] = []
    search = {name: getattr(workload, name) for name in ("beam_width", "num_successors", "chunk_length")}
    text = " ".join(["tide"] * workload.prompt_tokens)

    async def user(api: openai.AsyncOpenAI, number: int) -> None:
        rng = random.Random(number)
        await asyncio.sleep(rng.expovariate(1 / workload.think))
        while time.monotonic() < end:
            start, first_chunk = time.monotonic(), None
            async for chunk in await api.completions.create(
                model=Settings().model_name,
                prompt=text,
                max_tokens=workload.tokens,
                seed=rng.randrange(2**31),
                stream=True,
                extra_body={"search": search | {"selection": "top"}},
            ):
                if first_chunk is None and chunk.choices and chunk.choices[0].text:
                    first_chunk = time.monotonic() - start
            if (finish := time.monotonic()) >= begin:
                spans.append(span_until(end, start, first_chunk, finish))
            await asyncio.sleep(rng.expovariate(1 / workload.think))

    async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=300) as api:
        await asyncio.gather(*(user(api, number) for number in range(workload.users)))
    durations, first_chunks = ([getattr(span, part) for span in spans] for part in ("duration", "first_chunk"))
    return Outcome.of(durations, first_chunks, seconds, float("nan"), sum(not span.is_finished for span in spans))


class RequestSpan(NamedTuple):
    """Seconds of a request, and of its first chunk."""

    duration: float
    first_chunk: float
    is_finished: bool


def span_until(end: float, start: float, first_chunk: float | None, finish: float) -> RequestSpan:
    """As far as it is seen at ``end``, where a request that goes on has lasted so long. ``first_chunk``: in seconds
    after ``start``; None where the request had no text."""
    duration = min(finish, end) - start
    return RequestSpan(duration, min(first_chunk or duration, duration), finish < end)


def checked(costs: Costs, seconds: float) -> list[JsonObject]:
    """Simulated beside real, by users."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="iro-scale-") as folder, ServerProcess(Path(folder)) as server:
        asyncio.run(real_users(server, HERE.of(2), seconds / 4))
        for users in CHECKED:
            real = asyncio.run(real_users(server, HERE.of(users), seconds))
            simulated = simulate(costs, HERE.of(users), seconds=600)
            rows.append({"users": users, "real": asdict(real), "simulated": asdict(simulated)})
    return rows


def plan(costs: Costs) -> list[JsonObject]:
    """Users that one engine carries within the limits, by hardware, model and rows."""
    here = {"engine": "this machine", "model": Settings().model_name, "measured": True, "workload": asdict(HERE)}
    return [here | {"users": carried(costs, HERE)}, *reckoned_plan()]


def reckoned_plan() -> list[JsonObject]:
    """Users that one engine of GPUs carries within the limits, by model and rows: reckoned from data sheets."""
    table: list[JsonObject] = []
    for gpu in GPUS:
        for model in MODELS:
            if not gpu.fits(model):
                continue
            for width in (1, 2, 4):
                workload = THERE.searching(width, width)
                users = carried(reckoned(gpu, model, workload), workload)
                table.append({"engine": gpu.name, "model": model.name, "measured": False, "users": users})
                table[-1]["workload"] = asdict(workload)
    return table


def measure(seconds: float, repeats: int) -> JsonObject:
    costs = measured_costs(repeats)
    result = {
        "costs": asdict(costs),
        "arrows": arrows(repeats),
        "check": checked(costs, seconds),
        "plan": plan(costs),
        "limit": LIMIT,
    }
    return result | {"cores": psutil.cpu_count()}


def report(result: JsonObject) -> str:
    """As Markdown."""
    lines = ["| | seconds |", "|---|---|"]
    steps = zip(result["costs"]["rows"], result["costs"]["seconds"], strict=True)
    lines += [f"| a step of {rows} rows | {seconds:.4f} |" for rows, seconds in steps]
    lines.append(f"| a token of a prompt | {result['costs']['prompt_token']:.4f} |")
    lines += [f"| {name} | {seconds:.4f} |" for name, seconds in result["arrows"].items()]
    lines += ["", "| users | | requests/s | first chunk p50, p95 (s) | whole p50, p95 (s) |", "|---|---|---|---|---|"]
    for row in result["check"]:
        for kind in ("real", "simulated"):
            q = row[kind]
            spans = [f"{q[what][0]:.2f}, {q[what][1]:.2f}" for what in ("first_chunk", "whole")]
            lines.append(f"| {row['users']} | {kind} | {q['requests_per_second']:.2f} | {spans[0]} | {spans[1]} |")
    lines += ["", "| engine | model | W x K | users | engines for 1,000 users |", "|---|---|---|---|---|"]
    for row in result["plan"]:
        w = row["workload"]
        needed = -(-1000 // row["users"]) if row["users"] else "-"
        name = row["engine"] if row["measured"] else f"{row['engine']} (reckoned)"
        lines.append(
            f"| {name} | {row['model']} | {w['beam_width']} x {w['num_successors']} | {row['users']} | {needed} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = command_line("scale", __doc__)
    parser.add_argument("--seconds", type=float, default=45, help="seconds for each number of real users")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gpus", action="store_true", help="estimate only GPUs, without measurements")
    args = parser.parse_args()
    terminated_is_exit()
    result = {"plan": reckoned_plan(), "limit": LIMIT} if args.gpus else measure(args.seconds, args.repeats)
    finish(args, result, lambda result: print(gpus(result) if args.gpus else report(result)))


if __name__ == "__main__":
    main()
