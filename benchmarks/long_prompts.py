"""What a long prompt costs, itself and others: ``python -m benchmarks.long_prompts --json``.

SmolLM2-135M in process. Measuring uses the engine's ``open`` and ``extend`` alone, which older revisions have too.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable

from benchmarks.record import command_line, finish
from benchmarks.workload import PASSAGE
from iro_server import JsonObject
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model

SHORT = 20  # tokens of a short prompt
STREAMED = 4  # tokens of a chunk
ARRIVAL = 0.5  # seconds after the long prompt that the short one arrives


def prompt_of(engine: EmbeddedEngine, length: int, start: int = 0) -> list[int]:
    """So many tokens of prose; another ``start`` makes another prompt."""
    ids: list[int] = engine.tokenizer(PASSAGE)["input_ids"]
    return (ids * (2 + length // len(ids)))[start : start + length]


async def seconds(work: Awaitable[object]) -> float:
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


async def first_token(engine: EmbeddedEngine) -> None:
    session = await engine.open(prompt_of(engine, SHORT), Sampling(seed=1))
    await session.extend([0], 1, 1)
    session.close()


async def token_gaps(engine: EmbeddedEngine, until: asyncio.Event) -> list[float]:
    """Seconds between the tokens of a row that streams."""
    session = await engine.open(prompt_of(engine, SHORT, start=1), Sampling(seed=2))
    gaps: list[float] = []
    while not until.is_set() or len(gaps) < 8:
        gaps.append(await seconds(session.extend([0], 1, STREAMED)) / STREAMED)
    session.close()
    return gaps


async def beside_a_long_prompt(engine: EmbeddedEngine, length: int, start: int) -> dict[str, float]:
    """One request of a short prompt that arrives while a long one is read."""
    reading = asyncio.create_task(seconds(engine.open(prompt_of(engine, length, start), Sampling(seed=3))))
    await asyncio.sleep(ARRIVAL)
    short = await seconds(first_token(engine))
    return {"first token of a short request beside it": short, "a long prompt, read beside it": await reading}


async def streaming_beside(engine: EmbeddedEngine, length: int, start: int) -> dict[str, float]:
    """A row that streams while a long prompt is read."""
    read = asyncio.Event()
    read.set()
    alone = await token_gaps(engine, read)
    read.clear()
    streaming = asyncio.create_task(token_gaps(engine, read))
    await asyncio.sleep(ARRIVAL)
    session = await engine.open(prompt_of(engine, length, start), Sampling(seed=4))
    read.set()
    session.close()
    beside = await streaming
    return {"a streamed token, alone": statistics.median(alone), "a streamed token beside it, slowest": max(beside)}


async def streaming_at(engine: EmbeddedEngine, length: int, chunks: int) -> dict[str, float]:
    """A long prompt read alone, then continued four tokens at a time."""
    start = time.perf_counter()
    session = await engine.open(prompt_of(engine, length), Sampling(seed=5))
    read = time.perf_counter() - start
    times = [await seconds(session.extend([0], 1, STREAMED)) for _ in range(chunks)]
    session.close()
    return {"a long prompt, read alone": read, "four streamed tokens after it": statistics.median(times)}


async def samples(engine: EmbeddedEngine, prompt: list[int], count: int, tokens: int) -> None:
    async def sample(seed: int) -> None:
        session = await engine.open(prompt, Sampling(seed=seed))
        await session.extend([0], 1, tokens)
        session.close()

    await asyncio.gather(*map(sample, range(count)))


async def measure(engine: EmbeddedEngine, length: int, chunks: int) -> dict[str, float]:
    await first_token(engine)  # the first step is slower
    result = {"first token of a short request, alone": await seconds(first_token(engine))}
    result |= await streaming_at(engine, length, chunks)
    result |= await beside_a_long_prompt(engine, length, start=1)
    result |= await streaming_beside(engine, length, start=2)
    medium = prompt_of(engine, length // 8, start=3)
    result["one token of an eighth of it"] = await seconds(samples(engine, medium, 1, 1))
    result["one token of 8 samples of an eighth of it"] = await seconds(samples(engine, medium, 8, 1))
    short = prompt_of(engine, 3 * SHORT)
    result["32 tokens of 8 samples of 60 tokens"] = await seconds(samples(engine, short, 8, 32))
    return result


def main() -> None:
    parser = command_line("long_prompts", __doc__)
    parser.add_argument("--tokens", type=int, default=8000, help="tokens of the long prompt")
    parser.add_argument("--chunks", type=int, default=8, help="chunks of four tokens streamed after it")
    args = parser.parse_args()
    with EmbeddedEngine(prepare_model()) as engine:
        result = asyncio.run(measure(engine, args.tokens, args.chunks))
    finish(args, {"seconds": result}, report)


def report(numbers: JsonObject) -> None:
    for name, value in numbers["seconds"].items():
        print(f"{value:8.3f} s  {name}")


if __name__ == "__main__":
    main()
