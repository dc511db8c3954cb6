"""The run of quadratics, at a size that takes seconds: checks, figure, resumption, bad settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from training.bilevel.problems import quadratic
from training.bilevel.studies.quadratic import JOB
from training.run import Cancelled

TINY = {
    "repeats": 2,
    "pair_steps": 20,
    "agents": 4,
    "topology_steps": 20,
    "sizes": (2, 3),
    "speedup_repeats": 2,
    "speedup_steps": 20,
    "compressors": ("EF", "uncompressed"),
    "compressed_steps": 100,
}


@pytest.mark.slow(15)
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    uninterrupted = JOB.execute(TINY, tmp_path / "uninterrupted")
    stop = iter([False] * 7 + [True])
    with pytest.raises(Cancelled):
        JOB.execute(TINY, tmp_path / "broken", should_stop=lambda: next(stop))
    resumed = JOB.execute(TINY, tmp_path / "broken")
    assert {**resumed, "versions": None} == {**uninterrupted, "versions": None}
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("uninterrupted", "broken")]
    assert rows[0] == rows[1] and len(rows[0].splitlines()) == 2 + 6 + 2 + 8
    assert (tmp_path / "uninterrupted" / "figures" / "quadratic.png").stat().st_size > 10_000
    json.dumps(uninterrupted)
    # EF-SOBA sends three messages of a float and an index of 4 bits; all coordinates need no indices.
    bits = {name: runs[0]["bits_up"] for name, runs in uninterrupted["compressed"]["runs"]["0.0"].items()}
    assert bits == {"EF": 3 * 36, "uncompressed": 3 * 320}


@pytest.mark.slow(15)
def test_runs_of_neighbouring_seeds_share_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[int, set[int]] = {}
    draw = quadratic.draw
    monkeypatch.setattr(
        quadratic, "draw", lambda *args, seed, **sizes: drawn[run_seed].add(seed) or draw(*args, seed=seed, **sizes)
    )
    for run_seed in (0, 1):
        drawn[run_seed] = set()
        replace(JOB, draw=None).execute(TINY | {"seed": run_seed}, tmp_path / str(run_seed))
    assert drawn[0] == {0, 1}, "the problems of the recorded runs"
    assert len(drawn[1]) == 2 and not drawn[0] & drawn[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agents": 8}, "a square torus needs 4, 9, 16, ... agents, not 8"),
        ({"compressors": ("EF21",)}, "no compressor EF21; there are uncompressed, C, CM, EF"),
        ({"alpha": 0}, "greater than 0"),
        ({"sizes": ()}, r"one or more numbers of agents, each 1 or more, not \[\]"),
        ({"sizes": (4, 0)}, r"one or more numbers of agents, each 1 or more, not \[4, 0\]"),
    ],
)
def test_bad_settings_say_what_to_change(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        JOB.execute(settings, tmp_path)
