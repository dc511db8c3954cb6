"""`iro run federated.fadas` on the real data, at a size that takes seconds."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from training.fashion_mnist import FILES, FOLDER
from training.federated.buffered import Event
from training.federated.comparison_summary import end, summary
from training.federated.experiment import METHODS, Curve, Trial, curve, settings, staleness
from training.federated.fadas import JOB, FadasConfig
from training.federated.fashion import FashionTask
from training.federated.schedule import Participation, retimed, schedule
from training.intervals import band
from training.run import Cancelled, RunError

needs_data = pytest.mark.skipif(not FOLDER.is_dir(), reason="apt install dataset-fashion-mnist")
TASK = {"clients": 12, "concurrency": 6, "buffer_size": 3, "hidden": 8, "local_steps": 2, "evaluate_every": 12}
TINY = TASK | {
    "methods": ("FADAS", "FedAsync", "FedAvg"),
    "seeds": 2,
    "updates": 36,
    "tuning_updates": 12,
    "steps": {"FADAS": 2e-3},
    "workers": 1,
}


@pytest.mark.slow(8)
@needs_data
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    job = replace(JOB, draw=None)
    uninterrupted = job.execute(TINY, tmp_path / "uninterrupted")
    for patience in (3, 8):  # among the trials of steps, then among the runs
        stop = iter([False] * patience + [True])
        with pytest.raises(Cancelled):
            job.execute(TINY, tmp_path / "cut", should_stop=lambda stop=stop: next(stop))
    assert job.execute(TINY, tmp_path / "cut") == uninterrupted
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("uninterrupted", "cut")]
    assert rows[0] == rows[1]
    for delays in ("mild", "large"):
        methods = uninterrupted["results"][delays]["methods"]
        assert methods["FedAvg"]["oldest"] == 0 < methods["FADAS"]["oldest"] < methods["FedAsync"]["oldest"]
        tried = uninterrupted["steps"][delays]["FedAsync"]["tried"]
        assert tried[str(methods["FedAsync"]["step"])] == max(tried.values())
        assert uninterrupted["results"][delays]["participation"].keys() == {"selection", "runs"}
    JOB.execute(TINY, tmp_path / "cut")  # a finished run draws what it has not drawn
    assert (tmp_path / "cut" / "figures" / "accuracy.png").exists()


@needs_data
@pytest.mark.slow(30)
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    job = replace(JOB, draw=None)
    single, double = (job.execute(TINY | {"workers": count}, tmp_path / str(count)) for count in (1, 2))
    assert single["results"] == double["results"]


@needs_data
@pytest.mark.slow(10)
def test_the_smoke_run_holds_its_golden_numbers(tmp_path: Path) -> None:
    result = JOB.execute(JOB.presets["smoke"], tmp_path)
    assert all(check["holds"] for check in result["checks"]), result["checks"]


@needs_data
def test_a_method_that_waits_learns_the_same_under_all_delays() -> None:
    mild, large = (Trial(FashionTask(**TASK), "FedAMS", 2e-3, delays, 1, 36) for delays in ("mild", "large"))
    mild_curve, large_curve = curve(mild), curve(large)
    predicted = retimed(mild_curve, large)
    assert predicted["times"] == large_curve["times"] and large_curve["times"][-1] > mild_curve["times"][-1]
    np.testing.assert_allclose(predicted["accuracy"], large_curve["accuracy"], atol=2e-3)  # sums are in another order
    assert set(mild_curve["staleness"]) == set(large_curve["staleness"]) == {0}


def test_who_is_at_work_and_how_many_answers_make_a_round() -> None:
    task = FashionTask()
    by_method = {
        name: settings(task, METHODS[name], 0) for name in ("FADAS", "FedAsync", "FedAvg", "FedAvg, all places")
    }
    assert {
        name: (options.concurrency, options.buffer_size, options.refill) for name, options in by_method.items()
    } == {
        "FADAS": (25, 5, "arrival"),
        "FedAsync": (25, 1, "arrival"),
        "FedAvg": (5, 5, "round"),
        "FedAvg, all places": (25, 25, "round"),
    }


def test_the_staleness_of_a_round_is_that_of_its_oldest_update() -> None:
    kinds = [("start", 0), ("arrive", 0), ("arrive", 0), ("update", 1), ("arrive", 1), ("arrive", 0), ("update", 2)]
    events = [Event(float(i), kind, None, version) for i, (kind, version) in enumerate(kinds)]
    assert staleness(events) == [0, 1]


def test_a_band_is_students_interval() -> None:
    interval = band([[1.0, 5.0], [3.0, 5.0]])
    assert interval["mean"] == [2.0, 5.0]
    np.testing.assert_allclose(interval["high"], [2 + 12.7062, 5], rtol=1e-5)  # t(0.975, 1) · 1
    assert band([[1.0]]) == {"mean": [1.0], "low": [1.0], "high": [1.0]}


@needs_data
def test_a_model_is_evaluated_after_more_rounds_with_the_same_final_accuracy() -> None:
    trial = Trial(FashionTask(**TASK), "FedAvg", 1.0, "large", 1, 24)
    regular, denser = curve(trial), curve(replace(trial, also_after=(1, 2, 4)))
    assert denser["rounds"] == [0, 1, 2, 4, 8] and denser["regular"] == [0, 3, 4]
    assert denser["times"] == [schedule(trial).times[rounds] for rounds in denser["rounds"]]
    assert [denser["accuracy"][i] for i in denser["regular"]] == regular["accuracy"]
    assert denser["updates"] == regular["updates"] == [0, 12, 24]


def curve_of(rounds: list[int], times: list[float], accuracy: list[float], oldest: int = 0) -> Curve:
    return {
        "rounds": rounds,
        "times": times,
        "accuracy": accuracy,
        "regular": [0, len(rounds) - 1],
        "updates": [0, 5 * rounds[-1]],
        "staleness": [oldest],
        "bound": 0,
    }


@needs_data
def test_a_trial_whose_clients_diverge_names_its_step() -> None:
    trial = Trial(FashionTask.model_validate(TASK | {"local_lr": 1e30}), "FADAS", 2e-3, "mild", 1, 12)
    with pytest.raises(
        ValueError, match=r"FADAS with the step 0\.002, mild delays, seed 1: .* not finite; lower local_lr"
    ):
        curve(trial)


@needs_data
def test_a_trial_in_a_worker_stops_between_evaluations_once_its_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    monkeypatch.setattr("training.workers._stop", stop)
    trial = Trial(FashionTask.model_validate(TASK), "FADAS", 2e-3, "mild", 1, 12)
    assert len(curve(trial)["rounds"]) == 2
    stop.set()
    with pytest.raises(Cancelled):
        curve(trial)


def test_the_final_accuracy_is_of_trained_models() -> None:
    """The evaluation before training is not among the last three of a run that has fewer."""
    regular = curve_of([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0.1, 0.5, 0.6, 0.7, 0.8]) | {"regular": [0, 1, 2, 3, 4]}
    assert end(regular) == pytest.approx((0.6 + 0.7 + 0.8) / 3)
    assert end(curve_of([0, 2], [0, 10], [0.1, 0.7])) == pytest.approx(0.7)


def test_a_folder_of_a_run_takes_no_other_data(tmp_path: Path) -> None:
    data, read_labels = tmp_path / "data", []
    data.mkdir()
    for file in FILES.values():
        (data / file).write_bytes(b"first")
    job = replace(JOB, draw=None, run=lambda config, run: {"labels": read_labels.append(config.data) or 1})
    job.execute({"data": data}, tmp_path / "out")
    (data / "readme.txt").write_text("of another file the run reads nothing")
    job.execute({"data": data}, tmp_path / "out")
    (data / FILES["test labels"]).write_bytes(b"second")
    with pytest.raises(RunError, match="out holds a run of another data; choose another folder"):
        job.execute({"data": data}, tmp_path / "out")
    assert len(read_labels) == 1


NOBODY: dict[str, Participation] = {}


def test_a_summary_ends_where_the_first_that_does_not_wait_ends() -> None:
    curves = {
        "FADAS": [curve_of([0, 2], [0, 10], [0, 1], 3), curve_of([0, 1, 2], [0, 9, 20], [0, 0.6, 1], 600)],
        "FedAvg": [curve_of([0, 2], [0, 40], [0, 0.8])] * 2,
    }
    result = summary(curves, {"FADAS": {"step": 2e-3}, "FedAvg": {"step": 1.0}}, NOBODY)
    assert result["horizon"] == 10
    assert result["methods"]["FADAS"]["at_horizon"]["mean"] == pytest.approx((1 + 0.6) / 2)
    assert result["methods"]["FADAS"]["at_horizon_per_seed"] == [1, 0.6]
    assert result["methods"]["FADAS"]["oldest"] == 600
    assert result["methods"]["FADAS"]["binding_min_rounds"] == 1  # 1/600 < 2e-3 < 1/3


def test_the_share_of_rounds_with_a_lower_step_is_of_all_rounds_of_all_seeds() -> None:
    seeds = [curve_of([0, 4], [0, 10], [0, 1]) | {"staleness": [0] * 4, "bound": bound} for bound in (1, 3)]
    result = summary({"FADAS": seeds}, {"FADAS": {"step": 2e-3}}, NOBODY)
    assert result["methods"]["FADAS"]["lowered_step_share"] == (1 + 3) / (2 * 4)


def test_seeds_may_differ_in_their_number_of_rounds() -> None:
    """Several rounds may end at the last instant, by a number that depends on the seed."""
    seeds = [
        curve_of([0, rounds], [0, 10], [0, 1]) | {"staleness": [1] * rounds, "bound": bound}
        for rounds, bound in ((4, 0), (5, 3))
    ]
    row = summary({"FADAS": seeds}, {"FADAS": {"step": 2e-3}}, NOBODY)["methods"]["FADAS"]
    assert (row["oldest"], row["mean_oldest"], row["lowered_step_share"]) == (1, 1.0, 3 / 9)


@needs_data
def test_a_trace_in_which_rounds_end_at_one_instant_has_a_result(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    durations = np.random.default_rng(0).choice([1, 2, 3, 5], 12)
    trace.write_text("client,duration\n" + "".join(f"{i},{value}\n" for i, value in enumerate(durations)))
    config = TINY | {"methods": ("FADAS",), "delays": ("trace",), "trace": trace, "buffer_size": 2, "seeds": 3}
    result = replace(JOB, draw=None).execute(config, tmp_path / "out")
    assert len(result["results"]["trace"]["methods"]["FADAS"]["per_seed"]) == 3


def test_the_accuracy_in_time_is_that_of_the_last_model_and_not_of_one_to_come() -> None:
    """FedAvg's second round ends after the horizon: of its way there nothing counts."""
    curves = {
        "FADAS": [curve_of([0, 2], [0, 10], [0.1, 0.7])],
        "FedAvg": [curve_of([0, 1, 2], [0, 4, 11], [0.1, 0.5, 0.9])],
        "FedAvg, all places": [curve_of([0, 1], [0, 11], [0.1, 0.9])],
    }
    methods = summary(curves, {method: {"step": 1.0} for method in curves}, NOBODY)["methods"]
    assert [methods[name]["at_horizon"]["mean"] for name in curves] == [0.7, 0.5, 0.1]
    assert [methods[name]["rounds_at_horizon"] for name in curves] == [[2], [1], [0]]
    assert methods["FedAvg"]["by_updates"]["mean"] == [0.1, 0.9]
    assert methods["FedAvg"]["by_time"]["mean"][15:17] == [0.1, 0.5]  # of 41 points until 10: at 3.75 and 4


@pytest.mark.parametrize("field", ["methods", "steps", "delays"])
def test_names_that_are_not_known_are_refused(field: str) -> None:
    with pytest.raises(
        ValidationError, match=f"no {'delay model' if field == 'delays' else 'method'} FADUS; there are"
    ):
        FadasConfig.model_validate({field: {"FADUS": 1.0} if field == "steps" else ["FADUS"]})


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("steps", {"FADAS": math.nan}, "finite"),
        ("steps", {"FADAS": 0.0}, "greater than 0"),
        ("grids", {"FADAS": [1e-3, -1.0]}, "greater than 0"),
        ("local_lr", math.inf, "finite"),
        ("alpha", math.inf, "finite"),
        ("weight_decay", math.nan, "finite"),
        ("golden", {"mild, FADSA": 0.8}, "no method FADSA"),
        ("golden", {"milder, FADAS": 0.8}, "no delay model milder"),
        ("methods", ["FADAS", "FedBuff", "FADAS"], "FADAS is named twice"),
        ("delays", ["mild", "mild"], "mild is named twice"),
        ("seed", -1, "greater than or equal to 0"),
    ],
)
def test_values_that_mean_nothing_are_refused_by_field(field: str, value: object, reason: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){field}.*{reason}"):
        FadasConfig.model_validate({field: value})


@pytest.mark.parametrize("field", ["updates", "tuning_updates"])
@pytest.mark.parametrize("value", [30, 120])
def test_updates_that_no_evaluation_ends_are_refused(field: str, value: int) -> None:
    with pytest.raises(ValidationError, match=f"{field} must be a multiple of evaluate_every, 50, unlike {value}"):
        FadasConfig.model_validate({field: value})


def test_updates_of_the_selection_do_not_matter_where_all_steps_are_given() -> None:
    FadasConfig(methods=("FADAS",), steps={"FADAS": 1e-3}, tuning_updates=30)


def test_a_grid_without_steps_is_refused() -> None:
    with pytest.raises(ValidationError, match="the grid of FADAS has no step to try"):
        FadasConfig.model_validate({"grids": {"FADAS": []}})


def test_fewer_clients_than_are_at_work_or_in_a_round_are_refused() -> None:
    with pytest.raises(ValidationError, match="concurrency 25 is more than the 10 clients there are"):
        FadasConfig(clients=10)
    few = {"clients": 10, "concurrency": 10, "buffer_size": 12}
    with pytest.raises(
        ValidationError, match="a round of FedAvg takes buffer_size clients, 12, more than the 10 there"
    ):
        FadasConfig.model_validate(few | {"methods": ("FADAS", "FedAvg")})
    FadasConfig.model_validate(few | {"methods": ("FADAS", "FedAvg, all places")})


def test_a_trace_needs_a_file_in_which_every_client_answers(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    config = {"clients": 2, "concurrency": 2, "buffer_size": 2, "delays": ("trace",)}
    with pytest.raises(ValidationError, match="the delay model trace takes a file: set trace"):
        FadasConfig.model_validate(config)
    path.write_text("client,duration\n0,1\n1,inf\n")
    with pytest.raises(ValidationError, match="has answers that never came"):
        FadasConfig.model_validate(config | {"trace": path})
    path.write_text("client,duration\n0,1\n0,2\n1,4\n")
    task = FadasConfig.model_validate(config | {"trace": path}).task
    assert schedule(Trial(task, "FedAvg", 1.0, "trace", 0, 4)).times == [0, 4, 8]


def test_without_the_data_the_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="apt install dataset-fashion-mnist"):
        JOB.execute(TINY | {"data": tmp_path}, tmp_path / "out")
