"""The same job with the model in this process and on vLLM: ``python -m benchmarks.engines --json``, after ``make vllm``
has installed it.

IMDB openings and the sentiment reward of ``benchmarks.quality``, linear value functions of what both engines can tell:
sums of the tokens' embeddings, and counts of the commonest. Compared: what the value functions know on held-out prompts
(R² and correlation within a prompt), and validation reward, picked by value, against best-of-16, picked by the reward.
An interrupted run goes on.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.processes import VLLMProcess, say, terminated_is_exit
from benchmarks.quality import BEAM, ROWS, jsonl
from benchmarks.record import command_line, finish
from benchmarks.tables import interval_text
from iro_server import JsonObject
from iro_server.cli.demo.data import prompt_rows
from iro_server.cli.demo.sentiment import sentiment_grader_source
from iro_server.engines.prepare import prepare_model
from training.intervals import band
from training.run import RunEvent
from value_heads import FeatureSpec

FLAGS = ("--max-model-len", "512", "--max-num-seqs", "128")
ENGINES = ("embedded", "vllm")
MAX_TOKENS = 32
COMMON_SPEC = FeatureSpec(summed=(0,), horizon=MAX_TOKENS)


def align(folder: Path, seed: int, rows: list[dict[str, str]], valid: list[dict[str, str]], **more: Any) -> JsonObject:
    """A job of one iteration; what it comes to. ``more``: of its config."""
    from training.iro.job import JOB

    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows), ("valid", valid)):
        (folder / f"{name}.jsonl").write_text(jsonl(part))
    config = {
        "model_dir": prepare_model(),
        "training_file": folder / "train.jsonl",
        "validation_file": folder / "valid.jsonl",
        "validation_prompts": len(valid),
        "grader": {"type": "python", "name": "sentiment", "source": sentiment_grader_source()},
        "iterations": 1,
        "tilt": "off",  # vLLM has none
        "betas": [1.0],
        "rollouts_per_prompt": ROWS,
        **BEAM,
        "max_tokens": MAX_TOKENS,
        "concurrency": 8,
        "seed": seed,
    } | more

    def show(event: RunEvent) -> None:
        if event["message"]:
            say(event["message"])

    result = JOB.execute(config, folder / "job", on_event=show)
    row = result["history"][0]
    return {
        "r2": row["r2"],
        "correlation": row["correlation"],
        "reward": row["full_valid_mean_reward"],
        "best_of_16": result["baseline"]["valid_best_of_n"],
        "base": result["baseline"]["full_valid_mean_reward"],
    }


def interval(values: list[float]) -> dict[str, float]:
    """``band`` over the seeds whose value is not NaN."""
    return band([value for value in values if not math.isnan(value)])


def summary(per_seed: list[dict[str, dict[str, float]]]) -> JsonObject:
    of = {
        engine: {key: interval([seed[engine][key] for seed in per_seed]) for key in per_seed[0][engine]}
        for engine in ENGINES
    }
    differences = {
        key: interval([seed["vllm"][key] - seed["embedded"][key] for seed in per_seed])
        for key in ("r2", "correlation", "reward")
    }
    gains = {
        engine: interval([seed[engine]["reward"] - seed[engine]["best_of_16"] for seed in per_seed])
        for engine in ENGINES
    }
    return {"means": of, "vllm less embedded": differences, "aligned less best-of-16": gains}


def main() -> None:
    parser = command_line("engines", __doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train-prompts", type=int, default=32)
    parser.add_argument("--valid-prompts", type=int, default=12)
    args = parser.parse_args()
    terminated_is_exit()
    if not VLLMProcess.python.exists():
        parser.error(f"{VLLMProcess.python} does not exist: `make vllm` installs vLLM")
    args.out.mkdir(parents=True, exist_ok=True)
    train, valid = prompt_rows(args.seeds * args.train_prompts, args.seeds * args.valid_prompts)
    per_seed = []
    with VLLMProcess(prepare_model(), args.out / "vllm.log", *FLAGS) as server:
        for seed in range(args.seeds):
            rows = train[seed * args.train_prompts : (seed + 1) * args.train_prompts]
            held = valid[seed * args.valid_prompts : (seed + 1) * args.valid_prompts]
            of = {}
            for engine, urls in zip(ENGINES, ([], [server.url]), strict=True):
                say(f"seed {seed}, {engine}")
                more = {"value_model": "linear", "feature_spec": COMMON_SPEC, "engine_urls": urls}
                of[engine] = align(args.out / f"seed-{seed}" / engine, seed, rows, held, **more)
            per_seed.append(of)
            result = summary(per_seed) | {"per_seed": per_seed, "seeds": seed + 1}
            (args.out / "result.json").write_text(json.dumps(result, indent=1))
    finish(args, result, report, range(args.seeds))


def report(result: JsonObject) -> None:
    for part in ("vllm less embedded", "aligned less best-of-16"):
        for name, cell in result[part].items():
            print(f"{part}: {name} {interval_text(cell, '+')}")


if __name__ == "__main__":
    main()
