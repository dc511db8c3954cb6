"""What a schema's mask costs a step of the embedded engine: 16 rows with and without a schema, in turn.

``share``: seconds that the masks take, of the step's. ``ratio``: seconds a step under a
schema over seconds a step without one, the median of the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import torch

from benchmarks.record import command_line, finish
from iro_server import JsonObject
from iro_server.engines.adjusted import AdjustedRows
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from iro_server.engines.prompts import chat_prompt_ids

PROPERTIES = {"title": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}}
SCHEMA = {"type": "object", "properties": PROPERTIES, "required": list(PROPERTIES), "additionalProperties": False}
PROMPT = "Give a title and tags of a story about a lamp in a garden, as JSON."


class TimedRows:
    """Adds up the seconds that ``AdjustedRows.logits`` and ``take`` take."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in ("logits", "take"):
            setattr(AdjustedRows, name, self._timed(getattr(AdjustedRows, name)))

    def _timed(self, method):  # type: ignore[no-untyped-def]
        def call(*args: object) -> object:
            start = time.perf_counter()
            try:
                return method(*args)
            finally:
                self.seconds += time.perf_counter() - start

        return call


async def seconds_a_step(engine: EmbeddedEngine, rows: int, steps: int, schema: str | None, seed: int) -> float:
    prompt = chat_prompt_ids(engine.tokenizer, [{"role": "user", "content": PROMPT}])
    session = await engine.open(prompt, Sampling(seed=seed, stop_ids=engine.info.eos_ids, schema=schema))
    await session.extend([0], rows, 1)
    start = time.perf_counter()
    chunk = await session.extend(range(rows), 1, steps)
    elapsed = (time.perf_counter() - start) / chunk.tokens_RL.shape[1]
    session.close()
    return elapsed


def measure(args: argparse.Namespace) -> JsonObject:
    plain, held, shares = [], [], []
    masks, schema = TimedRows(), json.dumps(SCHEMA)
    with EmbeddedEngine(prepare_model()) as engine:
        asyncio.run(seconds_a_step(engine, args.rows, 2, schema, 0))
        for seed in range(args.repeats):
            plain.append(asyncio.run(seconds_a_step(engine, args.rows, args.steps, None, seed)))
            masks.seconds = 0.0
            held.append(asyncio.run(seconds_a_step(engine, args.rows, args.steps, schema, seed)))
            shares.append(masks.seconds / (held[-1] * args.steps))
    ratio = statistics.median(under / free for under, free in zip(held, plain, strict=True))
    return {"share": statistics.median(shares), "ratio": ratio, "threads": torch.get_num_threads()}


def report(numbers: JsonObject) -> None:
    print(f"masks take {numbers['share']:.1%} of a step (aim: at most 10 %); a step takes {numbers['ratio']:.2f} times")


def main() -> None:
    parser = command_line("grammars", __doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    finish(args, measure(args), report, seeds=range(args.repeats))


if __name__ == "__main__":
    main()
