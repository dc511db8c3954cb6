"""docker/ on a real Docker engine: a deployment that is upgraded, killed, backed up and restored, and its images.

    python -m benchmarks.deployment

It runs a copy of the repository in a compose project of its own, whose containers, volumes and images it removes at
the end. The previous images have the code of the commit before the newest migration, over the present docker/. Where
the registries of docker/'s defaults are out of reach, these environment variables name others:

PYTHON_IMAGE, VLLM_IMAGE, POSTGRES_IMAGE, TORCH_INDEX   as in docker/README.md
PIP_CONFIG_FILE   pip's configuration during builds
BUILD_NETWORK     of builds, such as host
MODEL_SOURCE      a prepared model's directory, copied to the volume `models` before the first start
PROJECT           the compose project, iro-drill without it
ENGINE            embedded: the model in the server and the worker; without it, in vLLM
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from benchmarks.deployment_client import (
    COUNT_LETTER,
    REACH,
    aligned_outcome,
    chat_comparison,
    checkpoint_steps,
    first_outcome,
    graded,
    lost_items,
    outcome_of,
    running_job,
)
from benchmarks.deployment_images import environment_secrets, image_report, output
from benchmarks.deployment_stack import BUILT, HAS_VLLM, PROJECT, ROOT, Deployment, deployment, engine_problem
from benchmarks.record import command_line, finish
from benchmarks.tables import deployment as deployment_table
from iro_server import JsonObject

MIGRATIONS = "iro_server/store/migrations/versions"
ISOLATION = "from iro_server.graders.sandbox import isolation_problem; print(isolation_problem())"


def previous_revision() -> str | None:
    """The last commit before the newest migration of the tables; None without the repository's history."""
    log = ["git", "log", "-1", "--format=%H", "--diff-filter=A", "--", MIGRATIONS]
    result = subprocess.run(log, cwd=ROOT, capture_output=True, text=True)
    parent = ["git", "rev-parse", "--verify", "--quiet", f"{result.stdout.strip()}^"]
    return subprocess.run(parent, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None


@dataclass
class Drill:
    """``seconds`` by step. ``lost``: what an event changed or removed that a client had before, by event.

    ``jobs``: status of the job before the upgrade, and of those beside which services were killed; ``checkpoints`` of
    the latter. ``tables``: revision of
    the database's tables before and after the upgrade. ``grader_reach``: the number of things outside its sandbox that
    a python grader reached. ``aligned_chat``: a ChatComparison with a model that the deployment aligned.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    lost: dict[str, list[str]] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    health: dict[str, str] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    checkpoints: list[list[int]] = field(default_factory=list)
    tables: list[int] = field(default_factory=list)
    isolation_problem: str = ""
    python_grader: JsonObject = field(default_factory=dict)
    grader_reach: JsonObject = field(default_factory=dict)
    aligned_chat: JsonObject = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
        print(f"{name}: {self.seconds[name]} s", flush=True)


def drill(deployment: Deployment) -> Drill:
    """Start the previous images, align a model, upgrade, restart, kill each service, back up and restore."""
    report = Drill()
    deployment.take_sources(previous_revision())
    with report.step("build the previous images"):
        deployment.compose("build")
    if "MODEL_SOURCE" in os.environ:
        deployment.copy_model()
    with report.step("first start"):
        deployment.key = key_of(deployment.up())
    report.tables.append(tables_revision(deployment))
    with report.step("first job"):
        before = first_outcome(deployment)
    report.jobs["first job"] = before.status

    deployment.take_sources(None)
    deployment.use("graders")
    with report.step("build the images"):
        deployment.compose("build")
    with report.step("upgrade"):
        deployment.up()
        deployment.wait_until_healthy()
    report.lost["upgrade"] = lost_items(deployment, before)
    report.tables.append(tables_revision(deployment))
    report.health = deployment.health()
    report.isolation_problem = output(f"{PROJECT}-server", ISOLATION).strip()
    report.python_grader = graded(deployment, COUNT_LETTER)
    report.grader_reach = graded(deployment, REACH)

    with report.step("aligning job"):
        aligned = aligned_outcome(deployment)
    report.jobs["aligning job"] = aligned.status
    report.aligned_chat = asdict(chat_comparison(deployment, aligned))

    with report.step("restart"):
        deployment.compose("restart", *deployment.services)
        deployment.wait_until_healthy()
    report.lost["restart"] = lost_items(deployment, before) + lost_items(deployment, aligned)

    jobs: list[str] = []
    for service in deployment.services:
        running_job(deployment, before.file, jobs)
        with report.step(f"killed {service}"):
            deployment.crash(service)
            deployment.wait_until_healthy()
    report.restarts = {name: state["RestartCount"] for name, state in deployment.states().items()}
    outcomes = [outcome_of(deployment, before.file, job) for job in jobs]
    report.jobs |= {f"job {number} beside kills": done.status for number, done in enumerate(outcomes, 1)}
    report.checkpoints = [checkpoint_steps(deployment, job) for job in jobs]
    report.lost["kills"] = lost_items(deployment, before)

    with report.step("backup"):
        archive = deployment.back_up()
    deployment.compose("down", "--volumes", "--timeout", "60")
    with report.step("restore"):
        deployment.restore(archive)
        deployment.up()
    report.lost["restore"] = lost_items(deployment, before) + lost_items(deployment, aligned)
    report.lost["restore of the newest model"] = lost_items(deployment, outcomes[-1])
    return report


def key_of(output: str) -> str:
    match = re.search(r"The first key: (\S+)", output)
    if match is None:
        raise RuntimeError(f"up.sh printed no first key: {output}")
    return match[1]


def tables_revision(deployment: Deployment) -> int:
    query = "SELECT version_num FROM alembic_version"
    return int(deployment.execute("postgres", "psql", "-U", "iro", "-d", "iro", "-At", "-c", query))


def main() -> None:
    parser = command_line("docker", __doc__)
    parser.set_defaults(engine="vllm" if HAS_VLLM else "embedded")
    arguments = parser.parse_args()
    if problem := engine_problem():
        raise SystemExit(problem)
    with deployment() as stack:
        report = drill(stack)
        secrets = environment_secrets(stack)
        images = {name: image_report(stack, name, secrets) for name in (*BUILT, "graders")}
    numbers = {
        "size_bytes": {name: image.size_bytes for name, image in images.items()},
        "uid": {name: image.uid for name, image in images.items()},
        "secrets_sought": sorted(secrets),
        "leaked_secrets": {name: image.leaked for name, image in images.items()},
        **asdict(report),
    }
    finish(arguments, numbers, lambda content: print(deployment_table(content)))


if __name__ == "__main__":
    main()
