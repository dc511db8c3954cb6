"""Held-out reward at equal base tokens: ``python -m benchmarks.quality --task imdb --json``.

Each seed is a whole alignment job (its own prompts, rollouts and value functions), evaluated on held-out prompts of
its own. Every method draws 16 rows of each token from the frozen model; only what it does with them differs. Controls:
one iteration on all of the job's prompts, and blockwise best-of-4 with the last iteration's value functions. Results
are kept under ``--out``: an interrupted run goes on, a finished one is only reported again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.record import command_line, finish
from iro_server import JsonObject

if TYPE_CHECKING:
    from iro_server.decoding.base import SearchParams
    from iro_server.engines.base import Engine
    from training.run import RunEvent
    from value_heads import LoraValues, ValueStack

ROWS, MAX_TOKENS = 16, 48
BEAM: JsonObject = {"beam_width": 2, "num_successors": 8, "chunk_length": 4}
ITERATIONS = 3
CONTROL = "one iteration, all prompts"
CONCURRENCY = 12


def parse() -> argparse.Namespace:
    parser = command_line("quality", __doc__, preset="imdb")
    parser.add_argument("--task", choices=["imdb"], default="imdb")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train-prompts", type=int, default=64, help="prompts of one iteration")
    parser.add_argument("--heldout-prompts", type=int, default=32, help="held-out prompts of one seed")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="seeds at once, a thread each")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.seed is not None:
        run_seed(args, args.seed)
        return
    run_all(args)
    from benchmarks.quality_report import draw, print_table, summarise

    summary = summarise(args.out, args.seeds)
    draw(summary, args.out / "quality.png")
    finish(args, summary, print_table, range(args.seeds))


def claim(folder: Path, args: argparse.Namespace) -> None:
    """Note what decides a seed's prompts, or refuse a folder in which they were others."""
    prompt_options = {name: getattr(args, name) for name in ("seeds", "train_prompts", "heldout_prompts")}
    args_path = folder / "args.json"
    if not args_path.exists():  # a new folder, or one of a version that kept none
        folder.mkdir(parents=True, exist_ok=True)
        args_path.write_text(json.dumps(prompt_options))
    elif (before := json.loads(args_path.read_text())) != prompt_options:
        raise SystemExit(f"{folder} was run with {before}, not {prompt_options}; choose another --out")


def run_all(args: argparse.Namespace) -> None:
    """Every seed in a process of its own with one thread: on two cores two seeds run side by side."""
    for seed in range(args.seeds):
        claim(args.out / f"seed-{seed}", args)
    pending = [s for s in range(args.seeds) if not (args.out / f"seed-{s}" / "eval.json").exists()]
    running: list[tuple[int, subprocess.Popen[bytes]]] = []
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        while pending or running:
            while pending and len(running) < args.workers:
                seed = pending.pop(0)
                command = [sys.executable, "-m", "benchmarks.quality", *sys.argv[1:], "--seed", str(seed)]
                running.append((seed, subprocess.Popen(command, env=env)))
            seed, process = running[0]
            try:
                code = process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                running.append(running.pop(0))
                continue
            running.pop(0)
            if code:
                raise SystemExit(f"seed {seed} failed with exit code {code}; what it finished is in {args.out}")
    finally:
        for _, process in running:
            process.terminate()
            process.wait()


def run_seed(args: argparse.Namespace, seed: int) -> None:
    """Align at this seed, then decode the held-out prompts by every method and keep every final."""
    from iro_server.cli.demo.data import prompt_rows
    from iro_server.cli.demo.sentiment import sentiment_grader_source
    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.engines.prepare import prepare_model

    folder = args.out / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    per_seed = ITERATIONS * args.train_prompts
    train, heldout = prompt_rows(args.seeds * per_seed + 8, args.seeds * args.heldout_prompts)
    validation, train = train[:8], train[8:]
    (folder / "train.jsonl").write_text(jsonl(train[seed * per_seed : (seed + 1) * per_seed]))
    (folder / "valid.jsonl").write_text(jsonl(validation))
    grader = {"type": "python", "name": "sentiment", "source": sentiment_grader_source()}
    model = prepare_model()
    history = align(folder, "train", model, grader, seed, ITERATIONS)["history"]
    control = align(folder, "control", model, grader, seed, iterations=1)["history"]
    with EmbeddedEngine(model, threads=1) as engine:
        prompts = heldout[seed * args.heldout_prompts : (seed + 1) * args.heldout_prompts]
        results = evaluate(engine, [row["prompt"] for row in prompts], history, control[0], grader, seed)
    (folder / "eval.json").write_text(json.dumps(results, ensure_ascii=False))


def jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def align(folder: Path, name: str, model: Path, grader: JsonObject, seed: int, iterations: int) -> JsonObject:
    """A job in ``folder / name`` on all of the seed's training prompts: an equal share for each iteration."""
    from training.iro.job import JOB

    config = {
        "model_dir": model,
        "training_file": folder / "train.jsonl",
        "validation_file": folder / "valid.jsonl",
        "validation_prompts": 4,
        "grader": grader,
        "iterations": iterations,
        "tilt": "off",  # the searches alone are compared
        **BEAM,
        "max_tokens": MAX_TOKENS,
        "early_stop": False,
        "concurrency": CONCURRENCY,
        "seed": seed,
    }

    def show(event: RunEvent) -> None:
        if event["message"]:
            print(f"seed {seed}, {name}: {event['message']}", flush=True)

    return JOB.execute(config, folder / name, on_event=show)


def evaluate(
    engine: Engine,
    prompts: list[str],
    history: list[JsonObject],
    control: JsonObject,
    grader: JsonObject,
    seed: int,
) -> JsonObject:
    """Every final of every prompt by each method, with its reward, value and log-probability a token."""
    from iro_server.decoding.base import SearchParams
    from value_heads import load_bundle

    hashes: JsonObject = {"model_hash": engine.info.model_hash, "template_hash": engine.info.template_hash}
    *stacks, of_all_prompts = [load_bundle(Path(row["path"]), **hashes) for row in [*history, control]]
    beam = SearchParams(**BEAM)
    methods: dict[str, tuple[SearchParams, ValueStack | LoraValues, int]] = {
        "best-of-16": (SearchParams(num_successors=ROWS), stacks[0], 1),
        "blockwise 4x4": (SearchParams(num_successors=4, chunk_length=BEAM["chunk_length"]), stacks[-1], 4),
        CONTROL: (beam, of_all_prompts, 1),
    }
    methods |= {f"IRO-{t}": (beam, stack, 1) for t, stack in enumerate(stacks, 1)}
    results: JsonObject = {"prompts": prompts, "history": history, "control": control, "methods": {}}
    for name, (params, stack, repeats) in methods.items():
        finals = asyncio.run(decode(engine, prompts, params, stack, repeats, seed))
        results["methods"][name] = graded(finals, grader)
        print(f"seed {seed}: decoded {name}", flush=True)
    return results


async def decode(
    engine: Engine, prompts: list[str], params: SearchParams, stack: ValueStack | LoraValues, repeats: int, seed: int
) -> list[list[JsonObject]]:
    """The finals of each prompt, of all ``repeats`` independent searches together."""
    from iro_server.decoding.search import guided_search
    from iro_server.engines.base import Sampling
    from iro_server.engines.prompts import text_prompt_ids

    gate = asyncio.Semaphore(CONCURRENCY * repeats)

    async def search(index: int, repeat: int) -> list[JsonObject]:
        sampling = Sampling(seed=1_000_000 * (seed + 1) + 100 * index + repeat, stop_ids=engine.info.eos_ids)
        async with gate:
            ids = text_prompt_ids(engine.tokenizer, prompts[index])
            result = await guided_search(engine, ids, params, sampling, MAX_TOKENS, stack)
        return [
            {
                "text": engine.tokenizer.decode(final.tokens, skip_special_tokens=True),
                "value": final.value,
                "logprob": sum(final.logprobs) / len(final.logprobs),
                "tokens": final.tokens,
            }
            for final in result.finals
        ]

    async def prompt_finals(index: int) -> list[JsonObject]:
        parts = await asyncio.gather(*[search(index, repeat) for repeat in range(repeats)])
        return sorted((final for part in parts for final in part), key=lambda final: -final["value"])

    return await asyncio.gather(*[prompt_finals(i) for i in range(len(prompts))])


def graded(finals: list[list[JsonObject]], spec: JsonObject) -> list[list[JsonObject]]:
    """``finals`` with their rewards, and with what the two judges that the job never saw think of them."""
    from iro_server.cli.demo.judges import minilm_judge, vader_judge
    from iro_server.graders.base import Sample
    from iro_server.graders.parsing import parse_grader

    flat = [final for group in finals for final in group]
    with parse_grader(spec) as grader:
        for final, grade in zip(flat, grader.grade_many([(Sample(f["text"]), {}) for f in flat]), strict=True):
            final["reward"] = grade.reward
    for group in finals:
        picks = {0, max(range(len(group)), key=lambda i: group[i]["reward"])}
        texts = [group[i]["text"] for i in picks]
        for i, vader, minilm in zip(picks, vader_judge(texts), minilm_judge(texts), strict=True):
            group[i] |= {"vader": float(vader), "minilm": float(minilm)}
    return finals


if __name__ == "__main__":
    main()
