"""Rewards of the frozen model on every task: ``python -m benchmarks.tasks.base``.

Plain samples of held-out prompts, each graded and judged: whether a task leaves room for a method to gain.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import fmean
from typing import Any

from benchmarks.record import command_line, computed_once, finish
from benchmarks.tasks import TASKS
from benchmarks.tasks.task import Task
from iro_server import JsonObject

SEED = 0


def main() -> None:
    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.engines.prepare import prepare_model

    parser = command_line("tasks", __doc__, preset="base")
    parser.add_argument("--prompts", type=int, default=16, help="held-out prompts of each task")
    parser.add_argument("--rollouts", type=int, default=8, help="samples of each prompt")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    args = parser.parse_args()
    with EmbeddedEngine(prepare_model()) as engine:
        tasks = {name: measured_once(engine, TASKS[name], args) for name in args.tasks}
    finish(args, {"tasks": tasks}, report, seeds=[SEED])


def measured_once(engine: Any, task: Task, args: argparse.Namespace) -> JsonObject:
    """As ``measured``, kept under ``--out``: an interrupted run goes on with the next task."""
    path = args.out / f"{task.name}-{args.prompts}x{args.rollouts}.json"
    content: JsonObject = computed_once(path, partial(measured, engine, task, args))
    return content


def measured(engine: Any, task: Task, args: argparse.Namespace) -> JsonObject:
    """Means over prompts of ``--rollouts`` samples each, and the first sample of some prompts."""
    from iro_server.decoding.base import SearchParams
    from iro_server.engines.prompts import item_prompt_ids
    from iro_server.graders.base import Sample
    from iro_server.graders.parsing import parse_grader
    from training.iro.data import Prompt
    from training.iro.rollouts import Batch, roll_out, rollout_sampling

    rows = task.prompts("held_out", args.prompts, SEED)
    prompts = [Prompt(i, tuple(item_prompt_ids(engine.tokenizer, row)), row) for i, row in enumerate(rows)]
    params = SearchParams(num_successors=args.rollouts)
    batch = Batch(prompts, range(len(prompts)), rollout_sampling(1.0, engine.info), params, task.max_tokens)
    tokens = roll_out(engine, batch)["tokens"]
    texts = [[engine.tokenizer.decode(final, skip_special_tokens=True) for final in group] for group in tokens]
    with parse_grader(task.grader()) as grader:
        rewards = [
            [grade.reward for grade in grader.grade_many([(Sample(text), row) for text in group])]
            for group, row in zip(texts, rows, strict=True)
        ]
    finals = [final for group in tokens for final in group]
    return {
        "summary": task.summary,
        "judge_name": task.judge_name,
        "base": fmean(map(fmean, rewards)),
        "best_of_n": fmean(map(max, rewards)),
        "judge": fmean(task.judge(row, group[0]) for row, group in zip(rows, texts, strict=True)),
        "finished": fmean(final[-1] in engine.info.eos_ids for final in finals),
        "completion_tokens": fmean(map(len, finals)),
        "samples": [group[0] for group in texts[:3]],
    }


def report(numbers: JsonObject) -> None:
    for name, row in numbers["tasks"].items():
        print(
            f"{name}: base {row['base']:.2f}, best of n {row['best_of_n']:.2f}, {row['completion_tokens']:.0f} tokens"
        )


if __name__ == "__main__":
    main()
