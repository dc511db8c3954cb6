"""A guided request's speed on a machine that it shares: ``python -m benchmarks.sharing --json``.

Base tokens a second of an engine in a process of its own (W=4, K=4, L=16): alone, beside a busy single-threaded
process, and two engines at once, as server and worker are. ``benchmarks.decoding`` reports the same ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from contextlib import ExitStack

from benchmarks.record import command_line, finish
from iro_server import JsonObject

SECONDS = 10.0
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # GNU OpenMP's default where nobody chooses
BUSY = "while True: pass"


class EngineProcess:
    """An engine that waits for ``start`` and then decodes; kill it at the end."""

    def __init__(self, seconds: float, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "benchmarks.sharing", "--engine", "--seconds", str(seconds)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self._next_line()

    def start(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def rate(self) -> float:
        """Base tokens a second."""
        return float(self._next_line())

    def _next_line(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"the engine's process ended with exit status {self.process.wait()}")
        return line


def rates(engines: int, seconds: float, environment: dict[str, str], busy: bool = False) -> list[float]:
    """Base tokens a second of so many engines at once, beside a busy process or not."""
    with ExitStack() as ending:
        started = [EngineProcess(seconds, environment) for _ in range(engines)]
        processes = [engine.process for engine in started]
        if busy:
            processes.append(subprocess.Popen([sys.executable, "-c", BUSY], text=True))
        for process in processes:
            ending.callback(process.wait)
            ending.callback(process.kill)
        for engine in started:
            engine.start()
        return [engine.rate() for engine in started]


def measure(seconds: float, repeats: int) -> JsonObject:
    """Rates by situation, the situations in turn, and the ratios of their means."""
    rows: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, engines, environment, busy in (
            ("alone, spinning threads", 1, SPINNING, False),
            ("alone", 1, {}, False),
            ("beside a busy process", 1, {}, True),
            ("two at once, each", 2, {}, False),
        ):
            rows.setdefault(name, []).extend(rates(engines, seconds, environment, busy))
    mean = {name: sum(values) / len(values) for name, values in rows.items()}
    return {
        "tokens_per_second": rows,
        "alone / alone with spinning threads": mean["alone"] / mean["alone, spinning threads"],
        "beside a busy process / alone": mean["beside a busy process"] / mean["alone"],
        "two at once, each / alone": mean["two at once, each"] / mean["alone"],
        "seconds": seconds,
        "repeats": repeats,
    }


def decode(seconds: float) -> None:
    """Say when ready; from the next line of input on, decode for so long and print the rate."""
    from benchmarks.workload import BEAM, PASSAGE, PROMPT_TOKENS
    from iro_server.decoding.search import guided_search
    from iro_server.engines.base import Sampling
    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.engines.prepare import prepare_model

    with EmbeddedEngine(prepare_model()) as engine:
        prompt = engine.tokenizer(PASSAGE)["input_ids"][:PROMPT_TOKENS]

        def request(seed: int) -> int:
            return asyncio.run(guided_search(engine, prompt, BEAM, Sampling(seed=seed), 32)).usage.base_tokens

        request(0)
        print("ready", flush=True)
        sys.stdin.readline()
        tokens, seed, start = 0, 1, time.perf_counter()
        while time.perf_counter() - start < seconds:
            tokens, seed = tokens + request(seed), seed + 1
        print(tokens / (time.perf_counter() - start), flush=True)
        sys.stdin.readline()  # keeps its threads until it is killed


def main() -> None:
    parser = command_line("sharing", __doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="seconds of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engine", action="store_true", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        decode(args.seconds)
        return
    result = measure(args.seconds, args.repeats)
    finish(args, result, report)


def report(result: JsonObject) -> None:
    for name, value in result.items():
        if isinstance(value, float):
            print(f"{value:6.2f}  {name}")


if __name__ == "__main__":
    main()
