"""Memory of one value fit by the number of prompts: ``python -m benchmarks.fit_memory --json``.

Rollouts of the real model are sampled once and stored as a job stores them; larger jobs read the same shards again and
again, each time from disk. Each figure is a process of its own, which counts tokens, fits on 80 % of the prompts,
chooses the ridge's strength on the others, and computes the diagnostics, as an iteration does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from benchmarks.record import command_line, finish
from benchmarks.workload import PASSAGE
from iro_server import JsonObject
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from training.checkpoints import About, Checkpoints, open_checkpoints
from training.iro.config import AlignConfig, default_feature_spec
from training.iro.data import Prompt
from training.iro.fit import Scale, Shards
from training.iro.learners import HeadLearner
from training.iro.rollouts import Batch, plain, roll_out, rollout_sampling, stored

PROMPTS = (100, 1000, 4000)
SHARD = 8  # prompts
MODELS = ("linear", "mlp")
GRADER = {"type": "string_check", "name": "none", "operation": "eq", "input": "{{sample.output_text}}", "reference": ""}
TABLES = ("completions", "prefixes")
ABOUT: About = {"metrics_bytes": 0, "seconds": 0.0}


def config_of(value_model: str, args: argparse.Namespace) -> AlignConfig:
    return AlignConfig(
        model_dir=prepare_model(),
        training_file=Path("none.jsonl"),
        grader=GRADER,
        value_model=value_model,
        rollouts_per_prompt=args.rollouts,
        max_tokens=args.max_tokens,
        counted_tokens=args.counted_tokens,
        epochs=1 if value_model == "mlp" else None,
    )


def sample(folder: Path, shards: int, config: AlignConfig) -> None:
    """So many shards of the real model's rollouts; the reward is a completion's share of the letter e."""
    checkpoints = open_checkpoints(str(folder))
    with EmbeddedEngine(prepare_model()) as engine:
        words = PASSAGE.split()
        for number in range(shards):
            texts = [" ".join(words[start : start + 12]) for start in range(SHARD * number, SHARD * (number + 1))]
            ids = [tuple(engine.tokenizer(text)["input_ids"]) for text in texts]
            prompts = [Prompt(SHARD * number + place, tokens, {}) for place, tokens in enumerate(ids)]
            spec = default_feature_spec(engine.info, config.horizon)
            sampling, seeds = rollout_sampling(config.temperature, engine.info), [prompt.index for prompt in prompts]
            batch = Batch(prompts, seeds, sampling, plain(config), config.horizon, spec=spec)
            shard = roll_out(engine, batch)
            texts_of = [[engine.tokenizer.decode(tokens) for tokens in group] for group in shard["tokens"]]
            rewards = [[text.count("e") / max(1, len(text)) for text in group] for group in texts_of]
            checkpoints.save(f"{number}-rollouts", stored(shard), ABOUT)
            checkpoints.save(f"{number}-rewards", {"rewards": rewards}, ABOUT)


class Stored:
    """A source of shards in a folder."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.load, self.table = checkpoints.load, checkpoints.table

    def stop_if_asked(self) -> None:
        pass


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """The most bytes resident in this process within the context, looked at every 5 ms."""
    process, ended = psutil.Process(), threading.Event()
    peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: peak
    finally:
        ended.set()
        watcher.join()


def measured(folder: Path, prompts: int, config: AlignConfig) -> dict[str, float]:
    """Bytes that a fit of so many prompts adds to this process at most, and its seconds."""
    from iro_server.engines.describe import Description

    learner = HeadLearner(config, default_feature_spec(Description.of_directory(prepare_model()).info, config.horizon))
    source, available = Stored(open_checkpoints(str(folder))), len(list(folder.glob("*-rewards.pt")))
    names = [(f"{n % available}-rollouts", f"{n % available}-rewards") for n in range(-(-prompts // SHARD))]
    heldout = max(1, len(names) // 5)
    rewards = torch.tensor(
        [r for _, name in names[:available] for group in source.load(name)["rewards"] for r in group]
    )
    scale = Scale(float(rewards.mean()), float(rewards.std()))
    source.table(names[0][0], "prefixes"), torch.linalg.solve(torch.eye(9), torch.ones(9))  # loads their libraries
    before, began = psutil.Process().memory_info().rss, time.monotonic()
    with peak_memory() as peak:
        learner.fit(None, Shards(source, names[heldout:], scale), Shards(source, names[:heldout], scale), 0)
    return {"bytes": peak() - before, "resident": peak(), "seconds": time.monotonic() - began}


def in_process(folder: Path, prompts: int, value_model: str, args: argparse.Namespace) -> dict[str, float]:
    size = {"rollouts": args.rollouts, "max-tokens": args.max_tokens, "counted-tokens": args.counted_tokens}
    options = [part for name, value in size.items() for part in (f"--{name}", str(value))]
    child = ["--child", str(folder), str(prompts), value_model]
    print(f"{value_model}, {prompts} prompts", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.fit_memory", *options, *child]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def stored_bytes(folder: Path) -> dict[str, float]:
    """Bytes on disk a rollout token: of the tables that go with their iteration, and of the completions that stay."""
    checkpoints = open_checkpoints(str(folder))
    names = [name for name in checkpoints.names() if name.endswith("-rollouts")]
    tokens = sum(len(row) for name in names for row in checkpoints.table(name, "completions")["tokens"][:])
    sizes = {kind: sum(path.stat().st_size for path in folder.glob(f"*.{kind}.arrow")) for kind in TABLES}
    return {kind: size / tokens for kind, size in sizes.items()}


def main() -> None:
    parser = command_line("fit_memory", __doc__)
    parser.add_argument(
        "--shards", type=int, default=3, help="rollout files of 8 prompts, sampled once and read repeatedly"
    )
    parser.add_argument("--rollouts", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--counted-tokens", type=int, default=100)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder, prompts, value_model = args.child
        config = config_of(value_model, args)
        print(json.dumps(measured(Path(folder), int(prompts), config)))
        return
    with tempfile.TemporaryDirectory(prefix="iro-fit-memory-") as folder:
        sample(Path(folder), args.shards, config_of("linear", args))
        fits = {
            model: {str(count): in_process(Path(folder), count, model, args) for count in PROMPTS} for model in MODELS
        }
        result = {
            "prompts": list(PROMPTS),
            "rollouts_per_prompt": args.rollouts,
            "max_tokens": args.max_tokens,
            "counted_tokens": args.counted_tokens,
            "bytes_per_token": stored_bytes(Path(folder)),
            "fits": fits,
            "largest_over_smallest": {
                model: max(fit["bytes"] for fit in by_count.values()) / min(fit["bytes"] for fit in by_count.values())
                for model, by_count in fits.items()
            },
        }
    finish(args, result, report)


def report(result: JsonObject) -> None:
    for model, by_count in result["fits"].items():
        sizes = ", ".join(f"{count}: {fit['bytes'] / 1e6:.0f} MB" for count, fit in by_count.items())
        ratio = result["largest_over_smallest"][model]
        print(f"{model}: memory that a fit adds, by prompts: {sizes}; largest over smallest {ratio:.2f} (aim: 1.2)")


if __name__ == "__main__":
    main()
