"""Real processes under torchrun: the stacked engine's trajectory, who talks to whom, and the death of one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from training.bilevel.launch import Launch, advance, begin, main, mixing_of, solver_of
from training.bilevel.processes import Processes

PROCESSES = 3  # 8 agents in blocks of 2, 3 and 3
FRAME = 144  # bytes that gloo adds to a message: three headers


def torchrun(out: Path, **settings: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    command += ["-m", "training.bilevel.launch", f"out={out}", *(f"{key}={value}" for key, value in settings.items())]
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(out: Path, **settings: Any) -> dict[str, Any]:
    process = torchrun(out, **settings)
    said = process.communicate(timeout=550)[0]
    assert process.returncode == 0, said
    return json.loads((out / "result.json").read_text())


def stacked(**settings: Any) -> torch.Tensor:
    config = Launch.model_validate(settings)
    solver = solver_of(config, mixing_of(config))
    return advance(config, solver, begin(config, solver), 0, config.steps).records


def kill_a_worker(process: subprocess.Popen[str], out: Path) -> str:
    """SIGKILL to process 1 once all have saved a checkpoint; what the others say."""
    deadline = time.monotonic() + 550
    while len({path.parent for path in out.glob("process-*/*.pt")}) < PROCESSES:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    [victim] = [child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == "1"]
    victim.kill()
    return process.communicate(timeout=550)[0]


def test_sparkle_survives_the_death_of_a_process(tmp_path: Path) -> None:
    settings = {"lower": "ED", "upper": "ATC-GT", "noise": 0.1, "record_every": 1, "checkpoint_every": 20}
    process = torchrun(tmp_path / "killed", **settings, steps=1_000_000)
    said = kill_a_worker(process, tmp_path / "killed")
    assert process.returncode != 0
    # Whoever hears of it from the network names it; whom torchrun tells first does not, but torchrun does.
    assert "Error: lost process 1 of 3 (agents 2 to 4): start" in said or "rank      : 1 (local_rank: 1)" in said
    assert ": start the same command again to go on from the last checkpoint" in said
    steps = 40 + max(int(path.stem) for path in (tmp_path / "killed").glob("process-*/*.pt"))
    resumed = finished(tmp_path / "killed", **settings, steps=steps)
    assert resumed["steps"] < steps
    whole = finished(tmp_path / "whole", **settings, steps=steps)
    assert resumed["x"] == whole["x"]
    expected = stacked(**settings, steps=steps)
    torch.testing.assert_close(torch.tensor(whole["x"], dtype=expected.dtype), expected, rtol=0, atol=1e-10)
    # Rows of 4 + 4 and 3 float64, two agents' to two neighbours; rounds: ED one each for A and B², ATC-GT two each.
    messages, rows = 2 * (2 + 4), 2 * (2 * 8 + 4 * 3)
    assert whole["sent"] == pytest.approx([steps * (messages * FRAME + 8 * rows)] * PROCESSES, rel=0.03)


def test_ef_soba_is_the_same_on_fewer_bytes(tmp_path: Path) -> None:
    settings = {"algorithm": "ef-soba", "x_size": 100, "y_size": 100, "noise": 0.1, "record_every": 1, "steps": 60}
    found = finished(tmp_path, **settings, k=5)
    expected = stacked(**settings, k=5)
    torch.testing.assert_close(torch.tensor(found["x"], dtype=expected.dtype), expected, rtol=0, atol=1e-10)
    # A worker of 3 agents: 3 messages each of 5 float64 and 5 indices of 7 bits; whole vectors would take 7,200 bytes.
    assert found["sent"][1] == pytest.approx(60 * (3 * 3 * (40 + 5) + FRAME), rel=0.03)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("lower=GT", "no strategy GT: take one of ED, EXTRA, ATC-GT, semi-ATC-GT, non-ATC-GT"),
        ("steps=0", "steps: Input should be greater than or equal to 1"),
        ("agents=2", "2 agents cannot fill 3 processes; start at most one an agent"),
    ],
)
def test_bad_settings_are_one_line(
    argument: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.bilevel.processes.dist", Alone())
    assert main([f"out={tmp_path}", argument]) == 2
    assert capsys.readouterr().err == f"Error: {says}\n"


class Alone:
    """torch.distributed as process 0 of 3 sees it, while nobody talks."""

    def init_process_group(self, backend: str, timeout: object) -> None: ...
    def destroy_process_group(self) -> None: ...
    def barrier(self) -> None: ...
    def get_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return 3


def test_agents_who_are_no_neighbours_do_not_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.bilevel.processes.dist", Alone())
    network = Processes(8, [mixing_of(Launch())])
    with pytest.raises(ValueError, match="agents who are no neighbours would have to talk"):
        network.mix(mixing_of(Launch(topology="exponential")), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="the network has 8 agents, the algorithm 4: make them equal"):
        network.held(4)
