"""What a ``logit_bias`` of 300 entries gains behind a chat endpoint: ``python -m benchmarks.closed_endpoints``.

``iro run align.logit_bias`` on three tasks whose reward does not depend on the prompt, through the chat API of a real
server of the real model: the job sees texts alone. On prompts that chose nothing, by seed: the plain model, the plain
model with a system message that asks for what the grader rewards, the biased model, and of both samplings the best of
eight by the grader. A judge that no job sees scores the same answers. Finished seeds are kept under ``--out``: an
interrupted run goes on with the next one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from operator import itemgetter
from pathlib import Path
from statistics import fmean

from benchmarks.processes import ServerProcess, terminated_is_exit
from benchmarks.record import command_line, computed_once, finish
from benchmarks.research.claims import cell_text, estimate
from benchmarks.tables import table
from benchmarks.tasks import TASKS
from benchmarks.tasks.task import Task
from iro_server import JsonObject
from iro_server.settings import Settings

REQUESTS = {  # by task: a system message as a user would write it first
    "sentiment": "Be as positive and enthusiastic as you can.",
    "civility": "Be polite and friendly.",
    "reading_level": "Use short sentences and simple words, as for a ten-year-old child.",
}
METHODS = {
    "plain": "plain",
    "requested": "system message",
    "biased": "logit_bias",
    "plain_best": "plain, best of 8",
    "biased_best": "logit_bias, best of 8",
}
PAIRS = {
    "logit_bias less plain": ("biased", "plain"),
    "less system message": ("biased", "requested"),
    "less plain, best of 8": ("biased", "plain_best"),
    "best of 8: logit_bias less plain": ("biased_best", "plain_best"),
}
SAMPLES = 8  # answers to each prompt


def main() -> None:
    terminated_is_exit()
    parser = command_line("closed_endpoints", __doc__)
    parser.add_argument(
        "--prompts", type=int, default=64, help="of each seed: half fit, a quarter each tries and checks"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=list(REQUESTS), default=list(REQUESTS))
    args = parser.parse_args()
    (args.out / "server").mkdir(parents=True, exist_ok=True)
    with ServerProcess(args.out / "server") as server:
        rows = [measured_once(server.url, TASKS[name], seed, args) for seed in range(args.seeds) for name in args.tasks]
    finish(args, {"rows": rows}, report, seeds=list(range(args.seeds)))


def measured_once(url: str, task: Task, seed: int, args: argparse.Namespace) -> JsonObject:
    folder = args.out / f"{task.name}-{seed}"
    compute = partial(measured, url, task, seed, args.prompts, folder)
    content: JsonObject = computed_once(folder / "row.json", compute, {"prompts": args.prompts})
    return content


def measured(url: str, task: Task, seed: int, prompts: int, folder: Path) -> JsonObject:
    """The job, and rewards and judgements of each method on its check's prompts."""
    from iro_server.engines.prepare import prepare_model
    from iro_server.graders.asking import Asker
    from iro_server.graders.parsing import parse_grader
    from iro_server.graders.posting import Endpoint
    from training.iro.logit_bias import JOB, PLAIN, BiasFit, Decoding, LogitBiasConfig, Setting
    from training.iro.seeds import VALIDATION
    from training.run import Run

    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in task.prompts("train", prompts, seed)))
    options = {
        "url": url,
        "model": Settings().model_name,
        "tokenizer": prepare_model(),
        "training_file": file,
        "grader": task.grader(),
        "samples_per_prompt": SAMPLES,
        "max_tokens": task.max_tokens,
        "seed": seed,
    }
    result = JOB.execute(options, folder / "run")
    config = LogitBiasConfig.model_validate(options)
    with closing(Asker(Endpoint(url, "", quoted=True))) as asker, parse_grader(config.grader) as grader:
        fit = BiasFit(config, Run(folder / "run", seed), asker, grader)
        rows = fit.parts.check
        plain, chosen = fit.decoding(PLAIN), Decoding(**result["request"])
        samplings = {
            "plain": fit.sample(fit.name("check", PLAIN), rows, plain, VALIDATION),
            "requested": fit.sample("check-requested", with_request(rows, REQUESTS[task.name]), plain, VALIDATION),
            "biased": fit.sample(fit.name("check", Setting(**result["setting"])), rows, chosen, VALIDATION),
        }
    rewards, judgements = {}, {}
    for name, parts in samplings.items():
        answers = answers_of(task, rows, parts)
        rewards[name], judgements[name] = means(answers, lambda group: group)
        if name != "requested":
            rewards[f"{name}_best"], judgements[f"{name}_best"] = means(answers, best)
    about = {"task": task.name, "seed": seed, "setting": result["setting"], "improved": result["improved"]}
    return about | {"rewards": rewards, "judgements": judgements}


def with_request(rows: Sequence[JsonObject], request: str) -> list[JsonObject]:
    system = {"role": "system", "content": request}
    prompts = [row.get("messages") or [{"role": "user", "content": row["prompt"]}] for row in rows]
    return [
        {name: value for name, value in row.items() if name != "prompt"} | {"messages": [system, *messages]}
        for row, messages in zip(rows, prompts, strict=True)
    ]


Answers = list[list[tuple[float, float]]]  # (reward, judgement) of each answer to each prompt


def answers_of(task: Task, rows: Sequence[JsonObject], parts: Sequence[JsonObject]) -> Answers:
    texts = [group for part in parts for group in part["texts"]]
    rewards = [group for part in parts for group in part["rewards"]]
    return [
        [(reward, task.judge(row, text)) for text, reward in zip(of_row, rewarded, strict=True)]
        for row, of_row, rewarded in zip(rows, texts, rewards, strict=True)
    ]


def best(group: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The answer of the highest reward, the first of equal ones."""
    return [max(group, key=itemgetter(0))]


def means(answers: Answers, chosen: Callable[[list[tuple[float, float]]], list[tuple[float, float]]]) -> list[float]:
    """Of reward and of judgement, over the answers that ``chosen`` takes of each prompt's."""
    pairs = [pair for group in answers for pair in chosen(group)]
    return [fmean(column) for column in zip(*pairs, strict=True)]


def by_task(content: JsonObject, key: str) -> dict[str, dict[str, JsonObject]]:
    """Estimates over seeds, by task and method."""
    tasks: dict[str, list[JsonObject]] = {}
    for row in content["rows"]:
        tasks.setdefault(row["task"], []).append(row)
    return {
        task: {method: dict(estimate([row[key][method] for row in rows])) for method in METHODS}
        for task, rows in tasks.items()
    }


def lines(estimates: Mapping[str, Mapping[str, JsonObject]]) -> str:
    rows = [[task, *(cell_text(cells[method]) for method in METHODS)] for task, cells in estimates.items()]
    return table(["task", *METHODS.values()], rows)


def rewards(content: JsonObject) -> str:
    """The grader's reward of each method."""
    return lines(by_task(content, "rewards"))


def judgements(content: JsonObject) -> str:
    """The unseen judge's score of the same answers."""
    return lines(by_task(content, "judgements"))


def gains(content: JsonObject) -> str:
    """Paired differences from the plain model and from the system message, and in how many seeds the job said so."""
    rows = []
    for task in by_task(content, "rewards"):
        seeds = [row for row in content["rows"] if row["task"] == task]
        gaps = [
            cell_text(dict(estimate([row["rewards"][better] - row["rewards"][worse] for row in seeds])))
            for better, worse in PAIRS.values()
        ]
        improved = {row["improved"] for row in seeds}
        rows.append([task, *gaps, "all" if improved == {True} else "some" if True in improved else "none"])
    return table(["task", *PAIRS, "jobs that report a gain"], rows)


def report(numbers: JsonObject) -> None:
    print(rewards(numbers), gains(numbers), judgements(numbers), sep="\n")


def draw(content: JsonObject, path: Path) -> None:
    """The reward of each method by task, with 95 % Student intervals over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    estimates = by_task(content, "rewards")
    figure, panels = plt.subplots(1, len(estimates), figsize=(3.1 * len(estimates), 3.2), layout="constrained")
    for axes, (task, cells) in zip(panels, estimates.items(), strict=True):
        for place, (method, label) in enumerate(METHODS.items()):
            cell = cells[method]
            error = [[cell["mean"] - cell["low"]], [cell["high"] - cell["mean"]]]
            axes.errorbar(place, cell["mean"], error, fmt="o", capsize=4, label=label)
        axes.set(title=task.replace("_", " "), xticks=[], ylabel="held-out reward" if axes is panels[0] else "")
        axes.grid(axis="y", alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(METHODS), fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
