"""The dose simulator and the study on it: a process of the right kind, a run that goes on, exact comparisons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

pytest.importorskip("gymnasium", reason="needs the rl extra")

from rl_suite.adrl_doses import JOB, LEARNERS
from rl_suite.dose_sim import IDEAL, clinicians, dose_mdp, severities
from rl_suite.mdp import expected_return, greedy, optimal_q
from rl_suite.projection import bias
from training.run import Cancelled

TINY = {
    "sizes": (3,),
    "interactions": (0.5,),
    "datasets": 2,
    "tuning_datasets": 1,
    "episodes": 20,
    "thresholds": (0.1, 0.6),
    "updates": (4, 8),
}


def test_the_best_dose_is_the_one_that_the_severity_asks_for() -> None:
    mdp = dose_mdp(21, interaction=0.0)
    actions = greedy(optimal_q(mdp)).argmax(axis=1)
    doses = np.stack(np.unravel_index(actions, (21, 21)), axis=1) / 20
    alive = ~mdp.terminal
    assert np.abs(doses - IDEAL[severities()])[alive].max() <= 0.05


def test_interacting_drugs_make_factors_depend_on_each_other() -> None:
    blocks = [(0,), (1,)]
    separate, interacting = (bias(dose_mdp(5, interaction), blocks) for interaction in (0.0, 0.5))
    assert separate.decomposed[1] == pytest.approx(separate.optimal)
    assert interacting.decomposed[1] < interacting.optimal - 0.1


def test_clinicians_give_much_or_little_of_both_drugs() -> None:
    policy = clinicians(11, 0.0)[6].reshape(11, 11)  # severity 1 of both
    levels = np.arange(11)
    first, second = (policy * levels[:, None]).sum(), (policy * levels).sum()
    covariance = (policy * np.outer(levels - first, levels - second)).sum()
    assert policy.sum() == pytest.approx(1)
    assert covariance > 1


@pytest.mark.slow(6)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    uninterrupted = JOB.execute(TINY, tmp_path / "whole")
    answers = iter([False] * 6 + [True] * 100)
    with pytest.raises(Cancelled):
        JOB.execute(TINY, tmp_path / "cut", should_stop=lambda: next(answers))
    resumed = JOB.execute(TINY, tmp_path / "cut")
    assert resumed["rows"] == uninterrupted["rows"]
    assert all(check["holds"] for check in resumed["checks"])
    (row,) = resumed["rows"]
    assert set(row["learners"]) == set(LEARNERS)
    assert row["optimal"] == pytest.approx(expected_return(dose_mdp(3, 0.5), greedy(optimal_q(dose_mdp(3, 0.5)))))
    assert (tmp_path / "whole" / "figures" / "doses.png").exists()


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("sizes", [3, 1]),
        ("interactions", [-1.0]),
        ("interactions", [np.inf]),
        ("updates", [-5, 10]),
        ("updates", [0]),
        *(("thresholds", [0.1, threshold]) for threshold in (np.nan, -3, 1, 5)),
    ],
)
def test_a_config_that_nothing_can_be_measured_with_is_refused(field: str, bad: list[float]) -> None:
    with pytest.raises(ValidationError, match=field):
        JOB.Config.model_validate({field: bad})


def test_a_drug_needs_two_doses() -> None:
    with pytest.raises(ValueError, match="1 doses: at least two"):
        dose_mdp(1, 0.0)
