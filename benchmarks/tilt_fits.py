"""Ways to fit a tilt, on the same rollouts: ``python -m benchmarks.tilt_fits --pieces FOLDER ...``.

The rollouts are the plain ones that the jobs of finished pieces of ``iro run bench.tasks`` fitted their first round to.
Every tilt has a bias, a low-rank map of the state, and words of prompt and response:

- ``expected advantage``, the trainer's own (``value_heads/tilt_fit.py``), its first round alone; and, as it fits one
  too, without bias and map;
- ``ridge bias`` (``value_heads/bias_fit.py``), which has a bias alone;
- ``return``: ridge regression of the reward on the sum of A over a rollout;
- ``increments``: ridge regression of A on the increments of a value head, itself fitted to these rollouts; with
  ``--lora`` also on those of a LoRA value function, which is distilled into a tilt so;
- ``weighted likelihood``: the likelihood of the rollouts, each weighted by exp(its advantage in standard deviations),
  less ``KL_WEIGHT`` times KL(q ‖ π), by the trainer's optimiser and parameters.

The regressions are in closed form (``tilt_regressions.py``), and read the response's length at stop tokens alone.

Each tilt is divided by its root mean variance under the frozen model, and its strength chosen alike: of rising
``STRENGTHS``, up to the first whose text is outside the limits of the piece's job (perplexity, distinct-2), that of the
highest reward on validation prompts; 0 where that is the frozen model. Held-out prompts are answered at one row, and
each fit compared, prompt by prompt, with the one of the trainer's three kinds that validation prompts preferred, as a
job's round picks it. Sharpness and penalties on repetition, which a job tries next, are left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from benchmarks.fitted_tilts import BIAS, DISTILLED, INCREMENTS, OWN, RETURN, WEIGHTED, WORDS, FittedPiece
from benchmarks.quality_report import interval
from benchmarks.record import command_line, computed_once, finish
from benchmarks.tables import interval_text, table
from benchmarks.tasks import TASKS
from iro_server import JsonObject
from iro_server.engines.endpoints import Precision

if TYPE_CHECKING:
    from benchmarks.bench_tasks.piece import Piece
    from value_heads.tilt import Tilt

RANK = 16  # the trainer's
RANKED = (OWN, RETURN, INCREMENTS, WEIGHTED, DISTILLED)
KINDS = ((BIAS, 0), (WORDS, 0), (OWN, RANK))  # of a job's round
FROZEN = "frozen model"
STRENGTHS = (0.2, 0.4, 0.7, 1.0, 1.4)
FROZEN_SAMPLES = 16  # of each validation prompt, which set the limits of text


def measured(fitted: FittedPiece, name: str, rank: int, samples: int, frozen: JsonObject | None = None) -> JsonObject:
    """A line of the results file: a fit, the strengths that were tried, and its held-out rewards by prompt.

    ``frozen``: that of the frozen model, None for itself.
    """
    from benchmarks.bench_tasks.measure import measured as answered
    from benchmarks.bench_tasks.temperatures import TiltedSamples
    from value_heads.tilt import fold_tilts

    began, piece = time.monotonic(), fitted.piece
    tilt = fitted.fitted(name, rank) if frozen else piece.no_tilt
    seconds, spread = time.monotonic() - began, fitted.spread(tilt)
    unit = fold_tilts([tilt], [1 / spread if spread else 0.0])
    if frozen:
        tried = [*frozen["tried"], *tried_strengths(piece, unit, samples, frozen["tried"][0])]
    else:
        tried = [tried_strength(piece, unit, 0.0, FROZEN_SAMPLES) | {"usual": True}]
    strength = max((trial for trial in tried if trial["usual"]), key=lambda trial: trial["reward"])["strength"]
    row = answered(piece, name, 1, TiltedSamples(piece, fold_tilts([unit], [strength])))
    fields = ("task", "seed", "answers", "reward", "perplexity", "distinct_2", "kl", "rewards")
    line = {"fit": name, "rank": rank, "spread": spread, "seconds": seconds, "strength": strength, "tried": tried}
    return line | {field: row[field] for field in fields}


def tried_strengths(piece: Piece, unit: Tilt, samples: int, frozen: JsonObject) -> Iterator[JsonObject]:
    """Rising strengths, up to the first whose text is outside the limits (``usual``), which are those of a job."""
    from training.iro.tilt_trials import LEAST_DISTINCT_2, MOST_PERPLEXITY

    for strength in STRENGTHS:
        trial = tried_strength(piece, unit, strength, samples)
        likely = trial["perplexity"] <= MOST_PERPLEXITY * frozen["perplexity"]
        usual = likely and trial["distinct_2"] >= LEAST_DISTINCT_2 * frozen["distinct_2"]
        yield trial | {"usual": usual}
        if not usual:
            return


def tried_strength(piece: Piece, unit: Tilt, strength: float, samples: int) -> JsonObject:
    """Reward, perplexity, distinct-2 and nats on validation prompts."""
    from benchmarks.bench_tasks.temperatures import trial_of
    from training.iro.tilt_trials import trial_data
    from value_heads.tilt import fold_tilts

    trial, _ = trial_of(piece, fold_tilts([unit], [strength]), strength, samples=samples)
    data = trial_data(trial, None)
    return {key: data[key] for key in ("strength", "reward", "perplexity", "distinct_2", "kl")}


def lines_of(fitted: FittedPiece, args: argparse.Namespace) -> list[JsonObject]:
    """Of a piece, in the order of ``settings``; each is computed once."""
    has_all = args.tasks_of_ranks is None or fitted.piece.task.name in args.tasks_of_ranks
    ranks = args.ranks if has_all else [RANK]
    options = {name: getattr(args, name) for name in ("validation_samples", "answers")}

    def line(name: str, rank: int, frozen: JsonObject | None = None) -> JsonObject:
        path = args.out / f"{fitted.piece.task.name}-{fitted.seed}-{name.replace(' ', '-')}-{rank}.json"
        compute = partial(measured, fitted, name, rank, args.validation_samples, frozen)
        content: JsonObject = computed_once(path, compute, options)
        return content

    frozen = line(FROZEN, 0)
    return [frozen, *(line(name, rank, frozen) for name, rank in settings(ranks, args.lora))]


def settings(ranks: Sequence[int], with_lora: bool) -> list[tuple[str, int]]:
    """Names and ranks of the fits: ``ranks`` are of the trainer's own."""
    others = [name for name in RANKED if name != OWN and (with_lora or name != DISTILLED)]
    return [(BIAS, 0), (WORDS, 0), *((OWN, rank) for rank in ranks), *((name, RANK) for name in others)]


def summary(rows: Sequence[JsonObject]) -> list[JsonObject]:
    """Of each line the mean reward and what it is above the trainer's pick (None: it is that), with 95 % bootstrap
    intervals over the held-out prompts."""
    picks = {task: trainers_pick(rows, task) for task in dict.fromkeys(row["task"] for row in rows)}
    return [
        {field: row[field] for field in ("task", "fit", "rank", "strength", "kl", "perplexity")}
        | {
            "rewards": interval(np.array([row["rewards"]])),
            "less_own": None
            if row is picks[row["task"]]
            else interval(np.subtract([row["rewards"]], [picks[row["task"]]["rewards"]])),
        }
        for row in rows
    ]


def trainers_pick(rows: Sequence[JsonObject], task: str) -> JsonObject:
    """The line of the highest reward on validation prompts, of the three kinds of tilt that a job's round tries."""

    def reward(row: JsonObject) -> float:
        return max(trial["reward"] for trial in row["tried"] if trial["usual"])

    of_job = [row for row in rows if row["task"] == task and (row["fit"], row["rank"]) in KINDS]
    return max(of_job, key=reward)


def by_fit(content: JsonObject) -> str:
    """Of each fit and rank, by task: reward, what it is above the trainer's pick, and nats of an answer."""
    cells = {(cell["fit"], cell["rank"], cell["task"]): cell for cell in content["cells"]}
    tasks = list(dict.fromkeys(cell["task"] for cell in content["cells"]))
    lines = []
    for fit, rank in dict.fromkeys((cell["fit"], cell["rank"]) for cell in content["cells"]):
        texts = [text for task in tasks for text in texts_of(cells.get((fit, rank, task)))]
        lines.append([f"{fit}, rank {rank}" if fit in RANKED else fit, *texts])
    heads = [head for task in tasks for head in (task, "less the trainer's pick", "nats")]
    return table(["fit", *heads], lines)


def texts_of(cell: JsonObject | None) -> list[str]:
    if cell is None:
        return ["", "", ""]
    difference = "" if cell["less_own"] is None else interval_text(cell["less_own"], "+")
    return [interval_text(cell["rewards"]), difference, f"{cell['kl']:.1f}"]


def report(numbers: JsonObject) -> None:
    print(by_fit(numbers))


def main() -> None:
    from benchmarks.weightings import finished_pieces

    parser = command_line("tilt_fits", __doc__)
    parser.add_argument("--pieces", type=Path, nargs="+", required=True, help="run folders of bench.tasks")
    parser.add_argument("--tasks", nargs="+", default=["keywords", "extraction", "instructions"], choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, RANK, 64], help="of the trainer's own fit")
    parser.add_argument("--tasks-of-ranks", nargs="+", choices=TASKS, help=f"with the others it has rank {RANK} alone")
    parser.add_argument("--lora", action="store_true", help="fit a LoRA value function too: some minutes an epoch")
    parser.add_argument("--validation-samples", type=int, default=4, help="of each prompt and strength")
    parser.add_argument("--answers", type=int, default=4, help="to each held-out prompt")
    parser.add_argument("--precision", choices=get_args(Precision), default="bfloat16", help="of products")
    args = parser.parse_args()
    if RANK not in args.ranks:
        parser.error(f"--ranks: {RANK}, the trainer's, which the others are compared with, is missing")
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[JsonObject] = []
    for piece in finished_pieces(args):
        rows += lines_of(FittedPiece(piece, args.out), args)
    del args.pieces
    finish(args, {"cells": summary(rows), "rows": rows}, report, seeds=[args.seed])


if __name__ == "__main__":
    main()
