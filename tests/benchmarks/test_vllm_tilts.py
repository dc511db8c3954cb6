"""The share of a gain that an aligned model keeps on vLLM."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.vllm_tilts import BY_HIDDEN, BY_STATE, CONTROL, by_engine, by_search, measured_once, summary


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


def test_a_part_is_measured_once_for_each_run(tmp_path: Path) -> None:
    first: Any = SimpleNamespace(folder=tmp_path / "first" / "pieces" / "keywords-0")
    second: Any = SimpleNamespace(folder=tmp_path / "second" / "pieces" / "keywords-0")
    assert measured_once(tmp_path, first, "control", lambda: [1.0]) == [1.0]
    assert measured_once(tmp_path, first, "control", lambda: [2.0]) == [1.0]
    assert measured_once(tmp_path, second, "control", lambda: [2.0]) == [2.0]
