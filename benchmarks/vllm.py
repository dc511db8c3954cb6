"""Guided search over a real vLLM server: ``python -m benchmarks.vllm --json``, after ``make vllm`` has installed it.

W=4, K=4, L=16, value functions on a LoRA backbone of a third of the layers in this process, prompts of 40 tokens that
share no prefix, SmolLM2-135M in fp32. Ratios within one run, on a quiet machine: two servers, with and without prefix
caching, one after another. A base token is a token of any row drawn from the frozen model, kept or not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.decoding import BEAM, PASSAGE, PROMPT_TOKENS, ROWS
from benchmarks.serving import VLLMProcess, say, terminated_is_exit
from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.engines.endpoints import Endpoints
from iro_server.engines.prepare import prepare_model
from iro_server.engines.vllm import VLLMEngine, request, rows_of
from value_heads import LoraBackbone, LoraValues

CROWDS = (1, 4, 16)
PLAIN = SearchParams(beam_width=1, num_successors=ROWS, chunk_length=None)
FLAGS = ("--max-model-len", "1024", "--max-num-seqs", "256")


class Bench:
    """One vLLM server, and what clients make of it. Rates are base tokens a second."""

    def __init__(self, engine: VLLMEngine, values: LoraValues, tokens: int) -> None:
        self.engine, self.values, self.tokens = engine, values, tokens
        self.passage = engine.tokenizer(PASSAGE)["input_ids"][1:PROMPT_TOKENS]
        self.prompts = 0

    def prompt(self) -> list[int]:
        """One that no cache holds."""
        self.prompts += 1
        return [5000 + self.prompts, *self.passage]

    def search(self, params: SearchParams, requests: int) -> float:
        """So many searches at once, steered by the value functions; rate."""

        async def go() -> int:
            searches = [
                guided_search(self.engine, self.prompt(), params, Sampling(seed=i), self.tokens, self.values)
                for i in range(requests)
            ]
            return sum(result.usage.base_tokens for result in await asyncio.gather(*searches))

        return rate(go)

    def plain(self) -> float:
        """vLLM's own sampling of 16 rows of one prompt."""
        return rate(lambda: self._post([(self.prompt(), ROWS, self.tokens, 0)]))

    def one_at_a_time(self) -> float:
        """The same search by a client that asks for each continuation of each beam by itself, and scores it by itself,
        reading all of it."""
        prompt, backbone = self.prompt(), self.values.backbone

        async def go() -> int:
            beams = [prompt] * BEAM.beam_width
            for start in range(0, self.tokens, BEAM.chunk_length or self.tokens):
                length = min(BEAM.chunk_length or self.tokens, self.tokens - start)
                pool = []
                for number, beam in enumerate(beams * BEAM.num_successors):
                    await self._post([(beam, 1, length, 1000 * start + number)])
                    row = [*beam, *self.last[0][0].tokens]
                    with torch.no_grad():
                        pool.append((float(backbone.values(0, torch.tensor([row]))[0, -1]), row))
                beams = [row for _, row in sorted(pool, reverse=True)[: BEAM.beam_width]]
            return ROWS * self.tokens

        return rate(go)

    async def _post(self, asked: list[tuple[list[int], int, int, int]]) -> int:
        """Tokens drawn for (prompt, rows, length, seed) each; ``last``: the rows."""
        url = f"{self.engine.replicas.all[0].url}/completions"
        async with httpx.AsyncClient(timeout=None) as client:
            bodies = [request(self.engine.model, p, n, length, Sampling(), seed) for p, n, length, seed in asked]
            answers = await asyncio.gather(*(client.post(url, json=body) for body in bodies))
        payloads = [answer.raise_for_status().json() for answer in answers]
        self.last = [rows_of(each, n, length, ()) for each, (_, n, length, _) in zip(payloads, asked, strict=True)]
        return sum(len(row.tokens) for rows in self.last for row in rows)

    def cached_share(self, work: Callable[[], float]) -> float:
        """Of the prompt tokens that ``work`` sends, how many vLLM had read before."""
        before = self.engine.report()[0]
        work()
        after = self.engine.report()[0]
        read, cached = (after[name] - before[name] for name in ("prompt_tokens", "cached_tokens"))
        return cached / read


def rate(work: Callable[[], Awaitable[int]]) -> float:
    async def go() -> int:
        return await work()

    start = time.perf_counter()
    return asyncio.run(go()) / (time.perf_counter() - start)


def median(repeats: int, *measures: Callable[[], float]) -> list[float]:
    """Of each over the repeats, taken in turn so that a drift of the machine touches all alike."""
    rounds = [[measure() for measure in measures] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def measure_cached(bench: Bench, repeats: int) -> dict[str, Any]:
    bench.search(BEAM, 1)
    guided = [lambda n=n: bench.search(BEAM, n) for n in CROWDS]
    best_of = [lambda n=n: bench.search(PLAIN, n) for n in CROWDS]
    say("one request, with prefix caching")
    alone = median(3 * repeats, bench.plain, guided[0], best_of[0])
    say("many requests, with prefix caching")
    crowds = median(repeats, *guided[1:], *best_of[1:])
    say("one beam at a time")
    (one_by_one,) = median(1, bench.one_at_a_time)
    names = ["plain vLLM, n=16", f"guided, {CROWDS[0]}", f"best-of-16, {CROWDS[0]}"]
    names += [f"{what}, {n}" for what in ("guided", "best-of-16") for n in CROWDS[1:]]
    found = dict(zip(names, [*alone, *crowds], strict=True)) | {"one beam at a time": one_by_one}
    return {"tokens_per_second": found, "cached_share": bench.cached_share(guided[0])}


def measure_uncached(bench: Bench, repeats: int) -> dict[str, float]:
    bench.search(BEAM, 1)
    say("without prefix caching")
    rates = median(repeats, *[lambda n=n: bench.search(BEAM, n) for n in CROWDS])
    return {f"guided without prefix caching, {n}": got for n, got in zip(CROWDS, rates, strict=True)}


def ratios(rates: dict[str, float]) -> list[tuple[str, float, float | None]]:
    """Name, value and aim of each."""
    one, most = rates["guided, 1"], CROWDS[-1]
    found: list[tuple[str, float, float | None]] = [
        ("guided W=4 K=4 L=16, one request / plain vLLM, n=16", one / rates["plain vLLM, n=16"], 0.85),
        ("the same / a client that asks for one continuation at a time", one / rates["one beam at a time"], 5.0),
        (f"guided, {most} requests / one", rates[f"guided, {most}"] / one, None),
    ]
    for n in CROWDS:
        guided, without = rates[f"guided, {n}"], rates.get(f"guided without prefix caching, {n}")
        found.append((f"requests a second, {n} at once / best-of-16", guided / rates[f"best-of-16, {n}"], None))
        if without:
            found.append((f"prefix caching / none, {n} at once", guided / without, None))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead of a table")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a row")
    parser.add_argument("--repeats", type=int, default=1, help="of many requests; one request gets three times as many")
    parser.add_argument("--out", type=Path, default=Path("runs/vllm"))
    parser.add_argument("--url", help="of a vLLM server that is up already; none is measured without prefix caching")
    args = parser.parse_args()
    terminated_is_exit()
    if not args.url and not VLLMProcess.python.exists():
        parser.error(f"{VLLMProcess.python} does not exist: `make vllm` installs vLLM")
    args.out.mkdir(parents=True, exist_ok=True)
    model_dir = prepare_model()
    backbone = LoraBackbone(model_dir, 10)
    backbone.add_iteration()
    values = LoraValues(backbone, [1.0])

    def over(url: str, measure: Callable[[Bench, int], Any]) -> Any:
        with VLLMEngine(model_dir, Endpoints((url,))) as engine:
            return measure(Bench(engine, values, args.tokens), args.repeats)

    def on_server(measure: Callable[[Bench, int], Any], name: str, *flags: str) -> Any:
        with VLLMProcess(model_dir, args.out / f"{name}.log", *FLAGS, *flags) as server:
            return over(server.url, measure)

    if args.url:
        cached, uncached = over(args.url, measure_cached), {}
    else:
        cached = on_server(measure_cached, "cached")
        uncached = on_server(measure_uncached, "uncached", "--no-enable-prefix-caching")
    rates = cached["tokens_per_second"] | uncached
    checks = [
        {"name": name, "expected": f">= {aim}" if aim else "", "got": got, "holds": aim is None or got >= aim}
        for name, got, aim in ratios(rates)
    ]
    share = {"cached_share_of_prompt_tokens": cached["cached_share"], "tokens": args.tokens, "repeats": args.repeats}
    result = {"checks": checks, "tokens_per_second": rates, **share}
    (args.out / "result.json").write_text(json.dumps(result, indent=1))
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for check in result["checks"]:
        aim = f", aim {check['expected']}: {'holds' if check['holds'] else 'falls short'}" if check["expected"] else ""
        print(f"{check['name']}: {check['got']:.2f}{aim}")
    for name, value in result["tokens_per_second"].items():
        print(f"{value:8.1f} base tokens/s  {name}")


if __name__ == "__main__":
    main()
