"""A job over a Ray cluster of two nodes on this machine: the same result, whatever becomes of a node."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from iro_server.placement import Placement
from tests.training.iro.test_loop import comparable, metrics_of
from tests.training.iro.toy_job import Toy, job
from training.iro.cluster import ray_executor
from training.iro.config import AlignConfig
from training.iro.data import AlignError
from training.iro.loop import align
from training.iro.pool import ClusterUnavailable
from training.iro.values import Bundles
from training.run import Cancelled, Job, Run

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'iro[ray]'")
from ray.cluster_utils import Cluster  # noqa: E402

Hook = Callable[[dict[str, Any]], None]


class Slow(Toy):
    """Says in ``folder`` when and where it samples, and takes its time."""

    def __init__(self, folder: Path, seconds: float) -> None:
        super().__init__()
        self.folder, self.seconds = folder, seconds

    async def open(self, *args: Any, **kwargs: Any) -> Any:
        (self.folder / f"{os.getpid()}-{uuid4().hex}").touch()
        time.sleep(self.seconds)
        return await super().open(*args, **kwargs)


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head without room for engines, and two nodes with room for one each."""
    before = {process.pid for process in psutil.process_iter()}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()
    assert not left_behind(before)


def left_behind(before: set[int], seconds: float = 10) -> list[str]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = []
        for process in psutil.process_iter(["pid", "cmdline", "status"]):
            command = " ".join(process.info["cmdline"] or ())
            if process.pid not in before and "ray" in command and process.info["status"] != psutil.STATUS_ZOMBIE:
                left.append(command[:120])
        if not left:
            return []
        time.sleep(0.2)
    return left


def over(address: str | None, folder: Path, seconds: float = 0.0, **placement: Any) -> Job:
    folder.mkdir(exist_ok=True)
    opening = partial(Slow, folder, seconds)

    def run(config: AlignConfig, run: Run) -> dict[str, Any]:
        where = Placement(executor="ray", ray_address=address, **placement)
        with ray_executor(where, run, config, Bundles(Toy.info, config.model_dir), opening) as executor:
            return align(config, run, Toy(), executor)

    return Job("align", "", AlignConfig, run)


def sampled_by(folder: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in folder.iterdir()}


def test_the_result_is_that_of_one_process(nodes: Cluster, config: AlignConfig, tmp_path: Path) -> None:
    whole = job().execute(config, tmp_path / "whole")
    spread = over(nodes.address, tmp_path / "sampled").execute(config, tmp_path / "spread")
    assert comparable(spread) == comparable(whole)
    assert metrics_of(tmp_path / "spread") == metrics_of(tmp_path / "whole")
    assert len(sampled_by(tmp_path / "sampled")) >= 2
    assert str(os.getpid()) not in sampled_by(tmp_path / "sampled")
    for t in (1, 2):
        bundles = [tmp_path / name / "iterations" / str(t) / "value.safetensors" for name in ("whole", "spread")]
        assert bundles[0].read_bytes() == bundles[1].read_bytes()


def test_a_node_that_dies_costs_nothing_but_time(nodes: Cluster, config: AlignConfig, tmp_path: Path) -> None:
    """Its raylet and all of its processes get SIGKILL while an engine of it is at work."""
    whole = job().execute(config, tmp_path / "whole")
    node = nodes.list_all_nodes()[-1]
    victims: list[psutil.Process] = []

    def kill(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and event["data"]["done"] == 5:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            victims.extend([*raylet.children(recursive=True), raylet])
            for victim in victims:
                victim.send_signal(signal.SIGKILL)

    sampled = tmp_path / "sampled"
    result = over(nodes.address, sampled, 0.05).execute(config, tmp_path / "spread", on_event=kill)
    assert sampled_by(sampled) & {str(victim.pid) for victim in victims}
    assert comparable(result) == comparable(whole)
    assert metrics_of(tmp_path / "spread") == metrics_of(tmp_path / "whole")


def test_a_job_that_is_stopped_leaves_no_work_behind(nodes: Cluster, config: AlignConfig, tmp_path: Path) -> None:
    """And goes on in one process, to the same result."""
    sampled = tmp_path / "sampled"
    stopping = over(nodes.address, sampled, 0.3)
    with pytest.raises(Cancelled):
        stopping.execute(config, tmp_path / "run", should_stop=lambda: len(list(sampled.iterdir())) > 20)
    for pid in map(int, sampled_by(sampled)):
        with pytest.raises(psutil.NoSuchProcess):
            psutil.Process(pid).wait(10)
    assert comparable(job().execute(config, tmp_path / "run")) == comparable(job().execute(config, tmp_path / "whole"))


def test_without_an_address_the_cluster_ends_with_the_job(config: AlignConfig, tmp_path: Path) -> None:
    before = {process.pid for process in psutil.process_iter()}
    whole = job().execute(config, tmp_path / "whole")
    result = over(None, tmp_path / "sampled").execute(config, tmp_path / "run")
    assert comparable(result) == comparable(whole)
    assert not left_behind(before)


def test_a_graders_own_error_comes_back_as_it_was(nodes: Cluster, config: AlignConfig, tmp_path: Path) -> None:
    broken = config.model_copy(update={"grader": {"type": "python", "source": "def grade(sample, item):\n    1 / 0\n"}})
    with pytest.raises(AlignError, match="division by zero") as failure:
        over(nodes.address, tmp_path / "sampled").execute(broken, tmp_path / "run")
    assert failure.value.code == "grader_error"


def test_a_cluster_that_is_not_there_is_named(config: AlignConfig, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ClusterUnavailable, match=rf"no Ray cluster at {address} \(IRO_RAY_ADDRESS\)"):
            over(address, tmp_path / "sampled").execute(config, tmp_path / "run")
    with pytest.raises(ClusterUnavailable, match="host:port"):
        over("somewhere", tmp_path / "sampled").execute(config, tmp_path / "other")
