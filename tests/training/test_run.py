"""A run folder: what a finished run leaves, and what a killed one goes on from."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from training.run import Cancelled, Job, JobConfig, Run, RunError, derive_seed


class WalkConfig(JobConfig):
    steps: int = 4


class Killed(BaseException):
    """Stands in for kill -9: nothing may catch it."""


def walk(config: WalkConfig, run: Run, die_at: int | None = None) -> dict:
    position = torch.zeros(())
    for step in range(config.steps):

        def move(step: int = step, position: torch.Tensor = position) -> torch.Tensor:
            draw = float(run.rng(step).normal())
            run.metrics({"step": step, "draw": draw})
            if step == die_at:
                raise Killed
            return position + draw

        position = run.step(f"position-{step}", move)
    run.check("walked", expected=config.steps, got=step + 1, holds=step + 1 == config.steps)
    return {"position": float(position)}


def dying(die_at: int | None) -> Job:
    return Job("walk", "A random walk", WalkConfig, lambda config, run: walk(config, run, die_at))


WALK = dying(None)


def test_a_finished_run_leaves_its_record(tmp_path: Path) -> None:
    result = WALK.execute({"steps": 3, "seed": 7}, tmp_path)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert result["config"] == {"seed": 7, "steps": 3}
    assert result["seeds"] == [7]
    assert result["checks"] == [{"name": "walked", "expected": 3, "got": 3, "holds": True}]
    assert set(result["versions"]) >= {"python", "torch", "transformers", "iro", "git"}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert sum(row["draw"] for row in rows) == pytest.approx(result["position"], abs=1e-6)


def test_a_killed_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole = WALK.execute({"seed": 3}, tmp_path / "whole")
    with pytest.raises(Killed):
        dying(2).execute({"seed": 3}, tmp_path / "killed")
    assert not (tmp_path / "killed" / "result.json").exists()
    resumed = WALK.execute({"seed": 3}, tmp_path / "killed")
    assert resumed == whole
    assert (tmp_path / "killed/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_finished_steps_are_not_computed_again(tmp_path: Path) -> None:
    run = Run(tmp_path, seed=0)
    assert run.step("a", lambda: {"x": torch.ones(2)})["x"].tolist() == [1, 1]
    assert Run(tmp_path, seed=0).step("a", pytest.fail)["x"].tolist() == [1, 1]


def test_a_folder_belongs_to_one_config(tmp_path: Path) -> None:
    WALK.execute({"steps": 2}, tmp_path)
    assert WALK.execute({"steps": 2}, tmp_path)["config"]["steps"] == 2
    with pytest.raises(RunError, match="another run"):
        WALK.execute({"steps": 3}, tmp_path)


class LaterConfig(WalkConfig):
    pace: float = 1.0


def test_a_run_of_an_earlier_version_goes_on_with_the_default_of_a_new_field(tmp_path: Path) -> None:
    later = Job("walk", "", LaterConfig, lambda config, run: {"pace": config.pace})
    WALK.execute({"steps": 2}, tmp_path)
    (tmp_path / "result.json").unlink()
    with pytest.raises(RunError, match="another run"):
        later.execute({"steps": 2, "pace": 2.0}, tmp_path)
    assert later.execute({"steps": 2}, tmp_path)["pace"] == 1


class MovableConfig(WalkConfig):
    movable = frozenset({"where"})

    where: str = "here"


def test_a_run_may_go_on_elsewhere_but_not_as_another(tmp_path: Path) -> None:
    there = Job("walk", "", MovableConfig, lambda config, run: {"where": config.where})
    WALK.execute({"steps": 2}, tmp_path)  # by a version that did not know of where
    (tmp_path / "result.json").unlink()
    assert there.execute({"steps": 2, "where": "there"}, tmp_path)["where"] == "there"
    with pytest.raises(RunError, match="another run"):
        there.execute({"steps": 3, "where": "there"}, tmp_path)


class ExtendableConfig(WalkConfig):
    extendable = frozenset({"steps"})


def test_a_finished_run_goes_on_to_the_steps_that_an_extendable_field_adds(tmp_path: Path) -> None:
    moved: list[int] = []

    def walk_on(config: ExtendableConfig, run: Run) -> dict:
        return {"squares": [run.step(str(i), lambda i=i: moved.append(i) or i * i) for i in range(config.steps)]}

    drawings: list[int] = []
    job = Job("walk", "", ExtendableConfig, walk_on, draw=lambda folder: drawings.append(len(moved)))
    assert job.execute({"steps": 2}, tmp_path)["squares"] == [0, 1]
    extended = job.execute({"steps": 4}, tmp_path)
    assert extended["squares"] == [0, 1, 4, 9] and extended["config"]["steps"] == 4
    assert moved == [0, 1, 2, 3] and drawings == [2, 4]
    assert json.loads((tmp_path / "config.json").read_text())["config"]["steps"] == 4
    assert job.execute({"steps": 2}, tmp_path)["squares"] == [0, 1] and len(moved) == 4
    with pytest.raises(RunError, match="another run"):
        job.execute({"steps": 4, "seed": 1}, tmp_path)


def test_an_interrupted_extension_does_not_pass_for_the_shorter_run(tmp_path: Path) -> None:
    def job(die_at: int | None) -> Job:
        return Job("walk", "", ExtendableConfig, lambda config, run: walk(config, run, die_at))

    job(None).execute({"steps": 2}, tmp_path / "extended")
    with pytest.raises(Killed):
        job(3).execute({"steps": 4}, tmp_path / "extended")
    uninterrupted = job(None).execute({"steps": 4}, tmp_path / "whole")
    assert job(None).execute({"steps": 4}, tmp_path / "extended") == uninterrupted


class FileConfig(JobConfig):
    rows: Path


def test_a_folder_belongs_to_its_input_files_too(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    read = Job("read", "", FileConfig, lambda config, run: {"text": config.rows.read_text()})
    rows.write_text("one")
    assert read.execute({"rows": rows}, tmp_path / "run")["text"] == "one"
    rows.write_text("two")
    with pytest.raises(RunError, match="another rows; choose another folder"):
        read.execute({"rows": rows}, tmp_path / "run")


@pytest.mark.parametrize("storage", [False, True])
@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
def test_a_run_that_fails_at_once_leaves_its_folder_to_a_corrected_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], storage: bool
) -> None:
    def refuse(config: WalkConfig, run: Run) -> dict:
        if config.steps < 3:
            raise error("too few steps")
        return walk(config, run)

    if storage:
        monkeypatch.setenv("IRO_STORAGE", f"file://{tmp_path}/store")
    refusing = Job("walk", "", WalkConfig, refuse)
    with pytest.raises(error, match="too few"):
        refusing.execute({"steps": 2}, tmp_path / "run")
    assert refusing.execute({"steps": 3}, tmp_path / "run")["config"]["steps"] == 3


def test_a_finished_run_without_figures_gets_them(tmp_path: Path) -> None:
    WALK.execute({}, tmp_path)
    draw = replace(WALK, draw=lambda folder: (folder / "figures" / "walk.png").touch())
    draw.execute({}, tmp_path)
    assert (tmp_path / "figures" / "walk.png").exists()


@pytest.mark.parametrize("remove", [lambda figures: (figures / "a.png").unlink(), None])
def test_figures_of_which_one_is_missing_are_drawn_again(remove: Callable[[Path], None] | None, tmp_path: Path) -> None:
    """One that was removed, or that a killed process did not come to."""
    drawings: list[Path] = []

    def draw(folder: Path) -> None:
        drawings.append(folder)
        (folder / "figures/a.png").touch()
        if remove is None and len(drawings) == 1:
            raise Killed
        (folder / "figures/b.png").touch()

    job = replace(WALK, draw=draw)
    with pytest.raises(Killed) if remove is None else nullcontext():
        job.execute({}, tmp_path)
    if remove:
        remove(tmp_path / "figures")
    for _ in range(2):
        job.execute({}, tmp_path)
        assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["a.png", "b.png"]
    assert len(drawings) == 2


def test_figures_of_a_shorter_run_are_drawn_again_where_an_extension_did_not_come_to_it(tmp_path: Path) -> None:
    drawings: list[int] = []

    def draw(folder: Path) -> None:
        drawings.append(json.loads((folder / "result.json").read_text())["config"]["steps"])
        if len(drawings) == 2:
            raise Killed
        (folder / "figures/walk.png").touch()

    job = Job("walk", "", ExtendableConfig, walk, draw=draw)
    job.execute({"steps": 2}, tmp_path)
    with pytest.raises(Killed):
        job.execute({"steps": 4}, tmp_path)
    job.execute({"steps": 4}, tmp_path)
    assert drawings == [2, 4, 4]


def test_a_folder_takes_one_process_at_a_time(tmp_path: Path) -> None:
    """A second one would cut off metrics.jsonl at the first one's last checkpoint."""

    def run_twice(config: WalkConfig, run: Run) -> dict:
        run.metrics({"step": 0})
        with pytest.raises(RunError, match=r"another process is working in .*; wait for it or choose another"):
            WALK.execute({}, tmp_path)
        return walk(config, run)

    replace(WALK, run=run_twice).execute({}, tmp_path)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    assert WALK.execute({}, tmp_path)["checks"][0]["holds"]


HOLD = "import sys, time; from pathlib import Path; from training.run_folder import hold\n"
HOLD += "with hold(Path(sys.argv[1])) as is_free: print(is_free, flush=True); time.sleep(60)"


def test_a_killed_process_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        with pytest.raises(RunError, match="another process"):
            WALK.execute({}, tmp_path)
        holder.kill()
    assert WALK.execute({}, tmp_path)["checks"][0]["holds"]


def test_a_file_system_without_locks_takes_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert WALK.execute({}, tmp_path)["checks"][0]["holds"]


def test_a_finished_run_is_read_from_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = WALK.execute({}, tmp_path)
    monkeypatch.setattr("training.run_folder.LOCK", "absent/lock")
    (tmp_path / "absent").touch()  # stands in for a read-only file system, which root cannot make of a folder
    monkeypatch.setattr("training.run_folder.READ_ONLY", {errno.ENOTDIR})
    assert WALK.execute({}, tmp_path) == result


def test_a_config_with_an_unknown_field_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="stepz"):
        WALK.execute({"stepz": 2}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cancelled_between_steps_and_resumable(tmp_path: Path) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Cancelled):
        WALK.execute({}, tmp_path, should_stop=lambda: next(asked))
    assert sorted(path.stem for path in (tmp_path / "checkpoints").iterdir()) == ["position-0", "position-1"]
    assert WALK.execute({}, tmp_path)["checks"][0]["holds"]


def test_seeds_run_apart_and_are_gathered(tmp_path: Path) -> None:
    result = WALK.execute({"seed": 5}, tmp_path, seeds=2)
    assert result["seeds"] == [5, 6]
    assert [check["seed"] for check in result["checks"]] == [5, 6]
    alone = WALK.execute({"seed": 6}, tmp_path / "alone")
    assert result["per_seed"][1]["position"] == alone["position"] != result["per_seed"][0]["position"]


def test_a_run_of_one_seed_and_one_of_several_keep_apart(tmp_path: Path) -> None:
    single = WALK.execute({"steps": 2}, tmp_path / "single")
    with pytest.raises(RunError, match="single holds a run of one seed; choose another folder for several seeds"):
        WALK.execute({"steps": 3}, tmp_path / "single", seeds=2)
    assert WALK.execute({"steps": 2}, tmp_path / "single") == single

    several = WALK.execute({"steps": 2}, tmp_path / "several", seeds=2)
    with pytest.raises(RunError, match="several holds a run of several seeds; choose another folder for a run of one"):
        WALK.execute({"steps": 2}, tmp_path / "several")
    assert WALK.execute({"steps": 2}, tmp_path / "several", seeds=2) == several


def test_other_seeds_of_the_same_config_alone_join_those_of_a_folder(tmp_path: Path) -> None:
    three = WALK.execute({"steps": 2}, tmp_path, seeds=3)
    for config, seeds in (({"steps": 3, "seed": 3}, 2), ({"steps": 3}, 2)):
        with pytest.raises(RunError, match=r"holds another run \(walk\); choose another folder"):
            WALK.execute(config, tmp_path, seeds=seeds)
    with pytest.raises(RunError, match=r"holds another run \(walk\); choose another folder"):
        replace(WALK, name="march").execute({"steps": 2, "seed": 3}, tmp_path, seeds=2)
    assert json.loads((tmp_path / "result.json").read_text()) == three
    assert sorted(path.name for path in tmp_path.glob("seed-*")) == ["seed-0", "seed-1", "seed-2"]
    assert WALK.execute({"steps": 2}, tmp_path, seeds=5)["per_seed"][:3] == three["per_seed"]


def test_other_seeds_are_of_the_same_input_files(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    read = Job("read", "", FileConfig, lambda config, run: {"text": config.rows.read_text()})
    rows.write_text("one")
    read.execute({"rows": rows}, tmp_path / "run", seeds=2)
    rows.write_text("two")
    with pytest.raises(RunError, match="run holds a run of another rows; choose another folder"):
        read.execute({"rows": rows, "seed": 2}, tmp_path / "run", seeds=2)


@pytest.mark.parametrize("seeds", [0, -1])
def test_a_run_has_a_seed(seeds: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"seeds: 1 or more, not {seeds}"):
        WALK.execute({}, tmp_path / "run", seeds=seeds)
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_of_several_seeds_takes_no_single_run(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        dying(1).execute({}, tmp_path, seeds=2)
    with pytest.raises(RunError, match="several seeds"):
        WALK.execute({}, tmp_path)
    assert WALK.execute({}, tmp_path, seeds=2)["seeds"] == [0, 1]


def test_a_refused_extension_leaves_the_record_to_its_config(tmp_path: Path) -> None:
    def refuse(config: ExtendableConfig, run: Run) -> dict:
        if config.steps > 2:
            raise ValueError("too many steps")
        return {"seed": config.seed}

    job = Job("walk", "", ExtendableConfig, refuse)
    assert job.execute({"steps": 2}, tmp_path)["seed"] == 0
    with pytest.raises(ValueError, match="too many"):
        job.execute({"steps": 4}, tmp_path)
    with pytest.raises(RunError, match="another run"):
        job.execute({"steps": 2, "seed": 1}, tmp_path)
    assert job.execute({"steps": 2}, tmp_path)["seed"] == 0


def test_events_carry_metrics_that_any_json_reader_accepts(tmp_path: Path) -> None:
    events: list[dict] = []
    run = Run(tmp_path, seed=0, on_event=events.append)
    run.metrics({"step": 1, "r2": float("nan")}, "Step 1/1")
    assert events == [{"type": "metrics", "level": "info", "message": "Step 1/1", "data": {"step": 1, "r2": None}}]
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)["r2"] is None


def test_seeds_of_paths_differ_but_for_trailing_zeros() -> None:
    assert derive_seed(5) == derive_seed(5, 0) and derive_seed(5, 1) == derive_seed(5, 1, 0)
    assert len({derive_seed(5, *path) for path in ((), (1,), (0, 1), (1, 1), (0, 0, 1))}) == 5
