"""Real processes under torchrun: the stacked engine's trajectory, who talks to whom, and the death of one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from training.bilevel.algorithms.method import FLOAT_BYTES, RING_NEIGHBOURS, ProblemSetup
from training.bilevel.algorithms.sparkle import METHODS
from training.bilevel.distributed.processes import Processes
from training.bilevel.launch import LaunchConfig, advance, begin, main, mixing_of, solver_of
from training.bilevel.problems import quadratic

Setting = str | int | float
PROCESSES = 3  # 8 agents in blocks of 2, 3 and 3
FRAME = 144  # bytes that gloo adds to a message: three headers


def torchrun(out: Path, **settings: Setting) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    command += ["-m", "training.bilevel.launch", f"out={out}", *(f"{key}={value}" for key, value in settings.items())]
    root = Path(__file__).parents[4]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(out: Path, **settings: Setting) -> dict[str, list]:
    process = torchrun(out, **settings)
    output = process.communicate(timeout=550)[0]
    assert process.returncode == 0, output
    return json.loads((out / "result.json").read_text())


def stacked(**settings: Setting) -> torch.Tensor:
    config = LaunchConfig.model_validate(settings)
    solver = solver_of(config, mixing_of(config))
    return advance(config, solver, begin(config, solver), 0, config.steps).records


def kill_a_worker(process: subprocess.Popen[str], out: Path) -> str:
    """SIGKILL to process 1 once all have saved a checkpoint. Returns the output of the other processes."""
    deadline = time.monotonic() + 550
    while len({path.parent for path in out.glob("process-*/*.pt")}) < PROCESSES:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    [victim] = [child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == "1"]
    victim.kill()
    return process.communicate(timeout=550)[0]


@pytest.mark.slow(30)
def test_sparkle_survives_the_death_of_a_process(tmp_path: Path) -> None:
    settings = {"lower": "ED", "upper": "ATC-GT", "noise": 0.1, "record_every": 1, "checkpoint_every": 20}
    process = torchrun(tmp_path / "killed", **settings, steps=1_000_000)
    output = kill_a_worker(process, tmp_path / "killed")
    assert process.returncode != 0
    # A process that loses its connection names the peer; if torchrun stops it first, torchrun names the process.
    assert "Error: lost process 1 of 3 (agents 2 to 4): start" in output or "rank      : 1 (local_rank: 1)" in output
    assert ": start the same command again to go on from the last checkpoint" in output
    steps = 40 + max(int(path.stem) for path in (tmp_path / "killed").glob("process-*/*.pt"))
    resumed = finished(tmp_path / "killed", **settings, steps=steps)
    assert resumed["steps"] < steps
    uninterrupted = finished(tmp_path / "uninterrupted", **settings, steps=steps)
    assert resumed["x"] == uninterrupted["x"]
    expected = stacked(**settings, steps=steps)
    torch.testing.assert_close(torch.tensor(uninterrupted["x"], dtype=expected.dtype), expected, rtol=0, atol=1e-10)
    # Rows of 4 + 4 and 3 float64, two agents' to two neighbours; rounds: ED one each for A and B², ATC-GT two each.
    messages, rows = 2 * (2 + 4), 2 * (2 * 8 + 4 * 3)
    assert uninterrupted["sent"] == pytest.approx([steps * (messages * FRAME + 8 * rows)] * PROCESSES, rel=0.03)


@pytest.mark.slow(12)
def test_ef_soba_is_the_same_on_fewer_bytes(tmp_path: Path) -> None:
    settings = {"algorithm": "ef-soba", "x_size": 100, "y_size": 100, "noise": 0.1, "record_every": 1, "steps": 60}
    result = finished(tmp_path, **settings, k=5)
    expected = stacked(**settings, k=5)
    torch.testing.assert_close(torch.tensor(result["x"], dtype=expected.dtype), expected, rtol=0, atol=1e-10)
    # A worker of 3 agents: 3 messages each of 5 float64 and 5 indices of 7 bits; whole vectors would take 7,200 bytes.
    assert result["sent"][1] == pytest.approx(60 * (3 * 3 * (40 + 5) + FRAME), rel=0.03)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("lower=GT", "no strategy GT: take one of ED, EXTRA, ATC-GT, semi-ATC-GT, non-ATC-GT"),
        ("steps=0", "steps: Input should be greater than or equal to 1"),
        ("k=0", "k: Input should be greater than or equal to 1"),
        ("x_size=-1", "x_size: Input should be greater than or equal to 1"),
        ("y_size=0", "y_size: Input should be greater than or equal to 1"),
        ("timeout=inf", "timeout: Input should be a finite number"),
        ("noise=nan", "noise: Input should be a finite number"),
        ("heterogeneity=inf", "heterogeneity: Input should be a finite number"),
        ("--help", "--help: give settings as key=value, such as steps=1000"),
        ("agents=2", "2 agents cannot fill 3 processes; start at most one per agent"),
    ],
)
def test_bad_settings_are_one_line(
    argument: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.bilevel.distributed.processes.dist", Alone())
    assert main([f"out={tmp_path}", argument]) == 2
    assert capsys.readouterr().err == f"Error: {message}\n"


class Alone:
    """torch.distributed for process 0 of 3, without the others."""

    def init_process_group(self, backend: str, timeout: object) -> None: ...
    def destroy_process_group(self) -> None: ...
    def barrier(self) -> None: ...
    def get_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return 3


def test_agents_who_are_no_neighbours_do_not_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.bilevel.distributed.processes.dist", Alone())
    network = Processes(8, [mixing_of(LaunchConfig())])
    with pytest.raises(ValueError, match="agents that are not neighbours would communicate"):
        network.mix(mixing_of(LaunchConfig(topology="exponential")), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="the network has 8 agents, the algorithm 4: make them equal"):
        network.held(4)


class Single(Alone):
    """torch.distributed for one process."""

    def get_world_size(self) -> int:
        return 1

    def all_gather_object(self, values: list[object], value: object) -> None:
        values[0] = value

    def broadcast(self, tensor: torch.Tensor, source: int) -> None: ...


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.bilevel.distributed.processes.dist", Single())


def test_a_refused_config_leaves_the_folder_to_a_corrected_one(
    single: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"out={tmp_path / 'run'}", "algorithm=ef-soba", "steps=20"]
    assert main([*arguments, "k=9"]) == 2
    expected = "Error: k: must be between 1 and the 3 coordinates of a message, not 9\n"
    assert capsys.readouterr().err == expected and not (tmp_path / "run").exists()
    assert main([*arguments, "k=2"]) == 0
    assert main([*arguments, "k=1"]) == 2
    assert capsys.readouterr().err == f"Error: {tmp_path / 'run'} holds another run; choose another folder\n"


def test_a_folder_that_cannot_be_made_is_one_line(
    single: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([f"out={tmp_path}/file/run", "steps=20"]) == 2
    error = capsys.readouterr().err
    assert error == f"Error: out: [Errno 20] Not a directory: '{tmp_path}/file/run'; choose a folder to write to\n"


def test_more_steps_extend_a_run_and_fewer_are_refused(
    single: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"out={tmp_path}", "steps=20"]) == main([f"out={tmp_path}", "steps=40"]) == 0
    extended = json.loads((tmp_path / "result.json").read_text())
    assert torch.equal(torch.tensor(extended["x"]), stacked(steps=40).to(torch.tensor(extended["x"])))
    assert main([f"out={tmp_path}", "steps=20"]) == 2
    expected = f"Error: steps: {tmp_path} has a checkpoint of step 40; take as many or more, or another folder\n"
    assert capsys.readouterr().err == expected
    assert json.loads((tmp_path / "result.json").read_text()) == extended


@pytest.mark.parametrize(
    ("method", "exchanged", "counted"), [("D-SOBA", 1, 1), ("ED", 2, 1), ("EXTRA", 2, 1), ("ATC-GT", 4, 2)]
)
def test_bytes_count_the_textbook_recursion_and_processes_exchange_more(
    method: str, exchanged: int, counted: int, single: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    W, x, y = mixing_of(LaunchConfig()), torch.zeros(3), torch.zeros(4)
    setup = ProblemSetup(quadratic.PROBLEM, W, x, y, alpha=0.1, beta=0.2, theta=0.5, sent_share=1.0)
    network, widths = Processes(8, [W]), []
    exchange = network._exchange
    monkeypatch.setattr(network, "_exchange", lambda route, rows: widths.append(rows.shape[1]) or exchange(route, rows))
    sparkle = replace(METHODS[method].build(setup), network=network)
    batch = quadratic.draw(8, x_size=3, y_size=4, heterogeneity=1.0, seed=0)
    sparkle.step(sparkle.start(x.double(), y.double(), batch), batch)
    assert sum(widths) == exchanged * (3 + 2 * 4)
    assert METHODS[method].bytes_sent(setup) == counted * (3 + 2 * 4) * FLOAT_BYTES * RING_NEIGHBOURS
