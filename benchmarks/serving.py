"""Guided search over a real vLLM server: ``python -m benchmarks.serving --json``, after ``make vllm`` has installed it.

W=4, K=4, L=16, value functions in this process: linear on embeddings and counts of tokens, and on a LoRA backbone of a
third of the layers. And one row of an aligned model, whose tilt of rank 16 is an adapter: through Iro, and by
the adapter's name from vLLM itself, which tells Iro's own cost from the adapter's. Prompts of 40 tokens that
share no prefix, SmolLM2-135M in fp32. Ratios within one run, on a quiet machine: two servers, with and without prefix
caching, one after another. A base token is a token of any row drawn from the model, kept or not.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.processes import VLLMProcess, say, terminated_is_exit
from benchmarks.record import command_line, finish
from benchmarks.workload import BEAM, PASSAGE, PROMPT_TOKENS, ROWS, linear_heads, random_tilt
from iro_server import JsonObject
from iro_server.decoding.base import Scorer, SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling, Steering
from iro_server.engines.endpoints import Endpoints
from iro_server.engines.output_head import read_output_head
from iro_server.engines.prepare import prepare_model
from iro_server.engines.vllm import VLLMEngine
from iro_server.engines.vllm_protocol import request, rows_of
from value_heads import LoraBackbone, LoraValues

CROWDS = (1, 4, 16)
PLAIN = SearchParams(beam_width=1, num_successors=ROWS, chunk_length=None)
FLAGS = ("--max-model-len", "1024", "--max-num-seqs", "256")


class Bench:
    """One vLLM server, and what clients make of it. Rates are base tokens a second."""

    def __init__(self, engine: VLLMEngine, backbone: LoraBackbone, tokens: int) -> None:
        self.engine, self.backbone, self.tokens = engine, backbone, tokens
        self.lora, self.linear = LoraValues(backbone, [1.0]), linear_heads(engine.info, 3)
        self.passage = engine.tokenizer(PASSAGE)["input_ids"][1:PROMPT_TOKENS]
        self.prompts = 0
        self.client = httpx.AsyncClient(timeout=None)  # one for all calls: its connections are open before they count
        self.runner = asyncio.Runner()  # whose event loop the connections belong to

    def close(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.close()

    def rate(self, work: Callable[[], Coroutine[Any, Any, int]]) -> float:
        """Of base tokens that ``work`` counts."""
        start = time.perf_counter()
        return self.runner.run(work()) / (time.perf_counter() - start)

    def prompt(self) -> list[int]:
        """One that no cache holds."""
        self.prompts += 1
        return [5000 + self.prompts, *self.passage]

    def search(self, params: SearchParams, requests: int, values: Scorer) -> float:
        """So many searches at once, steered by the value functions; rate."""

        async def go() -> int:
            searches = [
                guided_search(self.engine, self.prompt(), params, Sampling(seed=i), self.tokens, values)
                for i in range(requests)
            ]
            return sum(result.usage.base_tokens for result in await asyncio.gather(*searches))

        return self.rate(go)

    def plain(self, rows: int, requests: int = 1, model: str | None = None) -> float:
        """vLLM's own sampling: so many requests at once, each of so many rows. ``model``: an adapter's name."""
        prompts = [(self.prompt(), rows, self.tokens, seed) for seed in range(requests)]
        return self.rate(lambda: self._post(prompts, model))

    def adapter_name(self, steering: Steering) -> str:
        """Of the aligned model on the server."""

        async def go() -> str:
            with closing(await self.engine.open(self.prompt(), Sampling(), steering=steering)) as session:
                assert session.adapter is not None
                return session.adapter.name

        return self.runner.run(go())

    def one_row(self, requests: int, steering: Steering) -> float:
        """So many requests at once for one row of the aligned model."""

        async def go() -> int:
            searches = [
                guided_search(
                    self.engine, self.prompt(), SearchParams(), Sampling(seed=i), self.tokens, steering=steering
                )
                for i in range(requests)
            ]
            return sum(result.usage.base_tokens for result in await asyncio.gather(*searches))

        return self.rate(go)

    def one_at_a_time(self) -> float:
        """The same search by a client that asks for each continuation of each beam by itself, and scores it by itself,
        reading all of it."""
        prompt = self.prompt()

        async def go() -> int:
            beams = [prompt] * BEAM.beam_width
            for start in range(0, self.tokens, BEAM.chunk_length or self.tokens):
                length = min(BEAM.chunk_length or self.tokens, self.tokens - start)
                pool = []
                for number, beam in enumerate(beams * BEAM.num_successors):
                    await self._post([(beam, 1, length, 1000 * start + number)])
                    row = [*beam, *self.last[0][0].tokens]
                    with torch.no_grad():
                        pool.append((float(self.backbone.values(0, torch.tensor([row]))[0, -1]), row))
                beams = [row for _, row in sorted(pool, reverse=True)[: BEAM.beam_width]]
            return ROWS * self.tokens

        return self.rate(go)

    async def _post(self, requests: list[tuple[list[int], int, int, int]], model: str | None = None) -> int:
        """Tokens drawn for (prompt, rows, length, seed) each; ``last``: the rows."""
        name = model or self.engine.model
        url = f"{self.engine.replicas.all[0].url}/completions"
        bodies = [request(name, p, n, length, Sampling(), seed) for p, n, length, seed in requests]
        answers = await asyncio.gather(*(self.client.post(url, json=body) for body in bodies))
        payloads = [answer.raise_for_status().json() for answer in answers]
        self.last = [
            rows_of(each, n, length, Sampling()) for each, (_, n, length, _) in zip(payloads, requests, strict=True)
        ]
        return sum(len(row.tokens) for rows in self.last for row in rows)

    def cached_share(self, work: Callable[[], float]) -> float:
        """Of the prompt tokens that ``work`` sends, how many vLLM had read before."""
        before = self.engine.health().replicas[0]
        work()
        after = self.engine.health().replicas[0]
        read, cached = (after[name] - before[name] for name in ("prompt_tokens", "cached_tokens"))
        return cached / read


def median(repeats: int, measures: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Of each over the repeats, taken in turn so that a drift of the machine touches all alike."""
    rounds = [{name: measure() for name, measure in measures.items()} for _ in range(repeats)]
    rates = {name: statistics.median(each[name] for each in rounds) for name in measures}
    say(", ".join(f"{name}: {rate:.1f}" for name, rate in rates.items()))
    return rates


def measure_cached(bench: Bench, repeats: int) -> JsonObject:
    bench.search(BEAM, 1, bench.lora)

    def measures(n: int) -> dict[str, Callable[[], float]]:
        return {
            f"linear, {n}": partial(bench.search, BEAM, n, bench.linear),
            f"lora, {n}": partial(bench.search, BEAM, n, bench.lora),
            f"best-of-16, {n}": partial(bench.search, PLAIN, n, bench.lora),
        }

    say("one request, with prefix caching")
    rates = median(3 * repeats, {"plain vLLM, n=16": partial(bench.plain, ROWS)} | measures(CROWDS[0]))
    say("many requests, with prefix caching")
    rates |= median(repeats, {name: work for n in CROWDS[1:] for name, work in measures(n).items()})
    say("one beam at a time")
    rates |= median(1, {"one beam at a time": bench.one_at_a_time})
    return {"tokens_per_second": rates, "cached_share": bench.cached_share(measures(1)["lora, 1"])}


def measure_one_row(bench: Bench, repeats: int) -> dict[str, float]:
    vocabulary, width = read_output_head(prepare_model()).weight_VD.shape
    steering = Steering(random_tilt(vocabulary, width, bench.engine.info.eos_ids, 0, words=False))
    bench.one_row(1, steering)  # writes and loads the adapter
    adapter = bench.adapter_name(steering)
    say("one row of an aligned model")
    measures: dict[str, Callable[[], float]] = {}
    for n in CROWDS:
        measures[f"plain vLLM, one row, {n}"] = partial(bench.plain, 1, n)
        measures[f"its adapter asked for by name, one row, {n}"] = partial(bench.plain, 1, n, adapter)
        measures[f"aligned, one row, {n}"] = partial(bench.one_row, n, steering)
    return median(3 * repeats, measures)


def measure_uncached(bench: Bench, repeats: int) -> dict[str, float]:
    bench.search(BEAM, 1, bench.lora)
    say("without prefix caching")
    return median(
        repeats, {f"lora without prefix caching, {n}": partial(bench.search, BEAM, n, bench.lora) for n in CROWDS}
    )


def ratios(rates: dict[str, float]) -> list[tuple[str, float, float | None]]:
    """Name, value and aim of each."""
    lora, plain, most = rates["lora, 1"], rates["plain vLLM, n=16"], CROWDS[-1]
    named_ratios: list[tuple[str, float, float | None]] = [
        ("guided W=4 K=4 L=16 by lora, one request / plain vLLM, n=16", lora / plain, 0.85),
        ("the same by linear values", rates["linear, 1"] / plain, 0.85),
        ("by lora / a client that asks for one continuation at a time", lora / rates["one beam at a time"], 5.0),
    ]
    for kind in ("lora", "linear"):
        named_ratios.append((f"{kind}, {most} requests / one", rates[f"{kind}, {most}"] / rates[f"{kind}, 1"], None))
        for n in CROWDS:
            ratio = rates[f"{kind}, {n}"] / rates[f"best-of-16, {n}"]
            named_ratios.append((f"requests a second by {kind}, {n} at once / best-of-16", ratio, None))
    for n in CROWDS:
        aligned, by_name = rates[f"aligned, one row, {n}"], rates[f"its adapter asked for by name, one row, {n}"]
        named_ratios.append(
            (f"aligned, one row / plain vLLM, one row, {n} at once", aligned / rates[f"plain vLLM, one row, {n}"], 0.95)
        )
        named_ratios.append((f"aligned, one row / its adapter asked for by name, {n} at once", aligned / by_name, None))
        speedup = ROWS * aligned / rates[f"linear, {n}"]
        named_ratios.append(
            (f"answers a second, one aligned row / guided search by linear values, {n} at once", speedup, 10.0)
        )
    for n in CROWDS:
        if without := rates.get(f"lora without prefix caching, {n}"):
            named_ratios.append((f"prefix caching / none, {n} at once", rates[f"lora, {n}"] / without, None))
    return named_ratios


def main() -> None:
    parser = command_line("serving", __doc__)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a row")
    parser.add_argument(
        "--repeats", type=int, default=1, help="repetitions with many requests; three times as many with one request"
    )
    parser.add_argument("--url", help="a running vLLM server; then there is no measurement without prefix caching")
    args = parser.parse_args()
    terminated_is_exit()
    if not args.url and not VLLMProcess.python.exists():
        parser.error(f"{VLLMProcess.python} does not exist: `make vllm` installs vLLM")
    args.out.mkdir(parents=True, exist_ok=True)
    model_dir = prepare_model()
    backbone = LoraBackbone(model_dir, 10)
    backbone.add_iteration()

    def over(url: str, measure: Callable[[Bench, int], Any], adapters: Path | None = None) -> Any:
        with (
            VLLMEngine(model_dir, Endpoints((url,), adapters=adapters)) as engine,
            closing(Bench(engine, backbone, args.tokens)) as bench,
        ):
            return measure(bench, args.repeats)

    def measure_all(url: str) -> tuple[JsonObject, dict[str, float]]:
        return over(url, measure_cached), over(url, measure_one_row, args.out.resolve() / "adapters")

    if args.url:
        (cached, one_row), uncached = measure_all(args.url), {}
    else:
        with VLLMProcess(model_dir, args.out / "cached.log", *FLAGS) as server:
            cached, one_row = measure_all(server.url)
        with VLLMProcess(model_dir, args.out / "uncached.log", *FLAGS, "--no-enable-prefix-caching") as server:
            uncached = over(server.url, measure_uncached)
    rates = cached["tokens_per_second"] | one_row | uncached
    checks = [
        {"name": name, "expected": f">= {aim}" if aim else "", "got": got, "holds": aim is None or got >= aim}
        for name, got, aim in ratios(rates)
    ]
    share = {"cached_share_of_prompt_tokens": cached["cached_share"], "tokens": args.tokens, "repeats": args.repeats}
    result = {"checks": checks, "tokens_per_second": rates, **share}
    finish(args, result, report)


def report(result: JsonObject) -> None:
    for check in result["checks"]:
        aim = f", aim {check['expected']}: {'holds' if check['holds'] else 'falls short'}" if check["expected"] else ""
        print(f"{check['name']}: {check['got']:.2f}{aim}")
    for name, value in result["tokens_per_second"].items():
        print(f"{value:8.1f} base tokens/s  {name}")


if __name__ == "__main__":
    main()
