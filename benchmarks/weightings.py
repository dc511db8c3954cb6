"""Two aligned models in one request, at eleven weightings: ``python -m benchmarks.weightings --pieces FOLDER ...``.

The models are those of ``sentiment`` and ``reading_level``, from finished pieces of ``iro run bench.tasks``. They are
mixed as ``search.values`` mixes them, w of the first and 1 - w of the second, and whole (1 and 1); one row an answer.
The held-out prompts are those of both tasks, and both graders score every answer. Two controls: the plain sample of
sixteen with the highest sum of rewards at the same weights, each divided by its standard deviation among plain samples;
and an answer from either model by chance, the straight line between them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.bench_tasks.answers import Answer, answer_of, best_of
from benchmarks.bench_tasks.config import BenchTasksConfig
from benchmarks.bench_tasks.measure import qualities
from benchmarks.bench_tasks.piece import Piece
from benchmarks.processes import say
from benchmarks.quality_report import interval
from benchmarks.record import command_line, finish
from benchmarks.tables import table
from benchmarks.tasks import TASKS
from iro_server import JsonObject
from training.run import derive_seed

if TYPE_CHECKING:
    from iro_server.engines.embedded import EmbeddedEngine
    from value_heads.stack import ValueStack

NAMES = ("sentiment", "reading_level")
WEIGHTS = [(round(w / 10, 1), round(1 - w / 10, 1)) for w in range(11)] + [(1.0, 1.0)]
ROWS = 16  # of the control by reward
MIXING = 3  # a stream of random numbers, beside those of a piece


class Mixing:
    """The pieces of both tasks on one engine, and the prompts of both."""

    def __init__(self, pieces: Sequence[Piece], prompts_per_task: int, seed: int) -> None:
        self.pieces, self.seed = pieces, derive_seed(seed, MIXING)
        prompts = [prompt for piece in pieces for prompt in piece.held_out[:prompts_per_task]]
        self.prompts = [
            replace(prompt, index=index) for index, prompt in enumerate(prompts)
        ]  # random numbers of its own

    def by_values(self, stacks: Sequence[ValueStack], weights: tuple[float, float]) -> JsonObject:
        """One row an answer, steered by the mixed tilts."""
        from value_heads.compose import compose

        tilt = compose(stacks, weights).tilt
        params = best_of(1).model_copy(update={"strength": 1.0})
        results = self.pieces[0].search(self.prompts, params, None, self.seed, tilt)
        answers = [answer_of(result.finals[0], result, kl=result.finals[0].kl) for result in results]
        return self.row("iro", weights, answers, self.rewards(answers))

    def by_reward(self) -> list[JsonObject]:
        """A plain sample, and of sixteen the one of the highest weighted reward."""
        results = self.pieces[0].search(self.prompts, best_of(ROWS), None, self.seed)
        samples = [[answer_of(final, result, ROWS) for final in result.finals] for result in results]
        rewards = [self.rewards([answers[place] for answers in samples]) for place in range(ROWS)]
        scales = [pstdev(value for place in rewards for value in place[name]) for name in NAMES]
        plain = [replace(answers[0], base_tokens=len(answers[0].tokens), reward_calls=0, kl=0.0) for answers in samples]
        rows = [self.row("base", None, plain, rewards[0])]
        for weights in WEIGHTS:
            factors = [weight / scale for weight, scale in zip(weights, scales, strict=True)]
            picks = [self.pick(rewards, prompt, factors) for prompt in range(len(samples))]
            picked = {name: [rewards[place][name][i] for i, place in enumerate(picks)] for name in NAMES}
            answers = [samples[i][place] for i, place in enumerate(picks)]
            rows.append(self.row("best_of_n", weights, answers, picked))
        return rows

    @staticmethod
    def pick(rewards: Sequence[dict[str, list[float]]], prompt: int, factors: Sequence[float]) -> int:
        def weighted(place: int) -> float:
            return sum(factor * rewards[place][name][prompt] for name, factor in zip(NAMES, factors, strict=True))

        return max(range(len(rewards)), key=weighted)

    def rewards(self, answers: Sequence[Answer]) -> dict[str, list[float]]:
        texts = [self.pieces[0].text(answer.tokens) for answer in answers]
        return {piece.task.name: piece.rewards(self.prompts, texts) for piece in self.pieces}

    def row(
        self,
        method: str,
        weights: tuple[float, float] | None,
        answers: Sequence[Answer],
        rewards: dict[str, list[float]],
    ) -> JsonObject:
        """Mean rewards with 95 % bootstrap intervals over prompts, and means of the judges."""
        import numpy as np

        texts = [self.pieces[0].text(answer.tokens) for answer in answers]
        judges = {
            f"{piece.task.name}_judge": fmean(
                piece.task.judge(prompt.item, text) for prompt, text in zip(self.prompts, texts, strict=True)
            )
            for piece in self.pieces
        }
        means = {name: interval(np.array([values])) for name, values in rewards.items()}
        row = {"method": method, "rows": 1 if weights is None or method == "iro" else ROWS, "weights": weights}
        return row | means | judges | qualities(answers)


def open_finished(folders: Sequence[Path], name: str, seed: int, engine: EmbeddedEngine, stack: ExitStack) -> Piece:
    """The piece of that task from the first folder that has it. SystemExit where none has."""
    from iro_server.graders.parsing import parse_grader

    for folder in folders:
        piece = folder / "pieces" / f"{name}-{seed}"
        if (piece / "align" / "result.json").exists():
            config = json.loads((folder / "config.json").read_text())["config"]
            grader = stack.enter_context(parse_grader(TASKS[name].grader()))
            options = BenchTasksConfig.model_validate(config)
            return Piece(options, TASKS[name], seed, piece, engine, grader, lambda _, compute: compute())
    raise SystemExit(f"no folder has a finished job of {name} at seed {seed}: run bench.tasks with it first")


def finished_pieces(args: argparse.Namespace) -> Iterator[Piece]:
    """Of ``args.tasks``, one after another on one engine; held-out prompts are answered ``args.answers`` times."""
    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.engines.prepare import prepare_model

    with EmbeddedEngine(prepare_model(), precision=args.precision) as engine:
        for name in args.tasks:
            with ExitStack() as stack:
                piece = open_finished(args.pieces, name, args.seed, engine, stack)
                yield replace(piece, config=piece.config.model_copy(update={"measured_rows": args.answers}))


def main() -> None:
    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.engines.prepare import prepare_model

    parser = command_line("weightings", __doc__)
    parser.add_argument("--pieces", type=Path, nargs="+", required=True, help="run folders of bench.tasks")
    parser.add_argument("--prompts", type=int, default=24, help="held-out prompts of each task")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with ExitStack() as stack:
        engine = stack.enter_context(EmbeddedEngine(prepare_model()))
        pieces = [open_finished(args.pieces, name, args.seed, engine, stack) for name in NAMES]
        numbers = measured(Mixing(pieces, args.prompts, args.seed))
    del args.pieces
    finish(args, numbers, report, seeds=[args.seed])


def measured(mixing: Mixing) -> JsonObject:
    """``rows``: the mixtures, then the controls."""
    stacks: list[Any] = [piece.trained.stack for piece in mixing.pieces]
    rows = mixing.by_reward()
    for weights in WEIGHTS:
        rows.append(mixing.by_values(stacks, weights))
        say(f"weights {weights}: {rows[-1][NAMES[0]]['mean']:.2f}, {rows[-1][NAMES[1]]['mean']:.2f}")
    return {"prompts": len(mixing.prompts), "rows": rows}


def weightings(content: JsonObject) -> str:
    """Both rewards at each weighting, by the mixed models and by best-of-16."""
    lines = [
        [row["method"], weights_text(row["weights"]), *(f"{row[name]['mean']:.2f}" for name in NAMES)]
        + [f"{row[f'{name}_judge']:.2f}" for name in NAMES]
        + ["" if row["kl"] is None else f"{row['kl']:.1f}", f"{row['perplexity']:.0f}", f"{row['base_tokens']:.0f}"]
        for row in content["rows"]
    ]
    heads = ["method", "weights", "sentiment", "reading level", "VADER", "Coleman-Liau", "KL", "perplexity", "tokens"]
    return table(heads, lines)


def weights_text(weights: Sequence[float] | None) -> str:
    return "" if weights is None else ", ".join(f"{weight:g}" for weight in weights)


def report(numbers: JsonObject) -> None:
    print(weightings(numbers))


def draw(content: JsonObject, path: Path) -> None:
    """One reward against the other: the mixtures, best-of-16 at the same weights, the frozen model, and the line of
    answers from either model by chance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 5))
    curves = {"iro": ("mixed models, one row", "o-", "C0"), "best_of_n": ("best of 16 by reward", "s-", "C1")}
    for method, (label, style, colour) in curves.items():
        rows = [row for row in content["rows"] if row["method"] == method]
        points = [row for row in rows if sum(row["weights"]) == 1]
        axes.errorbar(**means_and_bars(points), fmt=style, color=colour, ms=5, lw=1.2, elinewidth=0.4, label=label)
        for row in rows:
            if method == "iro":
                x, y = (row[name]["mean"] for name in NAMES)
                axes.annotate(weights_text(row["weights"]), (x, y), xytext=(5, 5), textcoords="offset points", size=7)
    mixed = [row for row in content["rows"] if row["method"] == "iro"]
    at_full_strength = next(row for row in mixed if sum(row["weights"]) == 2)
    ends = [[row[name]["mean"] for name in NAMES] for row in mixed if sorted(row["weights"]) == [0, 1]]
    base = next(row for row in content["rows"] if row["method"] == "base")
    axes.plot(*zip(*ends, strict=True), "--", color="grey", lw=1, label="either model by chance")
    for row, mark, label in ((at_full_strength, "D", "both whole, one row"), (base, "x", "frozen model")):
        colour = "C2" if row is at_full_strength else "black"
        axes.errorbar(**means_and_bars([row]), fmt=mark, color=colour, elinewidth=0.4, label=label)
    axes.set_title("means, and 95 % intervals over prompts alone", fontsize=9)
    axes.set(xlabel="sentiment: held-out reward", ylabel="reading level: held-out reward")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def means_and_bars(rows: Sequence[JsonObject]) -> dict[str, Any]:
    """x, y and the lengths of their bars below and above, of both rewards."""
    fields: dict[str, Any] = {}
    for axis, name in zip("xy", NAMES, strict=True):
        cells = [row[name] for row in rows]
        fields[axis] = [cell["mean"] for cell in cells]
        bars = [(cell["mean"] - cell["low"], cell["high"] - cell["mean"]) for cell in cells]
        fields[f"{axis}err"] = np.transpose(bars)
    return fields


if __name__ == "__main__":
    main()
