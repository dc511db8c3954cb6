"""Values and tilts on weights that are rounded: ``python -m benchmarks.rounded_weights --pieces FOLDER ...``.

The aligned models are those of finished pieces of ``iro run bench.tasks``, fitted on float32 weights. The
weights of all linear layers but the output head are then rounded, as a server of a quantised checkpoint has them: to 8
bits for each output, or to 4 bits for each group of 64 inputs, symmetric; activations stay as they are. Held-out
prompts are answered by the frozen model at one row, by the aligned one at one row, and by the pick of the values among
sixteen aligned samples, with the same seeds at each precision. ``share``: a gain over the frozen model of the same
precision, divided by that on float32 weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.processes import say
from benchmarks.quality_report import interval
from benchmarks.record import command_line, finish
from benchmarks.tables import interval_text, table
from benchmarks.tasks import TASKS
from benchmarks.vllm_tilts import share
from benchmarks.weightings import open_finished
from iro_server import JsonObject
from iro_server.decoding.base import SearchParams

if TYPE_CHECKING:
    import torch

    from benchmarks.bench_tasks.piece import Piece
    from iro_server.engines.embedded import EmbeddedEngine

PRECISIONS = {"float32": None, "8 bits": (8, None), "4 bits": (4, 64)}  # bits, and inputs of a group; None: all
SAMPLES = 4  # answers to each prompt at one row
ROWS = 16
SEED = 5
METHODS = {
    "frozen": (SearchParams(num_successors=SAMPLES), False),
    "aligned": (SearchParams(num_successors=SAMPLES, strength=1.0), False),
    "aligned, 16 samples by value": (SearchParams(num_successors=ROWS, strength=1.0), True),
}


def rounded(weight_OI: torch.Tensor, bits: int, group: int | None) -> torch.Tensor:
    """The nearest multiples of a step for each group of inputs: its largest size over 2^(bits-1) - 1."""
    import torch

    outputs, inputs = weight_OI.shape
    groups = weight_OI.view(outputs, -1, group or inputs)
    step = groups.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(step > 0, (groups / step).round() * step, groups).view(outputs, inputs)


@contextmanager
def rounded_weights(engine: EmbeddedEngine, precision: str) -> Iterator[None]:
    """The engine's linear layers, the output head aside, with rounded weights."""
    import torch

    linears = [module for module in engine.frozen.layers.modules() if isinstance(module, torch.nn.Linear)]
    before = [linear.weight.data for linear in linears]
    rounding = PRECISIONS[precision]
    if rounding is None:
        yield
        return
    set_weights(engine, {linear: rounded(linear.weight.data, *rounding) for linear in linears})
    try:
        yield
    finally:
        set_weights(engine, dict(zip(linears, before, strict=True)))


def set_weights(engine: EmbeddedEngine, weights: Mapping[torch.nn.Linear, torch.Tensor]) -> None:
    """Replace weights of linear layers, and the packed copies that the engine multiplies by."""
    for linear, weight in weights.items():
        linear.weight.data = weight
        vars(linear).pop("forward", None)  # the product with the packed copy, which memory may not hold again
    engine.frozen.pack_weights(engine.frozen.products)


def rewards(piece: Piece, stack: Any, params: SearchParams, by_value: bool) -> list[float]:
    """Of each held-out prompt: of the values' pick, or the mean of all rows."""
    results = piece.search(piece.held_out, params, stack if by_value else None, SEED, stack.tilt)
    groups = [result.finals[:1] if by_value else result.finals for result in results]
    prompts = [prompt for prompt, group in zip(piece.held_out, groups, strict=True) for _ in group]
    graded = piece.rewards(prompts, [piece.text(final.tokens) for group in groups for final in group])
    return np.array(graded).reshape(len(groups), -1).mean(1).tolist()


def measured(engine: EmbeddedEngine, pieces: Sequence[Piece]) -> list[JsonObject]:
    rows = []
    for piece in pieces:
        stack = piece.trained.stack
        for precision in PRECISIONS:
            with rounded_weights(engine, precision):
                by_method = {name: rewards(piece, stack, *method) for name, method in METHODS.items()}
            rows.append({"task": piece.task.name, "precision": precision, "rewards": by_method})
            means = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in by_method.items())
            say(f"{piece.task.name}, {precision}: {means}")
    return rows


def gains(row: JsonObject, method: str) -> np.ndarray:
    """[1, prompts] over the frozen model of the same precision."""
    return np.subtract([row["rewards"][method]], [row["rewards"]["frozen"]])


def summary(rows: Sequence[JsonObject]) -> list[JsonObject]:
    """Mean rewards, and shares of the gains on float32 weights, with 95 % intervals over prompts."""
    unrounded = {row["task"]: row for row in rows if PRECISIONS[row["precision"]] is None}
    return [
        {
            "task": row["task"],
            "precision": row["precision"],
            "rewards": {name: interval(np.array([values])) for name, values in row["rewards"].items()},
            "shares": {
                name: share(gains(row, name), gains(unrounded[row["task"]], name))
                for name in METHODS
                if name != "frozen"
            },
        }
        for row in rows
    ]


def main() -> None:
    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.engines.prepare import prepare_model

    parser = command_line("rounded_weights", __doc__)
    parser.add_argument("--pieces", type=Path, nargs="+", required=True, help="run folders of bench.tasks")
    parser.add_argument("--tasks", nargs="+", default=["sentiment", "keywords", "extraction"], choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with ExitStack() as stack:
        engine = stack.enter_context(EmbeddedEngine(prepare_model()))
        pieces = [open_finished(args.pieces, name, args.seed, engine, stack) for name in args.tasks]
        rows = measured(engine, pieces)
    del args.pieces
    finish(args, {"cells": summary(rows), "rows": rows}, report, seeds=[args.seed])


def by_precision(content: JsonObject) -> str:
    """Rewards of each method, and the shares of the gains, by task and precision."""
    lines = []
    for cell in content["cells"]:
        means = [interval_text(mean) for mean in cell["rewards"].values()]
        shares = ["" if cell["precision"] == "float32" else interval_text(part) for part in cell["shares"].values()]
        lines.append([cell["task"], cell["precision"], *means, *shares])
    shares_of = [f"share of the gain: {name}" for name in METHODS if name != "frozen"]
    return table(["task", "precision", *METHODS, *shares_of], lines)


def report(numbers: JsonObject) -> None:
    print(by_precision(numbers))


if __name__ == "__main__":
    main()
