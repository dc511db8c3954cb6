"""What of an aligned model its exported files keep: ``python -m benchmarks.exports --pieces FOLDER ... --json``.

The tilts are those of finished jobs of ``iro run bench.tasks``. Held-out prompts are answered at one row by the frozen
model; by the whole tilt; by the part that an adapter holds (``iro export --without-words``); and by the strongest
entries of ``logit_bias`` (``--format logit_bias``); the last two at the temperature that the command prints. All decode
in this process: a test of ``iro export`` compares an adapter's distributions with ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from benchmarks.quality_report import interval
from benchmarks.record import command_line, finish
from benchmarks.tables import interval_text, table
from benchmarks.tasks import TASKS
from iro_server import JsonObject
from iro_server.engines.endpoints import Precision

if TYPE_CHECKING:
    from benchmarks.bench_tasks.piece import Piece
    from value_heads.tilt import Tilt

ENTRIES = 300  # that OpenAI's API takes
FROZEN, WHOLE, ADAPTER, ENTRIES_ALONE = "frozen model", "whole tilt", "adapter", f"{ENTRIES} entries"
FIELDS = ("task", "seed", "answers", "reward", "judge", "perplexity", "distinct_2", "kl", "rewards")


def entries_alone(tilt: Tilt, zero: Tilt) -> Tilt:
    """What a server draws from that adds the entries to logits and samples at the tilt's temperature."""
    from value_heads.tilt import fold_tilts
    from value_heads.tilt_export import bias_at_mean_state, logit_bias

    temperature = tilt.temperature()
    entries = logit_bias(bias_at_mean_state(fold_tilts([tilt], [temperature])), ENTRIES)
    bias_V = zero.bias.clone()
    for token, value in entries.items():
        bias_V[token] = value / temperature
    return replace(zero, bias=bias_V, sharpness=tilt.sharpness)


def measured(piece: Piece) -> list[JsonObject]:
    """A line for each of the four; the first alone where the job kept no tilt."""
    from benchmarks.bench_tasks.measure import measured as answered
    from benchmarks.bench_tasks.temperatures import TiltedSamples
    from value_heads.tilt_export import exported_part

    stack: Any = piece.trained.stack
    tilt, zero = stack.tilt, piece.no_tilt
    tilts = {FROZEN: zero}
    if tilt is not None:
        tilts |= {WHOLE: tilt, ADAPTER: exported_part(tilt), ENTRIES_ALONE: entries_alone(tilt, zero)}
    lines = []
    for name, each in tilts.items():
        row = answered(piece, name, 1, TiltedSamples(piece, each))
        line = {"export": name, "parts": sorted(each.parts), "temperature": each.temperature()}
        lines.append(line | {field: row[field] for field in FIELDS})
    return lines


def summary(rows: Sequence[JsonObject]) -> list[JsonObject]:
    """Of each line the mean reward, and what it is above the frozen model (None: it is that), with 95 % bootstrap
    intervals over the held-out prompts."""
    frozen = {(row["task"], row["seed"]): row["rewards"] for row in rows if row["export"] == FROZEN}
    return [
        {field: row[field] for field in ("task", "seed", "export", "parts", "temperature", "kl", "perplexity")}
        | {
            "rewards": interval(np.array([row["rewards"]])),
            "less_frozen": None
            if row["export"] == FROZEN
            else interval(np.subtract([row["rewards"]], [frozen[row["task"], row["seed"]]])),
        }
        for row in rows
    ]


def by_export(content: JsonObject) -> str:
    """Reward at one row of each task, by what is exported; the tilt's parts and temperature."""
    lines = []
    for task, seed in dict.fromkeys((cell["task"], cell["seed"]) for cell in content["cells"]):
        cells = {cell["export"]: cell for cell in content["cells"] if (cell["task"], cell["seed"]) == (task, seed)}
        if WHOLE in cells:
            texts = [interval_text(cells[name]["rewards"]) for name in (FROZEN, WHOLE, ADAPTER, ENTRIES_ALONE)]
            lines.append([task, ", ".join(cells[WHOLE]["parts"]), f"{cells[WHOLE]['temperature']:.2g}", *texts])
    return table(["task", "parts of the tilt", "temperature", FROZEN, WHOLE, ADAPTER, ENTRIES_ALONE], lines)


def report(numbers: JsonObject) -> None:
    print(by_export(numbers))


def main() -> None:
    from benchmarks.weightings import finished_pieces

    parser = command_line("exports", __doc__)
    parser.add_argument("--pieces", type=Path, nargs="+", required=True, help="run folders of bench.tasks")
    parser.add_argument("--tasks", nargs="+", default=["keywords", "extraction", "brevity"], choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--answers", type=int, default=4, help="to each held-out prompt")
    parser.add_argument("--precision", choices=get_args(Precision), default="bfloat16", help="of products")
    args = parser.parse_args()
    rows = [line for piece in finished_pieces(args) for line in measured(piece)]
    del args.pieces
    finish(args, {"cells": summary(rows), "rows": rows}, report, seeds=[args.seed])


if __name__ == "__main__":
    main()
