"""docker/ on a real Docker engine: image sizes, and a deployment that is upgraded, killed, backed up and restored.

    python -m benchmarks.deployment --json

It runs a copy of the repository in a compose project of its own, whose containers, volumes and images it removes at
the end. Where the registries of docker/'s defaults are out of reach, these environment variables name others:

PYTHON_IMAGE, VLLM_IMAGE, POSTGRES_IMAGE, TORCH_INDEX   as in docker/README.md
PIP_CONFIG_FILE   pip's configuration during builds
BUILD_NETWORK     of builds, such as host
MODEL_SOURCE      a prepared model's directory, copied to the volume `models` before the first start
ENGINE            embedded: the model in the server and the worker; without it, in vLLM
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import openai
import yaml

from benchmarks.faults_server import ended, insist, wait_for
from iro_server.json_values import JsonObject

ROOT = Path(__file__).parents[1]
PROJECT = "iro-drill"
HAS_VLLM = os.environ.get("ENGINE") != "embedded"
BUILT = ("server", "worker", *(["vllm"] if HAS_VLLM else []))
SERVICES = ("postgres", *BUILT)
# In place of vLLM, so that what depends on it starts.
NO_VLLM: JsonObject = {
    "image": f"{PROJECT}-server",
    "build": {"target": "server"},
    "entrypoint": ["sleep", "infinity"],
    "healthcheck": {"test": ["CMD", "true"], "interval": "2s"},
}
PACKAGES = ("iro_server", "training", "value_heads")
MIGRATIONS = "iro_server/store/migrations/versions"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MEMORY = {"SERVER_MEMORY": "4g", "WORKER_MEMORY": "6g", "VLLM_MEMORY": "8g", "POSTGRES_MEMORY": "1g"}
RESULTS = ROOT / "results" / "docker" / "default.json"
VERSIONS = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
CHUNK = 1 << 24  # bytes of an image's layers scanned at once

OPENINGS = (
    "The film",
    "I saw this",
    "The acting was",
    "My wife and I",
    "This story",
    "What a",
    "The plot",
    "It begins",
)
ROWS = "".join(json.dumps({"prompt": opening, "letter": "e"}) + "\n" for opening in OPENINGS).encode()
COUNT_LETTER = """
import time

def grade(sample, item):
    time.sleep(0.2)  # so that the job still runs when the last service is killed
    return sample["output_text"].count(item["letter"]) / 10
"""
PYTHON_GRADER = {"type": "python", "name": "letters", "source": COUNT_LETTER}
TEXT_GRADER = {
    "type": "text_similarity",
    "name": "likeness",
    "input": "{{sample.output_text}}",
    "reference": "The film was a pleasure to see.",
    "evaluation_metric": "rouge_l",
}
SEARCH = {"rollouts_per_prompt": 2, "beam_width": 2, "num_successors": 2, "chunk_length": 4, "max_tokens": 8}
SMALL = {**SEARCH, "validation_prompts": 2, "early_stop": False, "value_model": "lora", "backbone_layers": 1}


def engine_problem() -> str | None:
    """Why no Docker engine with Compose can be used from here."""
    if shutil.which("docker") is None:
        return "no Docker engine: the command docker is not installed"
    for command in (["docker", "version", "--format", "{{.Server.Version}}"], ["docker", "compose", "version"]):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            return f"no Docker engine: `{' '.join(command[:2])}` fails: {result.stderr.strip()}"
    return None


@dataclass
class ImageReport:
    """``versions``: of the Python distributions in it. ``leaked``: names of the secrets that its layers contain."""

    size_bytes: int
    user: str
    versions: dict[str, str]
    leaked: list[str]


@dataclass
class Outcome:
    """What a client keeps from before an event: the key, a file, and an aligned model with one of its answers."""

    key: str
    file: str
    model: str
    answer: str


@dataclass
class Drill:
    """``seconds`` by step. ``lost``: what an event changed or removed that a client had before, by event."""

    seconds: dict[str, float] = field(default_factory=dict)
    lost: dict[str, list[str]] = field(default_factory=dict)
    health: dict[str, str] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    checkpoints: list[int] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)
    isolation_problem: str = ""

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
        print(f"{name}: {self.seconds[name]} s", flush=True)


class Deployment:
    """A copy of what the images are built from, in ``folder``, and its compose project ``PROJECT``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.docker = folder, folder / "docker"
        shutil.copytree(ROOT / "docker", self.docker, ignore=shutil.ignore_patterns(".env"))
        for name in (".dockerignore", "constraints.txt", "LICENSE", "pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        for path in ROOT.glob("vllm-*.txt"):
            shutil.copy(path, folder / path.name)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        example = self.docker / ".env.example"
        example.write_text(re.sub(r"(?m)^PORT=.*", f"PORT={self.port}", example.read_text()))
        self.key = "none"
        self.use()

    def use(self, *names: str) -> None:
        """Compose from compose.yaml and ``compose.NAME.yaml`` of each of ``names``, and from an override that keeps the
        project apart from a real one on the same engine and names this machine's mirrors."""
        self.names = (*names, "drill")
        paths = [self.docker / "compose.yaml", *(self.docker / f"compose.{name}.yaml" for name in names)]
        services: JsonObject = {}
        networks: JsonObject = {}
        for content in (yaml.safe_load(path.read_text()) for path in paths):
            for service, fields in content["services"].items():
                if "build" in fields:
                    services[service] = self._override(fields["image"])
            for network, fields in content.get("networks", {}).items():
                if fields and "name" in fields:
                    networks[network] = {"name": f"{PROJECT}-{network}"}
        if not HAS_VLLM:
            services["vllm"] |= NO_VLLM | {"build": services["vllm"]["build"] | NO_VLLM["build"]}
            for service in ("setup", "server", "worker"):
                services[service]["environment"] = {"IRO_ENGINE_URLS": "[]"}
        override = {"services": services, "networks": networks}
        if path := os.environ.get("PIP_CONFIG_FILE"):
            override["secrets"] = {"pip": {"file": path}}
        (self.docker / "compose.drill.yaml").write_text(yaml.safe_dump(override))

    def _override(self, image: str) -> JsonObject:
        build: JsonObject = {"network": os.environ.get("BUILD_NETWORK", "default")}
        if "PIP_CONFIG_FILE" in os.environ:
            build["secrets"] = ["pip"]
        return {"image": f"{PROJECT}-{image.removeprefix('iro-')}", "build": build}

    def take_packages(self, revision: str | None) -> None:
        """Put Iro's packages as they are at a git revision, or as they are now, where images are built from."""
        for name in PACKAGES:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            if revision is None:
                shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        if revision is not None:
            command = ["git", "archive", revision, *PACKAGES]
            archive = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x"], cwd=self.folder, input=archive, check=True)

    @property
    def environment(self) -> dict[str, str]:
        environment = {**os.environ, **MEMORY, "COMPOSE_PROJECT_NAME": PROJECT, "PORT": str(self.port), "MODEL": MODEL}
        environment.pop("PIP_CONFIG_FILE", None)
        return environment

    def run(
        self, command: Sequence[str | Path], input: bytes | None = None, variables: Mapping[str, str] | None = None
    ) -> bytes:
        environment = {**self.environment, **(variables or {})}
        result = subprocess.run(command, cwd=self.docker, env=environment, input=input, capture_output=True)
        if result.returncode:
            output = (result.stdout[-2000:] + result.stderr[-6000:]).decode(errors="replace")
            raise RuntimeError(f"{' '.join(map(str, command))}: exit status {result.returncode}\n{output}")
        return result.stdout

    def compose(self, *arguments: str, input: bytes | None = None) -> str:
        files = ["compose.yaml", *(f"compose.{name}.yaml" for name in self.names)]
        options = [option for file in files for option in ("--file", file)]
        return self.run(["docker", "compose", *options, *arguments], input, self.placeholders()).decode()

    def placeholders(self) -> dict[str, str]:
        """Values of the secrets until up.sh has made them: a build needs none, but compose requires them."""
        if (self.docker / ".env").exists():
            return {}
        names = re.findall(r"(?m)^([A-Z_]+)=$", (self.docker / ".env.example").read_text())
        return dict.fromkeys(names, "unset")

    def up(self) -> str:
        return self.run([self.docker / "up.sh", *self.names]).decode()

    def copy_model(self) -> None:
        """Fill the volume `models`, for want of the hub."""
        target = f"/models/models/{MODEL.replace('/', '--')}"
        archive = self.run(["tar", "-C", os.environ["MODEL_SOURCE"], "-c", "."])
        unpack = f"mkdir -p {target} && tar -C {target} -x"
        self.compose("run", "--rm", "--no-deps", "-T", "setup", "sh", "-c", unpack, input=archive)

    def execute(self, service: str, *command: str) -> str:
        return self.compose("exec", "-T", service, *command)

    def crash(self, service: str) -> None:
        """Kill every process of the container but its first, which ends with them or, PostgreSQL's, recovers."""
        with contextlib.suppress(RuntimeError):  # the killed container takes the command with it
            self.execute(service, "bash", "-c", "kill -KILL -1")

    def states(self) -> dict[str, JsonObject]:
        """The container of each service as `docker inspect` describes it."""
        ids = self.compose("ps", "--all", "--quiet", *SERVICES).split()
        containers = json.loads(self.run(["docker", "inspect", *ids]))
        return {item["Config"]["Labels"]["com.docker.compose.service"]: item for item in containers}

    def health(self) -> dict[str, str]:
        return {name: state["State"]["Health"]["Status"] for name, state in self.states().items()}

    def wait_until_healthy(self) -> None:
        wait_for(lambda: set(self.health().values()) == {"healthy"}, "every container to be healthy", 900)

    @property
    def client(self) -> openai.OpenAI:
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key=self.key, max_retries=0, timeout=120)

    def remove(self) -> None:
        """Remove containers, volumes, networks and images of the project."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
        images = self.run(["docker", "image", "ls", "--quiet", f"{PROJECT}-*"]).decode().split()
        if images:
            self.run(["docker", "image", "rm", "--force", *sorted(set(images))])

    def image_report(self, image: str, secrets: Mapping[str, bytes]) -> ImageReport:
        """Of image ``PROJECT-image``. ``secrets``: bytes that none of its layers may contain, by name."""
        name = f"{PROJECT}-{image}"
        (description,) = json.loads(self.run(["docker", "image", "inspect", name]))
        program = (
            "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
        )
        versions = self.run(["docker", "run", "--rm", "--network", "none", name, "python", "-c", program])
        return ImageReport(
            size_bytes=description["Size"],
            user=description["Config"]["User"],
            versions=json.loads(versions),
            leaked=leaked_secrets(name, secrets),
        )


@contextlib.contextmanager
def deployment() -> Iterator[Deployment]:
    with tempfile.TemporaryDirectory() as folder:
        deployment = Deployment(Path(folder))
        deployment.take_packages(None)
        try:
            yield deployment
        finally:
            deployment.remove()


def leaked_secrets(image: str, secrets: Mapping[str, bytes]) -> list[str]:
    """The names of ``secrets`` that occur in the image's layers or configuration."""
    leaked: set[str] = set()
    overlap = max(map(len, secrets.values())) - 1
    tail = b""
    with subprocess.Popen(["docker", "image", "save", image], stdout=subprocess.PIPE) as save:
        assert save.stdout is not None
        while chunk := save.stdout.read(CHUNK):
            window = tail + chunk
            leaked |= {name for name, value in secrets.items() if value in window}
            tail = window[-overlap:]
    if save.returncode:
        raise RuntimeError(f"docker image save {image}: exit status {save.returncode}")
    return sorted(leaked)


def previous_revision() -> str | None:
    """The last commit before the newest migration of the tables; None without the repository's history."""
    log = ["git", "log", "-1", "--format=%H", "--diff-filter=A", "--", MIGRATIONS]
    result = subprocess.run(log, cwd=ROOT, capture_output=True, text=True)
    parent = ["git", "rev-parse", "--verify", "--quiet", f"{result.stdout.strip()}^"]
    return subprocess.run(parent, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None


def environment_secrets(deployment: Deployment) -> dict[str, bytes]:
    """The secrets of .env and, where one is given, each password in pip's configuration."""
    lines = (deployment.docker / ".env").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if re.match("[A-Z_]*(PASSWORD|KEY|TOKEN)=.", line))
    secrets = {name: value.encode() for name, value in pairs}
    if path := os.environ.get("PIP_CONFIG_FILE"):
        urls = [line for line in Path(path).read_bytes().splitlines() if b"://" in line]
        secrets |= {f"pip's configuration, URL {number}": line for number, line in enumerate(urls)}
    return secrets | {"first key": deployment.key.encode()}


def drill(deployment: Deployment) -> Drill:
    """Start the previous images, align a model, upgrade, restart, kill each service, back up and restore."""
    report = Drill()
    deployment.take_packages(previous_revision())
    with report.step("build the previous images"):
        deployment.compose("build")
    if "MODEL_SOURCE" in os.environ:
        deployment.copy_model()
    with report.step("first start"):
        deployment.key = key_of(deployment.up())
    report.revisions.append(tables_revision(deployment))
    with report.step("first job"):
        before = first_outcome(deployment)

    deployment.take_packages(None)
    deployment.use("graders")
    with report.step("upgrade"):
        deployment.up()
    check(report, "upgrade", deployment, before)
    report.revisions.append(tables_revision(deployment))
    report.isolation_problem = isolation_problem()
    deployment.wait_until_healthy()
    report.health = deployment.health()

    with report.step("restart"):
        deployment.compose("restart", *SERVICES)
        deployment.wait_until_healthy()
    check(report, "restart", deployment, before)

    job = start_job(deployment, before.file, PYTHON_GRADER, iterations=3)
    for service in SERVICES:
        wait_for(lambda: running(deployment, job), f"the job to run before {service} is killed", 600)
        with report.step(f"killed {service}"):
            deployment.crash(service)
            deployment.wait_until_healthy()
    report.restarts = {name: state["RestartCount"] for name, state in deployment.states().items()}
    newest = model_of(deployment, job)
    report.checkpoints = checkpoint_steps(deployment, job)
    check(report, "kills", deployment, before)

    last = Outcome(deployment.key, before.file, newest, answer(deployment, newest))
    with report.step("backup"):
        archive = back_up(deployment)
    deployment.compose("down", "--volumes", "--timeout", "60")
    with report.step("restore"):
        restore(deployment, archive)
        deployment.up()
    check(report, "restore", deployment, before)
    check(report, "restore of the newest model", deployment, last)
    return report


def key_of(output: str) -> str:
    match = re.search(r"The first key: (\S+)", output)
    if match is None:
        raise RuntimeError(f"up.sh printed no first key: {output}")
    return match[1]


def tables_revision(deployment: Deployment) -> str:
    query = "SELECT version_num FROM alembic_version"
    return deployment.execute("postgres", "psql", "-U", "iro", "-d", "iro", "-At", "-c", query).strip()


def first_outcome(deployment: Deployment) -> Outcome:
    file = deployment.client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune").id
    model = model_of(deployment, start_job(deployment, file, TEXT_GRADER, iterations=2))
    return Outcome(deployment.key, file, model, answer(deployment, model))


def start_job(deployment: Deployment, file: str, grader: Mapping[str, str], iterations: int) -> str:
    method: Any = {
        "type": "reinforcement",
        "reinforcement": {"grader": grader, "iro": {**SMALL, "iterations": iterations}},
    }
    jobs = deployment.client.fine_tuning.jobs
    return jobs.create(model=MODEL.split("/")[-1], training_file=file, method=method, seed=3).id


def running(deployment: Deployment, job: str) -> bool:
    """Whether it runs; RuntimeError once it has ended."""
    status = insist([deployment], lambda client: client.fine_tuning.jobs.retrieve(job).status)
    if status in ("succeeded", "failed", "cancelled"):
        raise RuntimeError(f"{job} ended too early: {status}")
    return status == "running"


def model_of(deployment: Deployment, job: str) -> str:
    """The model of a job that ran to its end. So small a job may not improve on the base: then its checkpoint."""
    record = ended([deployment], job, seconds=1800)
    if record.status == "succeeded":
        return str(record.fine_tuned_model)
    if record.error.code != "no_improvement":
        raise RuntimeError(f"{job} failed: {record.error}")
    checkpoints = insist([deployment], lambda client: client.fine_tuning.jobs.checkpoints.list(job).data)
    return checkpoints[0].fine_tuned_model_checkpoint


def checkpoint_steps(deployment: Deployment, job: str) -> list[int]:
    events = insist([deployment], lambda client: client.fine_tuning.jobs.list_events(job, limit=100).data)
    matches = (re.fullmatch(r"Checkpoint created at step (\d+)", event.message) for event in events)
    return sorted(int(match[1]) for match in matches if match)


def answer(deployment: Deployment, model: str) -> str:
    def complete(client: openai.OpenAI) -> str:
        return client.completions.create(model=model, prompt="The film", max_tokens=8, seed=5).choices[0].text

    return insist([deployment], complete)


def check(report: Drill, event: str, deployment: Deployment, before: Outcome) -> None:
    """Note what of ``before`` is gone or changed after ``event``."""
    lost = []
    try:
        if insist([deployment], lambda client: client.files.content(before.file).read()) != ROWS:
            lost.append("the file's bytes")
        if (text := answer(deployment, before.model)) != before.answer:
            lost.append(f"the model's answer: {before.answer!r} became {text!r}")
    except openai.APIStatusError as error:
        lost.append(str(error))
    report.lost[event] = lost


def isolation_problem() -> str:
    """Why the server's image, run without compose.graders.yaml, cannot isolate python graders."""
    program = "from iro_server.graders.sandbox import isolation_problem; print(isolation_problem())"
    options = ["--rm", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true"]
    command = ["docker", "run", *options, f"{PROJECT}-server", "python", "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def back_up(deployment: Deployment) -> bytes:
    """As docker/README.md says: a tar archive of the backup's folder."""
    deployment.execute("server", "iro", "backup", "/data/backup")
    archive = deployment.run(
        ["docker", "exec", deployment.states()["server"]["Id"], "tar", "-C", "/data/backup", "-c", "."]
    )
    deployment.execute("server", "rm", "-r", "/data/backup")
    return archive


def restore(deployment: Deployment, archive: bytes) -> None:
    """As docker/README.md says, into volumes that do not exist yet."""
    deployment.compose("up", "--detach", "--wait", "postgres")
    if "MODEL_SOURCE" in os.environ:
        deployment.copy_model()
    unpack = "mkdir /data/backup && tar -C /data/backup -x && iro restore /data/backup && rm -r /data/backup"
    deployment.compose("run", "--rm", "--no-deps", "-T", "server", "sh", "-c", unpack, input=archive)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if problem := engine_problem():
        raise SystemExit(problem)
    with deployment() as running_deployment:
        report = drill(running_deployment)
        secrets = environment_secrets(running_deployment)
        images = {name: running_deployment.image_report(name, secrets) for name in BUILT}
    sizes = {name: image.size_bytes for name, image in images.items()}
    leaked = {name: image.leaked for name, image in images.items()}
    users = {name: image.user for name, image in images.items()}
    result = {"size_bytes": sizes, "user": users, "leaked_secrets": leaked, **asdict(report)}
    print(json.dumps(result, indent=1))
    if arguments.json:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
