"""docker/ on a real Docker engine: the images, and a deployment that is upgraded, killed, backed up and restored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.deployment import Drill, drill, previous_revision
from benchmarks.deployment_images import ImageReport, environment_secrets, image_report, second_build
from benchmarks.deployment_stack import BUILT, SERVICES, Deployment, deployment, engine_problem

ROOT = Path(__file__).parents[2]
UNPINNED = {"torch", "iro-align"}  # torch's build differs by machine: the Dockerfile has its version

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]


@pytest.fixture(scope="module")
def deployed() -> Iterator[tuple[Deployment, Drill]]:
    if problem := engine_problem():
        pytest.skip(problem)
    with deployment() as running:
        yield running, drill(running)


@pytest.fixture(scope="module")
def report(deployed: tuple[Deployment, Drill]) -> Drill:
    return deployed[1]


@pytest.fixture(scope="module")
def images(deployed: tuple[Deployment, Drill]) -> dict[str, ImageReport]:
    running, _ = deployed
    secrets = environment_secrets(running)
    return {name: image_report(running, name, secrets) for name in (*BUILT, "graders")}


def test_events_lose_nothing_that_a_client_had(report):
    assert set(report.lost) == {"upgrade", "restart", "kills", "restore", "restore of the newest model"}
    assert not any(report.lost.values()), report.lost


def test_the_upgrade_starts_from_older_tables(report):
    if previous_revision() is None:
        pytest.skip("the repository's history has no commit before the newest migration")
    before, after = report.tables
    assert before < after


def test_every_container_is_healthy_and_a_killed_one_starts_again(report):
    assert report.health == dict.fromkeys((*SERVICES, "graders"), "healthy")
    assert all(report.restarts[service] >= 1 for service in (*BUILT, "graders"))
    assert all(steps == [1, 2, 3] for steps in report.checkpoints)


def test_without_the_graders_file_python_graders_are_refused(report):
    assert report.isolation_problem not in ("", "None")


def test_python_graders_run_in_their_container_and_reach_nothing_outside_their_sandbox(report):
    assert report.python_grader == {"reward": 0.2, "error": None}
    assert report.grader_reach == {"reward": 0.0, "error": None}


def test_a_job_graded_by_the_service_ends_in_an_aligned_model_that_answers_a_chat(report):
    chat = report.aligned_chat
    assert report.jobs["aligning job"] == chat["job_status"] == "succeeded"
    assert chat["aligned_answer"] and chat["value_tokens"] > 0


def test_images_hold_no_secret_and_no_root_user(images):
    for image in images.values():
        assert image.leaked == []
        assert image.uid == 10001


def test_the_server_without_cuda_is_under_2_gb(images):
    assert images["server"].size_bytes < 2e9
    assert not [name for name in images["server"].versions if name.startswith("nvidia")]


def test_a_second_build_installs_the_same_files(deployed, images):
    files, differing = second_build(deployed[0])  # after ``images``: the first build is described before it is replaced
    assert files > 10_000 and differing == []


def test_versions_are_those_of_the_constraints(images):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonical(name): version for name, version in (line.split("==") for line in lines if "==" in line)}
    installed = {canonical(name): version for name, version in images["server"].versions.items()}
    assert {name for name, version in installed.items() if pinned.get(name) != version} == UNPINNED


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
