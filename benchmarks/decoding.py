"""Decoding speed as ratios within one run: ``python -m benchmarks.decoding --json``.

Ours, transformers' ``generate``, the loop that the paper's repository runs, and this machine's arithmetic limit, one
after another in one process, fp32, SmolLM2-135M, prompts of 40 tokens. Run it on a quiet machine. A base token is a
token of any row drawn from the frozen model, kept or not.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks import sharing, tilts
from benchmarks.record import command_line, finish
from benchmarks.workload import BEAM, PASSAGE, PROMPT_TOKENS, ROWS, TILT_RANK, linear_heads
from iro_server import JsonObject
from iro_server.decoding.base import Scorer, SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.memory import available_memory
from iro_server.engines.packed_linear import packed_forwards
from iro_server.engines.prepare import prepare_model
from value_heads import LoraBackbone, LoraValues
from value_heads.threads import on_fresh_thread

REQUESTS, ITERATIONS = 8, 3
CHUNK = BEAM.chunk_length or 16  # new tokens between two choices of a search
PACKED = (1, 4, 16)  # rows


class Bench:
    def __init__(self, tokens: int, repeats: int) -> None:
        self.tokens, self.repeats = tokens, repeats
        model = prepare_model()
        self.engine = EmbeddedEngine(model)
        self.model_dir = model
        self.peer: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.peer.generation_config.eos_token_id = None
        self.prompt = self.engine.tokenizer(PASSAGE)["input_ids"][:PROMPT_TOKENS]
        assert len(self.prompt) == PROMPT_TOKENS

    def lora(self, layers: int | None) -> LoraValues:
        backbone = LoraBackbone(self.model_dir, layers)
        backbone.add_iteration()
        return LoraValues(backbone, [1.0])

    def guided(self, scorer: Scorer, requests: int = 1, tokens: int | None = None) -> float:
        """Base tokens a second of so many concurrent requests."""

        async def go() -> int:
            searches = [
                guided_search(self.engine, self.prompt, BEAM, Sampling(seed=i), tokens or self.tokens, scorer)
                for i in range(requests)
            ]
            return sum(result.usage.base_tokens for result in await asyncio.gather(*searches))

        return rate(lambda: asyncio.run(go()))

    def generate(self) -> float:
        """transformers' own plain sampling of 16 rows."""
        ids = torch.tensor([self.prompt] * ROWS)
        return rate(lambda: on_fresh_thread(lambda: self._sample(ids, self.tokens).numel() - ids.numel()))

    def _sample(self, ids: torch.Tensor, new: int) -> torch.Tensor:
        return self.peer.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=new, pad_token_id=2
        )

    def rows(self, count: int) -> float:
        """Tokens a second of so many plain rows of one request."""

        async def go() -> int:
            session = await self.engine.open(self.prompt, Sampling(seed=0))
            chunk = await session.extend([0], count, self.tokens)
            session.close()
            return int(chunk.lengths_R.sum())

        return rate(lambda: asyncio.run(go()))

    def unpacked(self, count: int) -> float:
        """``rows`` by torch's own products, which pack the weights in each call."""
        frozen = self.engine.frozen
        for linear in frozen._packed:
            del linear.forward
        try:
            return self.rows(count)
        finally:
            frozen._use_flat_batch()

    def papers_loop(self, tokens: int) -> float:
        """As the paper's repository decodes a prompt: a fresh ``generate`` a chunk, and T value models of the base's
        size that each read every row's whole prefix again. ``tokens``: a multiple of ``CHUNK``."""

        @torch.no_grad()
        def go() -> int:
            beams = torch.tensor([self.prompt])
            for _ in range(tokens // CHUNK):
                rows = self._sample(beams.repeat_interleave(ROWS // len(beams), 0), CHUNK)
                values = sum(self.peer.model(rows).last_hidden_state[:, -1].mean(-1) for _ in range(ITERATIONS))
                beams = rows[torch.as_tensor(values).topk(BEAM.beam_width).indices]
            return ROWS * tokens

        return rate(lambda: on_fresh_thread(go))

    def prefill(self) -> float:
        """The arithmetic limit: 16 x 64 tokens read at once by transformers, with packed weights, output head
        included."""
        ids = torch.randint(1000, 40000, (16, 64), generator=torch.Generator().manual_seed(0))
        packed = packed_forwards(self.peer, available_memory(self.peer.device))

        def go() -> int:
            self.peer(ids)
            start = time.perf_counter()
            self.peer(ids)
            return int(ids.numel() / (time.perf_counter() - start))

        for linear, forward in packed.items():
            linear.forward = forward  # type: ignore[method-assign, assignment]
        try:
            return on_fresh_thread(torch.no_grad()(go))
        finally:
            for linear in packed:
                del linear.forward

    def median(self, *measures: Callable[[], float]) -> list[float]:
        """Median of each over the repeats, taken in turn so that a drift of the machine touches all alike."""
        rounds = [[measure() for measure in measures] for _ in range(self.repeats)]
        return [statistics.median(column) for column in zip(*rounds, strict=True)]

    def parts(self, scorer: Scorer) -> dict[str, float]:
        """Share of a guided request's wall time by part, at 8 requests."""
        spent = {"model": 0.0, "sampling": 0.0}
        runner: Any = self.engine.runner
        originals: dict[str, Callable[..., Any]] = {"model": runner.read, "sampling": runner.draw}

        def timed(name: str) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                start = time.perf_counter()
                try:
                    return originals[name](*args)
                finally:
                    spent[name] += time.perf_counter() - start

            return call

        runner.read, runner.draw = timed("model"), timed("sampling")
        start = time.perf_counter()
        self.guided(scorer, REQUESTS)
        total = time.perf_counter() - start
        runner.read, runner.draw = originals["model"], originals["sampling"]
        shares = {name: seconds / total for name, seconds in spent.items()}
        return shares | {"search, values, bookkeeping": 1 - sum(shares.values())}


def rate(work: Callable[[], int]) -> float:
    start = time.perf_counter()
    return work() / (time.perf_counter() - start)


def measure(bench: Bench, loop_tokens: int) -> JsonObject:
    single_head = linear_heads(bench.engine.info, 1)
    bench.guided(single_head, tokens=16)
    guided, generate, crowd, limit = bench.median(
        lambda: bench.guided(single_head), bench.generate, lambda: bench.guided(single_head, REQUESTS), bench.prefill
    )
    lora, lora_full = (bench.lora(layers) for layers in (bench.engine.info.num_layers // 3, None))
    lora_rate, lora_full_rate = bench.median(lambda: bench.guided(lora), lambda: bench.guided(lora_full))
    stacks = [linear_heads(bench.engine.info, count) for count in (1, 2, 4, 8)]
    by_heads = bench.median(*[lambda s=s: bench.guided(s) for s in stacks])
    packed = {n: bench.median(partial(bench.rows, n), partial(bench.unpacked, n)) for n in PACKED}
    three = linear_heads(bench.engine.info, ITERATIONS)
    loop = bench.papers_loop(loop_tokens)
    ours_one, ours_eight = (bench.guided(three, n, loop_tokens) for n in (1, REQUESTS))
    spread = max(by_heads) / min(by_heads) - 1
    rows = [
        ("a", "guided W=4 K=4 L=16, heads / generate, 16 rows", guided / generate, 1.5),
        ("b", "the same with a LoRA backbone of a third of the layers / generate", lora_rate / generate, 1.0),
        ("b", "the same with a LoRA backbone of all layers / generate", lora_full_rate / generate, 1.0),
        ("d", "8 concurrent guided requests / one", crowd / guided, 2.0),
        ("e", "one prompt / the paper's loop, T=3", ours_one / loop, 5.0),
        ("e", "8 prompts / the paper's loop, T=3", ours_eight / loop, 10.0),
        ("f", "8 guided requests / prefill with the output head", crowd / limit, 0.6),
    ]
    rows += [
        ("h", f"{n} rows / the same by torch's own products", ours / torchs, 1.0)
        for n, (ours, torchs) in packed.items()
    ]
    checks = [
        {"line": k, "name": n, "expected": f">= {aim}", "got": got, "holds": got >= aim} for k, n, got, aim in rows
    ]
    flat = {"line": "c", "name": "T = 1, 2, 4, 8 value functions: slowest over fastest, less 1", "expected": "<= 0.05"}
    checks.insert(3, flat | {"got": spread, "holds": spread <= 0.05})
    return {
        "checks": checks,
        "tokens_per_second": {
            "guided, one request": guided,
            "guided, 8 requests": crowd,
            "guided, LoRA backbone of a third of the layers": lora_rate,
            "guided, LoRA backbone of all layers": lora_full_rate,
            "transformers generate, 16 rows": generate,
            "the paper's loop, T=3": loop,
            "ours, T=3, one prompt": ours_one,
            "ours, T=3, 8 prompts": ours_eight,
            "prefill, 16 x 64 tokens": limit,
        },
        "by_value_functions": dict(zip((1, 2, 4, 8), by_heads, strict=True)),
        "share_of_wall_time": bench.parts(single_head),
        "threads": bench.engine.max_threads,
        "tokens": bench.tokens,
        "loop_tokens": loop_tokens,
    }


def tilt_checks(bench: Bench) -> list[JsonObject]:
    """What one aligned row costs, and how much sooner it answers than a search whose reward it can reach
    (docs/tasks.md says on which tasks)."""
    tilted, rank, one_row = tilts.Bench(bench.engine, bench.tokens, bench.repeats), 2 * TILT_RANK, SearchParams()
    cost = tilted.ratio(one_row, tilted.tilts(rank), one_row)
    rows = [("i", f"aligned, one row with a tilt of rank {rank} / plain, one row", cost, tilts.AIM)]
    rows += [("j", name, ratios, tilts.SPEEDUP_AIM) for name, ratios in tilts.speedups(tilted, rank).items()]
    return [
        {"line": line, "name": name, "expected": f">= {aim:g}", "got": got, "holds": got >= aim}
        for line, name, ratios, aim in rows
        for got in (statistics.median(ratios),)
    ]


def sharing_checks(shared: JsonObject) -> list[JsonObject]:
    """How little an engine loses to sleeping threads, and to a neighbour on the same cores."""
    rows = [
        ("alone / alone with spinning threads", 0.97),
        ("beside a busy process / alone", 0.6),
        ("two at once, each / alone", 0.6),
    ]
    return [
        {"line": "g", "name": name, "expected": f">= {aim}", "got": shared[name], "holds": shared[name] >= aim}
        for name, aim in rows
    ]


def main() -> None:
    parser = command_line("decoding", __doc__)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a row")
    parser.add_argument("--loop-tokens", type=int, default=128, help="new tokens of each row against the paper's loop")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.loop_tokens < 1 or args.loop_tokens % CHUNK:
        parser.error(f"--loop-tokens: a multiple of {CHUNK}, since the paper's loop draws chunks of {CHUNK} tokens")
    bench = Bench(args.tokens, args.repeats)
    result = measure(bench, args.loop_tokens)
    result["checks"] += tilt_checks(bench)
    bench.engine.close()
    shared = sharing.measure(sharing.SECONDS, args.repeats)
    result["checks"] += sharing_checks(shared)
    result["sharing"] = shared
    args.out.mkdir(parents=True, exist_ok=True)
    draw(result, args.out / "decoding.png")
    finish(args, result, report)


def report(result: JsonObject) -> None:
    for check in result["checks"]:
        mark = "holds" if check["holds"] else "falls short"
        print(f"({check['line']}) {check['name']}: {check['got']:.2f}, aim {check['expected']}: {mark}")
    for name, value in result["tokens_per_second"].items():
        print(f"{value:8.1f} base tokens/s  {name}")
    for name, share in result["share_of_wall_time"].items():
        print(f"{share:8.1%} of wall time at 8 requests: {name}")


def draw(result: JsonObject, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rates = result["tokens_per_second"]
    figure, axes = plt.subplots(figsize=(8, 3.8))
    axes.barh(
        list(rates)[::-1],
        list(rates.values())[::-1],
        color=["C0" if "ours" in n or "guided" in n else "grey" for n in rates][::-1],
    )
    axes.set_xlabel("base tokens a second (prefill: tokens read a second)")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
