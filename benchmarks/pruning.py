"""What structured pruning does to the frozen model: ``python -m benchmarks.pruning --json``.

Copies of SmolLM2-135M whose feed-forward layers keep a share of their neurons: those that write most on other reviews
(``iro model prune``), those with the largest weights, random ones. Perplexity of IMDB reviews; base tokens a second of
a guided request; and, with ``--seeds``, a whole alignment job for each copy with the sentiment reward of
``benchmarks.quality``. An interrupted run goes on.
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.engines import align, interval
from benchmarks.processes import say, terminated_is_exit
from benchmarks.record import command_line, finish
from benchmarks.tables import interval_text
from benchmarks.workload import BEAM, PASSAGE, PROMPT_TOKENS, linear_heads
from iro_server import JsonObject
from iro_server.cli.demo.data import imdb_splits, prompt_rows
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from iro_server.engines.prune import cut, feed_forward, prune_model, writing
from value_heads.threads import on_fresh_thread

SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
CRITERIA = ("activation", "magnitude", "random")
ALIGNED = (1.0, 0.95, 0.9)
TRAIN, VALID = 32, 12  # prompts of a job
READ, LENGTH, TOKENS = 32, 128, 48


@torch.no_grad()
def magnitudes(model: PreTrainedModel) -> list[Tensor]:
    """ "magnitude" of each neuron, [neurons] a layer."""
    return [
        torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T], dim=1).norm(dim=1)
        for mlp in feed_forward(model)
    ]


def at_random(model: PreTrainedModel, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(mlp.down_proj.in_features, generator=generator) for mlp in feed_forward(model)]


def perplexities() -> dict[str, list[float]]:
    """Of the first 128 tokens of 32 reviews, by criterion and share kept."""
    tokenizer = AutoTokenizer.from_pretrained(prepare_model())
    splits = imdb_splits()

    @torch.no_grad()
    def perplexity(model: PreTrainedModel) -> float:
        total, count = 0.0, 0
        for text in splits.judge.texts[:READ]:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=LENGTH)["input_ids"]
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        return math.exp(total / count)

    def fresh() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(prepare_model(), dtype=torch.float32).eval()

    full_model = fresh()
    scores = {
        "activation": writing(full_model, tokenizer, splits.grader.texts[:READ]),
        "magnitude": magnitudes(full_model),
        "random": at_random(full_model, 0),
    }
    by_criterion: dict[str, list[float]] = {}
    for criterion in CRITERIA:
        say(f"perplexity by {criterion}")
        for keep in SHARES:
            model = fresh()
            cut(model, keep, scores[criterion])
            by_criterion.setdefault(criterion, []).append(on_fresh_thread(partial(perplexity, model)))
    return by_criterion


def speed(directories: list[Path], repeats: int) -> list[float]:
    """Base tokens a second of one guided request, each model in turn."""

    def tokens_per_second(directory: Path) -> float:
        with EmbeddedEngine(directory) as engine:
            values = linear_heads(engine.info, 1)
            prompt = engine.tokenizer(PASSAGE)["input_ids"][:PROMPT_TOKENS]

            def go() -> float:
                start = time.perf_counter()
                asyncio.run(guided_search(engine, prompt, BEAM, Sampling(seed=0), TOKENS, values))
                return 16 * TOKENS / (time.perf_counter() - start)

            go()
            return go()

    rounds = [[tokens_per_second(directory) for directory in directories] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def copy_of(out: Path, keep: float) -> Path:
    folder = out / f"kept-{keep}"
    return folder if folder.exists() else prune_model(prepare_model(), folder, keep, imdb_splits().grader.texts[:READ])


def rewards(out: Path, seeds: int) -> JsonObject:
    """Mean validation reward over seeds and its 95 % interval: of a copy alone, and steered by its own values."""
    train, valid = prompt_rows(seeds * TRAIN, seeds * VALID)
    by_share: JsonObject = {}
    for keep in ALIGNED:
        jobs = []
        for seed in range(seeds):
            say(f"a job on {keep:.0%} of the neurons, seed {seed}")
            folder = out / f"job-{keep}" / str(seed)
            parts = train[seed * TRAIN : (seed + 1) * TRAIN], valid[seed * VALID : (seed + 1) * VALID]
            jobs.append(align(folder, seed, *parts, model_dir=copy_of(out, keep)))
        by_share[str(keep)] = {key: interval([job[key] for job in jobs]) for key in ("base", "best_of_16", "reward")}
    return by_share


def main() -> None:
    parser = command_line("pruning", __doc__)
    parser.add_argument("--seeds", type=int, default=0, help="alignment jobs of each copy; default: none")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    terminated_is_exit()
    args.out.mkdir(parents=True, exist_ok=True)
    result: JsonObject = {"kept": SHARES, "perplexity": perplexities()}
    say("speed")
    result["tokens_per_second"] = speed([copy_of(args.out, keep) for keep in SHARES], args.repeats)
    (args.out / "result.json").write_text(json.dumps(result, indent=1))  # the jobs take much longer
    if args.seeds:
        result["rewards"] = rewards(args.out, args.seeds)
    finish(args, result, report, range(args.seeds))


def report(result: JsonObject) -> None:
    for index, keep in enumerate(SHARES):
        read = ", ".join(f"{result['perplexity'][criterion][index]:.1f} by {criterion}" for criterion in CRITERIA)
        print(f"{keep:.0%} of the neurons: {result['tokens_per_second'][index]:.0f} base tokens/s; perplexity {read}")
    for keep, intervals in result.get("rewards", {}).items():
        rewards_text = ", ".join(f"{name} {interval_text(cell)}" for name, cell in intervals.items())
        print(f"{float(keep):.0%}: {rewards_text}")


if __name__ == "__main__":
    main()
