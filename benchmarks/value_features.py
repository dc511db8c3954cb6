"""What of the frozen model's states a value function should read: ``python -m benchmarks.value_features --json``.

Samples of the frozen model to prompts of a task, graded. For each set of features a ridge regression, as an alignment
job's, on the training prompts, a quarter of which chooses how much is shrunk. Reported on other prompts: the
correlation of value and reward among prefixes of a prompt's samples of equal length, which is what a search compares,
and the reward of the sample whose value is the highest at its end. Controls: embeddings and counts alone, one sample,
the grader.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.quality_report import interval_of_seeds
from benchmarks.record import command_line, computed_once, finish
from benchmarks.research.claims import estimate
from benchmarks.tables import interval_text, table
from benchmarks.tasks import TASKS
from benchmarks.tasks.task import Split, Task
from iro_server import JsonObject
from training.run import derive_seed

if TYPE_CHECKING:
    from iro_server.engines.embedded import EmbeddedEngine
    from training.iro.fit import Scale
    from training.iro.simple_loop import Rollout
    from value_heads import FeatureSpec
    from value_heads.heads import Head

MAX_TOKENS = 48
COUNTED_TOKENS = 500
AT_ONCE = 8  # prompts
SHOWN = "embeddings and counts"
STATE_AND_SUMS = "state of a late layer, sums of two"


def feature_sets(num_layers: int, text_counts: str) -> dict[str, JsonObject]:
    """By name, the fields of a ``FeatureSpec``; all have counts of tokens and functions of the length besides."""
    from value_heads.features import HEAD_STATE

    text = {"text_counts": text_counts}
    early, late_mean, late = round(num_layers / 3), round(num_layers * 2 / 3), round(num_layers * 5 / 6)
    means = {f"mean of layer {layer}": {"averaged": (layer,)} for layer in mean_layers(num_layers)}
    return {
        SHOWN: {"summed": (0,)},
        f"{SHOWN}, and text": {"summed": (0,)} | text,
        STATE_AND_SUMS: {"current": (late,), "summed": (0, early)},
        "output head's state and its mean": {"current": (HEAD_STATE,), "averaged": (HEAD_STATE,), "summed": (0,)},
        **means,
        f"mean of layer {late_mean}, and text": {"averaged": (late_mean,)} | text,
    }


def mean_layers(num_layers: int) -> list[int]:
    """Every sixth of the way up, from a third on."""
    return [round(num_layers * sixths / 6) for sixths in range(2, 7)]


def sample(engine: EmbeddedEngine, task: Task, split: Split, prompts: int, count: int, seed: int) -> list[Rollout]:
    """Graded samples of the frozen model, with the states of all layers that a feature set reads."""
    from benchmarks.bench_tasks.answers import best_of
    from iro_server.decoding.base import Final
    from iro_server.decoding.search import guided_search
    from iro_server.engines.prompts import item_prompt_ids
    from iro_server.graders.base import Sample
    from iro_server.graders.parsing import parse_grader
    from training.iro.rollouts import rollout_sampling
    from training.iro.simple_loop import Rollout
    from value_heads.features import HEAD_STATE

    rows, layers = task.prompts(split, prompts, seed), (HEAD_STATE, 0, *mean_layers(engine.info.num_layers))
    sampling = rollout_sampling(1.0, engine.info)

    async def answers(number: int) -> list[Final]:
        prompt, own = item_prompt_ids(engine.tokenizer, rows[number]), replace(sampling, seed=derive_seed(seed, number))
        result = await guided_search(engine, prompt, best_of(count), own, most_tokens(task), keep_hidden=layers)
        return result.finals

    async def answer_all(numbers: Sequence[int]) -> list[list[Final]]:
        return await asyncio.gather(*map(answers, numbers))

    groups: list[list[Final]] = []
    for start in range(0, len(rows), AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, len(rows)))
        with engine.lockstep(len(numbers)):
            groups += asyncio.run(answer_all(numbers))
    finals = [(number, final) for number, group in enumerate(groups) for final in group]
    texts = [str(engine.tokenizer.decode(final.tokens, skip_special_tokens=True)) for _, final in finals]
    with parse_grader(task.grader()) as grader:
        pairs = [(Sample(text), rows[number]) for (number, _), text in zip(finals, texts, strict=True)]
        grades = grader.grade_many(pairs)
    return [Rollout(number, final, grade.reward) for (number, final), grade in zip(finals, grades, strict=True)]


def most_tokens(task: Task) -> int:
    return min(task.max_tokens, MAX_TOKENS)


def measured(engine: EmbeddedEngine, task: Task, seed: int, args: argparse.Namespace) -> JsonObject:
    """Of one task and seed: held-out correlation of each feature set, and rewards of each prompt's picks."""
    from training.iro.fit import Scale
    from training.iro.rollouts import commonest_tokens
    from value_heads.text_counts import packed_counts

    train = sample(engine, task, "train", args.prompts, args.samples, seed)
    test = sample(engine, task, "held_out", args.heldout_prompts, args.samples, seed)
    rewards = [rollout.reward for rollout in train]
    scale = Scale(float(np.mean(rewards)), float(np.std(rewards)) or 1.0)
    counted = commonest_tokens([rollout.final.tokens for rollout in train], COUNTED_TOKENS)
    common = {"counted": counted, "stop_ids": tuple(sorted(set(engine.info.eos_ids))), "horizon": most_tokens(task)}
    by_prompt = by_row(test)
    picks = {
        "one sample": [float(np.mean([r.reward for r in group])) for group in by_prompt],
        "best by the grader": [max(r.reward for r in group) for group in by_prompt],
    }
    correlations = {}
    sets = feature_sets(engine.info.num_layers, packed_counts(engine.tokenizer))
    for name, fields in sets.items():
        if args.features is None or name in args.features:
            correlations[name], picks[name] = judged(fields | common, train, test, scale)
    return {"task": task.name, "seed": seed, "correlations": correlations, "picks": picks}


def judged(
    fields: JsonObject, train: Sequence[Rollout], test: Sequence[Rollout], scale: Scale
) -> tuple[float, list[float]]:
    """Correlation on ``test``, and the reward of each of its prompts' sample of the highest value."""
    from torch.nn.functional import mse_loss

    from training.iro.simple_loop import rows_of
    from value_heads import FeatureSpec
    from value_heads.fit import score

    spec = FeatureSpec.model_validate(fields | {"position": False})
    head = fitted(spec, train, scale)
    correlation = score(head, [rows_of(spec, test, scale)], "correlation", mse_loss)
    return correlation, [max(group, key=partial(end_value, head)).reward for group in by_row(test)]


def fitted(spec: FeatureSpec, train: Sequence[Rollout], scale: Scale) -> Head:
    """The last quarter of the prompts is held out, to choose how much is shrunk."""
    from training.iro.ridge import fit_values
    from training.iro.simple_loop import rows_of

    first_held = 3 * len(by_row(train)) // 4
    fit, held = (
        rows_of(spec, [rollout for rollout in train if (rollout.row >= first_held) == holds], scale)
        for holds in (False, True)
    )
    return fit_values(spec, [fit], [held]).head


def end_value(head: Head, rollout: Rollout) -> float:
    """Of the finished sample."""
    import torch

    from value_heads import features
    from value_heads.features import TOKENS

    hidden = {layer: rollout.final.hidden[layer][None] for layer in head.spec.layers}
    hidden[TOKENS] = torch.tensor([rollout.final.tokens])
    return float(head(features(head.spec, hidden)[0, -1:])[0])


def by_row(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """Of each prompt, in order."""
    groups: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.row, []).append(rollout)
    return list(groups.values())


def measured_once(engine: EmbeddedEngine, task: Task, seed: int, args: argparse.Namespace) -> JsonObject:
    path = args.out / f"{task.name}-{args.prompts}x{args.samples}-{seed}.json"
    options = {"heldout_prompts": args.heldout_prompts, "features": args.features}
    content: JsonObject = computed_once(path, partial(measured, engine, task, seed, args), options)
    return content


def summary(rows: Sequence[JsonObject]) -> list[JsonObject]:
    """Of each task: correlation with its interval over seeds, reward of the picks with its over seeds and prompts."""
    results = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        rewards = {
            name: interval_of_seeds(np.array([row["picks"][name] for row in of_task])) for name in of_task[0]["picks"]
        }
        correlations = {
            name: estimate([row["correlations"][name] for row in of_task]) for name in of_task[0]["correlations"]
        }
        results.append({"task": task, "correlations": correlations, "rewards": rewards})
    return results


def correlations(content: JsonObject) -> str:
    tasks = content["tasks"]
    lines = [
        [name, *(interval_text(cell["correlations"][name]) for cell in tasks)] for name in tasks[0]["correlations"]
    ]
    return table(["correlation within a prompt", *(cell["task"] for cell in tasks)], lines)


def picks(content: JsonObject) -> str:
    tasks = content["tasks"]
    lines = [[name, *(interval_text(cell["rewards"][name]) for cell in tasks)] for name in tasks[0]["rewards"]]
    return table(["reward of the pick among the samples", *(cell["task"] for cell in tasks)], lines)


def report(numbers: JsonObject) -> None:
    print(correlations(numbers), picks(numbers), sep="\n")


def main() -> None:
    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.engines.prepare import prepare_model

    parser = command_line("value_features", __doc__)
    chosen = ["keywords", "extraction", "reading_level"]
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=chosen)
    parser.add_argument("--prompts", type=int, default=24, help="training prompts of a seed")
    parser.add_argument("--heldout-prompts", type=int, default=12)
    parser.add_argument("--samples", type=int, default=16, help="of each prompt")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--features", nargs="+", help="sets of features, by name; all by default")
    args = parser.parse_args()
    with EmbeddedEngine(prepare_model()) as engine:
        sets = feature_sets(engine.info.num_layers, "")
        if unknown := set(args.features or ()) - {*sets}:
            parser.error(f"--features: no {', '.join(sorted(unknown))}; there are {', '.join(sets)}")
        rows = [measured_once(engine, TASKS[name], seed, args) for name in args.tasks for seed in range(args.seeds)]
    finish(args, {"tasks": summary(rows), "rows": rows}, report, seeds=list(range(args.seeds)))


if __name__ == "__main__":
    main()
