"""A job over a Ray cluster of two nodes on this machine: the same result, whatever becomes of a node."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from iro_server.alignment.placement import Placement
from iro_server.engines.ports import free_port
from iro_server.jobs import lock
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import ended, serving, settings_for, wait_for
from tests.training.iro.ray_job import Marked, ray_job
from tests.training.iro.test_loop import comparable, metrics_of
from tests.training.iro.toy_job import COUNT_ONES, job
from tests.value_heads.lora import write_model
from training.iro.config import AlignConfig
from training.iro.data import AlignError
from training.iro.pool import ClusterUnavailable
from training.run import Cancelled

pytest.importorskip("ray", reason="Ray is not installed: pip install 'iro-align[ray]'")
from ray.cluster_utils import Cluster

RAY_JOB = "tests.training.iro.ray_job:JOB"


@pytest.fixture(scope="module", autouse=True)
def token() -> Iterator[None]:
    """Else Ray makes one in the user's home. All clusters of a process have the first that it reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        yield


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head without room for engines, and two nodes with room for one each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    family = {process.pid for process in psutil.Process().children(recursive=True)}
    cluster.shutdown()
    wait_for(lambda: not family & of_ray())


def living(attributes: list[str]) -> list[psutil.Process]:
    """Without those that nobody has buried, as process 1 of a container may not."""
    processes = psutil.process_iter([*attributes, "status"])
    return [process for process in processes if process.info["status"] != psutil.STATUS_ZOMBIE]


def of_ray() -> set[int]:
    """Ray's processes, others' too."""
    commands = {process.pid: " ".join(process.info["cmdline"] or ()) for process in living(["cmdline"])}
    return {pid for pid, command in commands.items() if "ray::" in command or "site-packages/ray/" in command}


def over(nodes: Cluster) -> Placement:
    return Placement(executor="ray", ray_address=nodes.address)


def start(client: Any) -> str:
    rows = "".join(json.dumps({"prompt": f"{n:06b}"}) + "\n" for n in range(40))
    file = client.files.create(file=("rows.jsonl", rows.encode()), purpose="fine-tune").id
    iro = {"iterations": 2, "max_tokens": 6, "rollouts_per_prompt": 8, "validation_prompts": 8}
    grader = {"type": "python", "name": "ones", "source": COUNT_ONES}
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "iro": iro}}
    return client.fine_tuning.jobs.create(model="bytes", training_file=file, method=method, seed=1).id


def works(run: Path) -> bool:
    return any(process.pid in sampled_by(run) for process in living([]))


def sampled_by(run: Path) -> set[int]:
    """The processes that sampled for a run."""
    return {int(path.name.partition("-")[0]) for path in (run / "sampled").glob("*")}


@pytest.fixture
def reference(config: AlignConfig, tmp_path: Path) -> dict[str, Any]:
    return job().execute(config, tmp_path / "whole")


@pytest.mark.slow(60)
def test_the_result_is_that_of_one_process(nodes: Cluster, config: AlignConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"concurrency": 2})  # batches for both nodes
    reference = job().execute(config, tmp_path / "whole")
    result = ray_job(over(nodes), seconds=0.1).execute(config, tmp_path / "run")
    assert comparable(result) == comparable(reference)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert len(sampled_by(tmp_path / "run")) == 2 and os.getpid() not in sampled_by(tmp_path / "run")
    for t in (1, 2):
        bundles = [tmp_path / name / "iterations" / str(t) / "value.safetensors" for name in ("whole", "run")]
        assert bundles[0].read_bytes() == bundles[1].read_bytes()


@pytest.mark.slow
def test_a_stopped_job_leaves_no_work_behind_and_goes_on_in_one_process(
    nodes: Cluster, config: AlignConfig, reference: dict[str, Any], tmp_path: Path
) -> None:
    sampled = tmp_path / "run/sampled"
    with pytest.raises(Cancelled):
        ray_job(over(nodes), seconds=0.3).execute(
            config, tmp_path / "run", should_stop=lambda: len(list(sampled.iterdir())) > 20
        )
    wait_for(lambda: not works(tmp_path / "run"))
    assert comparable(job().execute(config, tmp_path / "run")) == comparable(reference)


@pytest.mark.slow
def test_what_is_raised_on_a_node_is_raised_by_the_job(nodes: Cluster, config: AlignConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^sleep length must be non-negative$"):  # not in Ray's words
        ray_job(over(nodes), seconds=-1).execute(config, tmp_path / "run")
    broken = config.model_copy(update={"grader": {"type": "python", "source": "def grade(sample, item):\n    1 / 0\n"}})
    with pytest.raises(AlignError, match="division by zero") as failure:
        ray_job(over(nodes)).execute(broken, tmp_path / "other")
    assert failure.value.code == "grader_error"


def test_a_cluster_that_is_not_there_is_named(config: AlignConfig, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ClusterUnavailable, match=rf"no Ray cluster at {address} \(IRO_RAY_ADDRESS\)"):
        ray_job(Placement(ray_address=address)).execute(config, tmp_path / "run")
    with pytest.raises(ClusterUnavailable, match="host:port"):
        ray_job(Placement(ray_address="somewhere")).execute(config, tmp_path / "other")


@pytest.mark.slow
def test_a_servers_job_is_paused_and_resumed_on_the_cluster(nodes: Cluster, tmp_path: Path) -> None:
    placement = {"executor": "ray", "ray_address": nodes.address, "storage": f"file://{tmp_path}/storage"}
    settings = settings_for(tmp_path, align_entry=RAY_JOB, cancel_grace=20.0, **placement)
    with serving(settings, ByteEngine()) as client:
        id, jobs = start(client), client.fine_tuning.jobs
        run = settings.job_dir(id) / "run"
        wait_for(lambda: len(list((run / "sampled").glob("*"))) > 20)
        assert jobs.pause(id).status == "paused"
        wait_for(lambda: lock.holder(settings.job_dir(id)) is None)
        wait_for(lambda: not works(run))
        assert not (run / "checkpoints").exists() and list((tmp_path / "storage").glob("align-run-*/*-rollouts.pt"))
        jobs.resume(id)
        assert ended(client, id).status == "succeeded"


@pytest.mark.slow
def test_a_killed_driver_takes_its_own_cluster_along(tmp_path: Path) -> None:
    settings = settings_for(
        tmp_path, align_entry="tests.training.iro.ray_job:JOB", heartbeat_timeout=60.0, executor="ray"
    )
    with serving(settings.model_copy(update={"job_restarts": 0}), ByteEngine()) as client:
        id = start(client)
        run = settings.job_dir(id) / "run"
        wait_for(lambda: list((run / "sampled").glob("*")))
        driver = lock.holder(settings.job_dir(id))
        family = {pid for pid in of_ray() if os.getsid(pid) == driver}  # a worker has a session of its own
        assert sampled_by(run) <= family
        os.kill(driver, signal.SIGKILL)
        assert ended(client, id).status == "failed"
        wait_for(lambda: not works(run))
        wait_for(lambda: not family & of_ray(), seconds=120)  # Ray's agents take a minute to notice


def processes(marks: Path) -> dict[str, set[int]]:
    """Those that are in the middle of a fit, by rank."""
    names = [path.name.split("-") for path in marks.iterdir()]
    pids = {(rank, int(pid)) for rank, pid, _ in names if sum(name[1] == pid for name in names) >= 5}
    return {rank: {pid for of, pid in pids if of == rank} for rank, _ in pids}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [("0",), ("1",), ("0", "1")])
def test_a_shared_fit_whose_process_dies_is_done_by_one_alone(
    nodes: Cluster, config: AlignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: tuple[str, ...]
) -> None:
    """SIGKILL in the middle of it, to the first process, to the other, or to both."""
    marks, victims, events = tmp_path / "marks", set[int](), list[dict[str, Any]]()
    marks.mkdir()
    lora = {"model_dir": write_model(tmp_path / "model", seed=0), "value_model": "lora", "feature_spec": None}
    config = config.model_copy(update=lora | {"iterations": 1})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = job().execute(config, tmp_path / "whole")
    torch.set_num_threads(threads)

    def kill() -> None:
        wait_for(lambda: set(ranks) <= processes(marks).keys())
        victims.update(pid for rank in ranks for pid in processes(marks)[rank])
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

    def follow(event: dict[str, Any]) -> None:
        events.append(event)
        if event["data"].get("stage") == "fitting":
            threading.Thread(target=kill).start()

    monkeypatch.setattr("training.iro.learners.LoraLearner", partial(Marked, marks))
    placement = over(nodes).model_copy(update={"ray_fit_actors": 2})
    result = ray_job(placement).execute(config, tmp_path / "run", on_event=follow)
    assert len(victims) == len(ranks)
    (told,) = [event["message"] for event in events if "One process fits alone" in event["message"]]
    assert len(ranks) == 1 or "fit ended its process" in told  # and no new ones waited for the dead
    (alone,) = processes(marks)["alone"]
    assert alone not in victims
    assert comparable(result) == comparable(whole)


@pytest.mark.slow(20)
def test_a_node_that_dies_costs_nothing_but_time(
    nodes: Cluster, config: AlignConfig, reference: dict[str, Any], tmp_path: Path
) -> None:
    """Its raylet and all of its processes get SIGKILL while an engine works there. The last test: it is gone."""
    victims: set[int] = set()

    def kill(event: dict[str, Any]) -> None:
        if not victims and event["type"] == "progress" and event["data"]["done"] >= 5:
            at_work = sampled_by(tmp_path / "run")
            for node in nodes.list_all_nodes():
                raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
                family = [raylet, *raylet.children(recursive=True)]
                if at_work & {process.pid for process in family}:
                    victims.update(process.pid for process in family)
                    for process in family:
                        with suppress(psutil.NoSuchProcess):  # it went with its raylet
                            process.send_signal(signal.SIGKILL)
                    return

    result = ray_job(over(nodes), seconds=0.05).execute(config, tmp_path / "run", on_event=kill)
    assert sampled_by(tmp_path / "run") & victims
    assert comparable(result) == comparable(reference)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
