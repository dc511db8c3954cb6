"""What structured pruning does to the frozen model: ``python -m benchmarks.pruning --json``.

Copies of SmolLM2-135M whose feed-forward layers keep a share of their neurons, the largest or random ones
(``iro model prune``): perplexity of IMDB reviews, base tokens a second of a guided request, and, with ``--seeds``,
a whole alignment job for each copy with the sentiment reward of ``benchmarks.quality``. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.decoding import BEAM, PASSAGE, PROMPT_TOKENS, linear_heads
from benchmarks.engines import align, interval
from benchmarks.serving import say, terminated_is_exit
from iro_server.decoding.search import guided_search
from iro_server.demo.data import imdb_splits, prompt_rows
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from iro_server.engines.prune import Criterion, prune_model
from value_heads.threads import on_fresh_thread

COPIES: list[tuple[float, Criterion]] = [(1.0, "magnitude")]
COPIES += [(keep, criterion) for criterion in get_args(Criterion) for keep in (0.95, 0.9, 0.8, 0.7, 0.5)]
ALIGNED = (1.0, 0.95, 0.9)
TRAIN, VALID = 32, 12  # prompts of a job
READ, LENGTH, TOKENS = 64, 128, 48


def perplexity(directory: Path) -> float:
    """Of the first 128 tokens of 64 reviews."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    @torch.no_grad()
    def go() -> float:
        total, count = 0.0, 0
        for text in imdb_splits().judge.texts[:READ]:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=LENGTH)["input_ids"]
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        return math.exp(total / count)

    return on_fresh_thread(go)


def speed(directories: list[Path], repeats: int) -> list[float]:
    """Base tokens a second of one guided request, each model in turn."""

    def one(directory: Path) -> float:
        with EmbeddedEngine(directory) as engine:
            values = linear_heads(engine.info, 1)
            prompt = engine.tokenizer(PASSAGE)["input_ids"][:PROMPT_TOKENS]

            def go() -> float:
                start = time.perf_counter()
                asyncio.run(guided_search(engine, prompt, BEAM, Sampling(seed=0), TOKENS, values))
                return 16 * TOKENS / (time.perf_counter() - start)

            go()
            return go()

    rounds = [[one(directory) for directory in directories] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def copy_of(out: Path, keep: float, criterion: Criterion) -> Path:
    folder = out / f"{criterion}-{keep}"
    return folder if folder.exists() else prune_model(prepare_model(), folder, keep, criterion)


def rewards(out: Path, seeds: int) -> dict[str, Any]:
    """Mean validation reward over seeds, half of a 95 % interval: of a copy alone, and steered by its own values."""
    train, valid = prompt_rows(seeds * TRAIN, seeds * VALID)
    found: dict[str, Any] = {}
    for keep in ALIGNED:
        jobs = []
        for seed in range(seeds):
            say(f"a job on {keep:.0%} of the neurons, seed {seed}")
            folder = out / f"job-{keep}" / str(seed)
            parts = train[seed * TRAIN : (seed + 1) * TRAIN], valid[seed * VALID : (seed + 1) * VALID]
            jobs.append(align(folder, seed, *parts, model_dir=copy_of(out, keep, "magnitude")))
        found[str(keep)] = {key: interval([job[key] for job in jobs]) for key in ("base", "best_of_16", "reward")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead of a table")
    parser.add_argument("--seeds", type=int, default=0, help="jobs of each copy; without, none is aligned")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/pruning"))
    args = parser.parse_args()
    terminated_is_exit()
    directories = [copy_of(args.out, *copy) for copy in COPIES]
    say("perplexity")
    read = [perplexity(directory) for directory in directories]
    say("speed")
    rates = speed(directories[:6], args.repeats) + [math.nan] * 5  # random copies are as large
    names = ("keep", "criterion", "perplexity", "tokens_per_second")
    rows = [
        dict(zip(names, (*copy, p, None if math.isnan(r) else r), strict=True))
        for copy, p, r in zip(COPIES, read, rates, strict=True)
    ]
    result: dict[str, Any] = {"copies": rows}
    (args.out / "result.json").write_text(json.dumps(result, indent=1))
    if args.seeds:
        result["rewards"] = rewards(args.out, args.seeds)
        (args.out / "result.json").write_text(json.dumps(result, indent=1))
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for row in rows:
        rate = f", {row['tokens_per_second']:.0f} base tokens/s" if row["tokens_per_second"] else ""
        print(f"{row['keep']:.0%} of the neurons, {row['criterion']}: perplexity {row['perplexity']:.1f}{rate}")
    for keep, found in result.get("rewards", {}).items():
        print(f"{float(keep):.0%}: " + ", ".join(f"{name} {m:.2f} ± {e:.2f}" for name, (m, e) in found.items()))


if __name__ == "__main__":
    main()
