"""Claims on counts that a limit cut off, and results files that are summarised again from their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="needs the rl extra")

from benchmarks.record import read, write
from benchmarks.redraw import ROOT
from benchmarks.research.rl_exact import exponents, tabular
from benchmarks.resummarise import SUMMARIES, resummarise
from rl_suite.adrl_tabular import RULES, draw_samples

SHAPES = ((2, 2), (2, 4), (2, 16), (3, 4), (4, 3))


def samples(most: int) -> list[dict[str, Any]]:
    """Counts of joint learners as Π, of projected ones as Σ, both cut off at ``most``, of eight random MDPs."""
    rng = np.random.default_rng(0)
    rows = []
    for factors, levels in SHAPES:
        total, product = factors * levels, levels**factors
        means = {"joint": 40 * product, "projected": 40 * total}
        counts = {
            f"{rule}_{learner}": np.minimum(mean * rng.lognormal(0, 0.1, 8), most).astype(int).tolist()
            for rule in RULES
            for learner, mean in means.items()
        }
        rows.append({"factors": factors, "levels": levels, "sum": total, "product": product, "counts": counts})
    return rows


def result(most: int) -> dict[str, Any]:
    fit = {name: [1.0, 0.9, 1.1] for name in ("sum", "product", "sum_alone", "product_alone")}
    names = [f"{rule}_{learner}" for rule in RULES for learner in ("joint", "projected")]
    checks = [{"name": "exact", "expected": 1, "got": 1, "holds": True}]
    content = {"samples": samples(most), "exponents": dict.fromkeys(names, fit), "checks": checks}
    return content | {"config": {"most": most}}


def joint_growth(content: dict[str, Any]) -> str:
    claims = [row for row in content["claims"] if "joint: transitions grow" in row["paper"]]
    return str(claims[0]["verdict"])


def test_a_verdict_that_counts_of_the_limit_decide_is_withheld() -> None:
    measured = tabular(result(10**6))
    assert joint_growth(measured) == "confirmed"
    assert measured["limit"]["accuracy_joint"] == {"reached": 0, "of": 40}
    capped = tabular(result(9216))
    assert joint_growth(capped).startswith("undecided, because 8 of 40 counts are at the limit: ")
    assert capped["limit"]["accuracy_projected"]["reached"] == 0
    assert "| 8 of 40 |" in exponents(capped)


def test_a_results_file_is_summarised_again_from_its_rows(tmp_path: Path) -> None:
    expected = tabular(result(9216))
    run = {"benchmark": "rl.adrl_tabular", "config": {"most": 9216}, "seeds": [0], "versions": {}}
    old = expected | {"claims": expected["claims"][:1], "limit": {"reached": 1}}
    write(tmp_path / "tiny.json", run, old)
    resummarise(tmp_path / "tiny.json")
    content = read(tmp_path / "tiny.json")
    assert content["run"]["summarised"] and content["run"]["preset"] == "tiny"
    assert {name: value for name, value in content.items() if name != "run"} == expected
    draw_samples(content, tmp_path / "samples.png")
    assert (tmp_path / "samples.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "name",
    [
        "probes/default",
        "quality/imdb",
        "rl.adrl_tabular/two-cores",
        "value_features/default",
        "value_features/text",
        "vllm_tilts/default",
    ],
)
def test_the_summary_of_a_results_file_is_that_of_its_rows(name: str) -> None:
    content = read(ROOT / "results" / f"{name}.json")
    for part, summary in SUMMARIES[content["run"]["benchmark"]](content).items():
        assert content[part] == json.loads(json.dumps(summary))


def test_a_results_file_without_rows_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.json", {"benchmark": "page"}, {"rate": 2.5})
    with pytest.raises(ValueError, match="have no rows"):
        resummarise(tmp_path / "a.json")
