"""Jobs of ``instructions`` on the prompts of IFBench."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import unseen_instructions
from benchmarks.bench_tasks.config import BenchTasksConfig
from benchmarks.bench_tasks.piece import Piece
from benchmarks.tasks.instructions import INSTRUCTIONS_TASK
from benchmarks.unseen_instructions import SETTINGS, UNSEEN_TASK, on_unseen_prompts, summary, unseen


@pytest.mark.parametrize("method", list(dict.fromkeys(method for method, _ in SETTINGS)))
def test_the_checkers_of_ifbench_pick_for_best_of_n_alone(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The aligned model's values, and its way to search, are of the piece that its job is from."""
    calls: list[Any] = []

    def measured(piece: Piece, method: str, rows: int, decoder: Any) -> Any:
        calls.append((piece, decoder))
        return {"texts": ["an answer"], "reward": 1.0}

    monkeypatch.setattr(unseen_instructions, "measured", measured)
    other: Any = None
    config = BenchTasksConfig(tasks=("instructions",), measured_rows=8)
    piece = Piece(config, INSTRUCTIONS_TASK, 3, Path(), other, "IFEval", lambda _, compute: compute())  # type: ignore[arg-type]
    vars(piece)["trained"] = SimpleNamespace(stack="values")
    assert on_unseen_prompts(piece, method, 4, 2, "IFBench") == {"reward": 1.0}  # type: ignore[arg-type]
    ((unseen_piece, decoder),) = calls
    assert (unseen_piece.task, unseen_piece.grader, unseen_piece.config.heldout_prompts) == (UNSEEN_TASK, "IFBench", 2)
    assert unseen_piece.config.measured_rows == 1
    assert decoder.piece is (piece if method == "iro" else unseen_piece)


def line(method: str, rows: int, seed: int, rewards: list[float]) -> dict[str, Any]:
    fields = {"reward": sum(rewards) / len(rewards), "finished": 0.5, "length": 40.0, "base_tokens": 40.0 * rows}
    of_row = {"task": "unseen instructions", "method": method, "rows": rows, "seed": seed}
    return of_row | fields | {"rewards": rewards, "judges": [0.25] * len(rewards)}


def test_differences_are_paired_by_prompt_and_seeds_are_shown() -> None:
    rows = [line("base", 1, 3, [0.0, 1.0]), line("base", 1, 4, [0.0, 1.0])]
    rows += [line("iro", 1, 3, [1.0, 1.0]), line("iro", 1, 4, [0.0, 1.0])]
    content = summary(rows, [])
    assert content["prompts"] == 2 and sum(content["unchecked"].values()) == 294 - 256
    *_, base, iro = unseen(content).splitlines()
    assert base.startswith("| base | 1 | 0.50 [") and "| 0.50; 0.50 |  | 0.25 | 0.50 | 40 | 40 |" in base
    assert "| 1.00; 0.50 | +0.25 [+0.00, +0.75] |" in iro
