"""Flower for real: a SuperLink, its simulation runtime, and the ServerApp and ClientApps of `flower_app/`.

Two runs, for what takes longest is their start: one whose server crashes, and one that goes on from its checkpoint and
then has another server, with clients that are late.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from training.federated.buffered import Event, FederatedSettings
from training.federated.delays import Trace
from training.federated.flower_local import processes_of, run, superlink
from training.federated.rules import RULES, Layout
from training.federated.simulator import Simulator

ROOT = Path(__file__).parents[3]
BIN = ROOT / ".venv-flower" / "bin"
APP = Path(__file__).with_name("flower_app")
TASK = runpy.run_path(str(APP / "quadratic" / "task.py"))
CLIENTS, CONCURRENCY, BUFFER, LR = 8, 4, 2, 0.05
NAN, SHAPE, RAISES, LATE, VANISHES = 1, 2, 5, 4, 3
CRASH, ROUNDS = 4, 10

pytestmark = [
    pytest.mark.skipif(not (BIN / "flwr").exists(), reason=f"no {BIN}: `make flower` installs Flower"),
]

Start = Callable[..., Path]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Runs the app with these settings; gives the folder with what it wrote."""
    another_ray = {"RAY_ADDRESS": "127.0.0.1:1"}
    with patch.dict(os.environ, another_ray), superlink(bin=BIN) as env:

        def go(out: Path | None = None, **config: Any) -> Path:
            out = out or tmp_path_factory.mktemp("run")
            config = {"rounds": ROUNDS} | config
            values = [f'out="{out}"', *(f"{name.replace('_', '-')}={value}" for name, value in config.items())]
            federation = [
                f"num-supernodes={CLIENTS}",
                "client-resources-num-cpus=1",
                f"init-args-num-cpus={CONCURRENCY}",
            ]
            run(APP, env, federation, values)
            return out

        yield go
    assert processes_of(env["FLWR_HOME"]) == []


def test_the_server_with_a_grid_that_answers_at_once() -> None:
    cases = Path(__file__).with_name("flower_cases.py")
    done = subprocess.run(
        [str(BIN / "python"), str(cases)], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    assert len(done.stdout.splitlines()) == 13


BAD = {"nan": NAN, "shape": SHAPE, "raises": RAISES}


@pytest.fixture(scope="module")
def crashed(start: Start) -> tuple[list[Event], dict[str, Any]]:
    """What happened until the server crashed after round CRASH, and the checkpoint that it left."""
    out = start(crash_after=CRASH, **BAD)
    assert not (out / "result.pt").exists()
    return events_of(out), torch.load(out / "server.pt") | {"out": out}


@pytest.fixture(scope="module")
def resumed(start: Start, crashed: tuple[list[Event], dict[str, Any]]) -> tuple[list[Event], dict[str, Any]]:
    before, checkpoint = crashed
    out = start(checkpoint["out"], **BAD, late=LATE, vanishes=VANISHES)
    return events_of(out)[len(before) :], torch.load(out / "result.pt")


def events_of(out: Path, name: str = "events.jsonl") -> list[Event]:
    return [Event(*json.loads(line)) for line in (out / name).read_text().splitlines()]


def of(events: Sequence[Event], kind: str, client: int | None = None) -> list[Event]:
    return [event for event in events if event.kind == kind and (client is None or event.client == client)]


def replay(events: Sequence[Event], rounds: int) -> Simulator:
    """The simulator, where clients answer at the same instants and send the same, or something as bad."""
    instants = {time: tick for tick, time in enumerate(sorted({event.time for event in events}))}
    durations: dict[int, list[float]] = defaultdict(list)
    began: dict[int, float] = {}
    for event in events:
        if event.kind == "start":
            began[event.client] = instants[event.time]
        elif event.kind in ("arrive", "reject"):
            durations[event.client].append(instants[event.time] - began.pop(event.client))
    for client in began:
        durations[client].append(float("inf"))  # not before the run ended
    layout = Layout({name: torch.Size(shape) for name, shape in TASK["SHAPES"].items()})

    def train(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        answers = []
        for client, seed in zip(clients, seeds, strict=True):
            arrays = {name: tensor.numpy() for name, tensor in layout.unpack(params).items()}
            after = TASK["trained"](arrays, client, seed)
            delta = layout.pack({name: torch.from_numpy(array) for name, array in after.items()}) - params
            answers.append((delta * float("nan") if client in BAD.values() else delta, client + 1))
        return answers

    settings = FederatedSettings(clients=CLIENTS, concurrency=CONCURRENCY, buffer_size=BUFFER)
    zero = torch.zeros(sum(shape.numel() for shape in layout.shapes.values()), dtype=torch.float64)
    delays = Trace([durations[client] or [float("inf")] for client in range(CLIENTS)])
    simulator = Simulator(settings, RULES["fadas-divide"](lr=LR), train, delays, zero)
    replayed = simulator.run(rounds)
    assert [event[1:4] for event in replayed if event.kind in ("arrive", "reject", "update")] == [
        event[1:4] for event in events if event.kind in ("arrive", "reject", "update")
    ]
    return simulator


@pytest.mark.slow(30)
def test_the_simulator_given_the_same_arrivals_ends_with_the_same_model(
    crashed: tuple[list[Event], dict[str, Any]],
) -> None:
    events, checkpoint = crashed
    simulator = replay(events, CRASH)
    assert simulator.round == checkpoint["numbers"]["round"] >= CRASH
    assert torch.allclose(simulator.params, checkpoint["models"][simulator.round], rtol=0, atol=1e-6)
    for name in ("m", "v", "v_max"):
        assert torch.allclose(simulator.state[name], checkpoint["state"][name], rtol=0, atol=1e-6)
    assert simulator.params.norm() > 0.01
    assert max(event.version for event in of(events, "arrive")) > min(event.version for event in of(events, "arrive"))


@pytest.mark.slow(20)
def test_a_server_that_crashed_goes_on_as_if_it_had_not(
    crashed: tuple[list[Event], dict[str, Any]], resumed: tuple[list[Event], dict[str, Any]]
) -> None:
    """Those at work when it crashed are asked again, with the model and the seed that they had."""
    before, checkpoint = crashed
    after, result = resumed
    assert checkpoint["pending"]
    last = before[-1].time
    all_events = [*before, *(event._replace(time=last + 1 + event.time) for event in after)]
    # Those places that were free when it crashed were filled at the instant of its last round.
    first = next(event.time for event in all_events[len(before) :])
    all_events = [
        event._replace(time=last) if event.kind == "start" and event.time == first else event for event in all_events
    ]
    simulator = replay(all_events, ROUNDS)
    assert simulator.round == result["round"]
    layout = Layout.of(result["model"])
    assert torch.allclose(simulator.params, layout.pack(result["model"]), rtol=0, atol=1e-6)
    assert torch.allclose(simulator.state["v_max"], result["state"]["v_max"], rtol=0, atol=1e-6)


@pytest.mark.slow(93)
@pytest.mark.parametrize(
    ("client", "note"),
    [
        (NAN, "1 of 7 values are not finite"),
        (SHAPE, "shape (5,) was sent, shape (3,) is needed"),
        (RAISES, "no memory left"),
    ],
)
def test_what_cannot_be_used_is_rejected_and_the_run_goes_on(
    client: int, note: str, crashed: tuple[list[Event], dict[str, Any]], resumed: tuple[list[Event], dict[str, Any]]
) -> None:
    events = [*crashed[0], *resumed[0]]
    assert of(events, "reject", client) and not of(events, "arrive", client)
    assert all(note in event.note for event in of(events, "reject", client))
    assert resumed[1]["round"] >= ROUNDS
    assert all(tensor.isfinite().all() for tensor in resumed[1]["model"].values())


@pytest.fixture(scope="module")
def delayed(
    crashed: tuple[list[Event], dict[str, Any]], resumed: tuple[list[Event], dict[str, Any]]
) -> tuple[list[Event], dict[str, Any]]:
    out = crashed[1]["out"]
    return events_of(out, "delayed.jsonl"), torch.load(out / "delayed.pt")


@pytest.mark.slow(60)
def test_a_client_that_answers_late_is_given_up_and_its_answer_thrown_away(
    delayed: tuple[list[Event], dict[str, Any]],
) -> None:
    events, result = delayed
    assert of(events, "late", LATE) and not of(events, "arrive", LATE)
    assert "too late" in of(events, "reject", LATE)[0].note
    assert result["round"] >= result["noticed"] + 2


@pytest.mark.slow(60)
def test_a_client_that_vanishes_is_given_up_and_the_run_goes_on(delayed: tuple[list[Event], dict[str, Any]]) -> None:
    events, result = delayed
    assert of(events, "late", VANISHES)[0].note == "no answer within 4 s"
    assert not of(events, "arrive", VANISHES)
    assert all("too late" in event.note for event in of(events, "reject", VANISHES))  # Flower may answer in its place
    assert of(events, "arrive")[-1].time > of(events, "late", VANISHES)[0].time
    assert result["round"] >= result["noticed"] + 2


@pytest.mark.slow
def test_the_example_learns_and_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [
        str(BIN / "python"),
        "-m",
        "training.federated.flower_local",
        str(ROOT / "training/federated/flower_app"),
    ]
    home = {"TMPDIR": str(tmp_path)}
    done = subprocess.run([*command, "slow=0.02"], cwd=ROOT, env=os.environ | home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    accuracies = [float(line.split()[2]) for line in done.stdout.splitlines() if "of the test digits" in line]
    assert accuracies[-1] > 0.6 > accuracies[0]
    assert not list(tmp_path.glob("flwr-*"))
    remaining = [pid for pid in Path("/proc").glob("[0-9]*") if started_in(tmp_path, pid)]
    assert remaining == []


def started_in(folder: Path, process: Path) -> bool:
    try:
        return f"TMPDIR={folder}".encode() in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


@pytest.mark.slow
def test_an_app_that_fails_is_told_of(tmp_path: Path) -> None:
    command = [str(BIN / "python"), "-m", "training.federated.flower_local", str(APP), f'out="{tmp_path}"', "rounds=2"]
    done = subprocess.run([*command, "crash-after=1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "the run has failed" in done.stderr
