"""What streams cost beside whole answers: ``python -m benchmarks.streaming --json``.

A real server of SmolLM2-135M in process; its clients, in this process, ask at once for one row each, of the same prompt
with seeds of their own, whole and streamed in turn. Tokens a second of all, and events of text for each token. Run it
on a quiet machine.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.processes import ServerProcess, say
from benchmarks.record import command_line, finish
from benchmarks.tables import table
from benchmarks.workload import PASSAGE
from iro_server import JsonObject

CLIENTS = (1, 4, 16)


async def answer(client: httpx.AsyncClient, body: JsonObject, stream: bool) -> tuple[int, int]:
    """The tokens of one answer, and its events of text."""
    if not stream:
        whole = (await client.post("/completions", json=body)).raise_for_status().json()
        return whole["usage"]["completion_tokens"], 1
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/completions", json=body) as response:
        lines = [line async for line in response.raise_for_status().aiter_lines() if line.startswith("data: {")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    texts = sum(bool(event["choices"] and event["choices"][0]["text"]) for event in events)
    return events[-1]["usage"]["completion_tokens"], texts


async def rate(client: httpx.AsyncClient, count: int, tokens: int, stream: bool) -> tuple[float, float]:
    """Tokens a second, and events of text for each token."""
    model = (await client.get("/models")).json()["data"][0]["id"]
    bodies = [{"model": model, "prompt": PASSAGE, "max_tokens": tokens, "seed": seed} for seed in range(count)]
    start = time.perf_counter()
    answers = await asyncio.gather(*(answer(client, body, stream) for body in bodies))
    elapsed = time.perf_counter() - start
    drawn, events = (sum(column) for column in zip(*answers, strict=True))
    return drawn / elapsed, events / drawn


async def measure(tokens: int, repeats: int) -> JsonObject:
    rows = []
    with tempfile.TemporaryDirectory() as folder, ServerProcess(Path(folder)) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=None) as client:
            await rate(client, 2, tokens, stream=True)
            for count in CLIENTS:
                say(f"{count} clients")
                rounds = [
                    [await rate(client, count, tokens, stream) for stream in (False, True)] for _ in range(repeats)
                ]
                rows.append(
                    {
                        "clients": count,
                        "whole": [whole for (whole, _), _ in rounds],
                        "streamed": [streamed for _, (streamed, _) in rounds],
                        "ratios": [streamed / whole for (whole, _), (streamed, _) in rounds],
                        "events_per_token": statistics.mean(events for _, (_, events) in rounds),
                    }
                )
    return {"rows": rows}


def speeds(content: JsonObject) -> str:
    """Medians of tokens a second, and of each pair's ratio, with its least and most."""
    rows = []
    for row in content["rows"]:
        rates = [f"{statistics.median(row[name]):.0f}" for name in ("whole", "streamed")]
        ratio = f"{statistics.median(row['ratios']):.2f}", f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}"
        rows.append([str(row["clients"]), *rates, *ratio, f"{row['events_per_token']:.2f}"])
    rate_names = [f"tokens a second, {name}" for name in ("whole", "streamed")]
    return table(["clients", *rate_names, "streamed / whole", "repeats", "events of text a token"], rows)


def main() -> None:
    parser = command_line("streaming", __doc__)
    parser.add_argument("--tokens", type=int, default=128, help="most new tokens of an answer")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    finish(args, asyncio.run(measure(args.tokens, args.repeats)), lambda result: print(speeds(result)))


if __name__ == "__main__":
    main()
