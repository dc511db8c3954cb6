"""The share of a gain that an aligned model keeps on vLLM."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.vllm_tilts import BY_HIDDEN, BY_STATE, CONTROL, by_engine, by_search, measured_once, share, summary


def test_the_share_is_of_the_gain_in_process() -> None:
    engines = {"in process": ([0.0, 1.0], [2.0, 3.0]), "vLLM": ([0.0, 1.0], [1.0, 2.0])}
    row = {name: dict(zip(("frozen", "aligned"), rewards, strict=True)) for name, rewards in engines.items()}
    job = {"task": "keywords", "seed": 0, "rows": 1}
    jobs = [job | {"method": "base", "rewards": [0.0, 0.0]}, job | {"method": "iro", "rewards": [4.0, 4.0]}]
    searches = {CONTROL: [0.5, 1.0], BY_STATE: [1.0, 2.0], BY_HIDDEN: [1.0, 3.0]}
    (cell,) = summary([{"task": "keywords", "seed": 0, "searches": searches} | row], jobs)
    assert cell["share of in-process jobs"] == {"mean": 0.25, "low": 0.25, "high": 0.25, "seeds": [0]}
    assert cell["gains"]["in process"]["mean"] == 2 and cell["share"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert cell["aligned on vLLM less control"]["mean"] == 0.75
    assert cell["searches"]["seeds"] == [0]
    assert [gain["mean"] for gain in cell["searches"]["gains"].values()] == [0.75, -0.5]
    assert "| keywords | 0.50 [" in by_engine({"tasks": [cell]})
    assert "| keywords | 0.50 [" in by_search({"tasks": [cell]})


def test_the_interval_of_a_share_is_over_seeds_and_prompts() -> None:
    """Seeds of shares 0.2 and 1 without noise among prompts: a resample of one seed alone has that seed's share."""
    in_process = np.ones((2, 30))
    on_vllm = in_process * [[0.2], [1.0]]
    assert share(on_vllm, in_process) == pytest.approx({"mean": 0.6, "low": 0.2, "high": 1.0})


def piece_of(run: Path, result: str) -> Any:
    folder = run / "pieces" / "keywords-0"
    (folder / "align").mkdir(parents=True)
    (folder / "align" / "result.json").write_text(result)
    return SimpleNamespace(folder=folder)


def test_a_part_is_measured_once_for_each_run(tmp_path: Path) -> None:
    first, second = piece_of(tmp_path / "first", "{}"), piece_of(tmp_path / "second", "{}")
    assert measured_once(tmp_path, first, "control", lambda: [1.0]) == [1.0]
    assert measured_once(tmp_path, first, "control", lambda: [2.0]) == [1.0]
    assert measured_once(tmp_path, second, "control", lambda: [2.0]) == [2.0]


def test_a_part_of_another_run_of_the_same_name_is_refused(tmp_path: Path) -> None:
    measured_once(tmp_path, piece_of(tmp_path / "a" / "run", "{}"), "control", lambda: [1.0])
    with pytest.raises(SystemExit, match="choose another --out"):
        measured_once(tmp_path, piece_of(tmp_path / "b" / "run", '{"seed": 1}'), "control", lambda: [2.0])
