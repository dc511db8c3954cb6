"""A Compose project of docker/ on a real engine: a copy of the repository, apart from any real deployment."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import openai
import yaml

from benchmarks.faults_server import wait_for
from iro_server import JsonObject

ROOT = Path(__file__).parents[1]
PROJECT = os.environ.get("PROJECT", "iro-drill")
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
# What images are built from at a revision. docker/ is the present one: older ones cannot name other registries.
SOURCES = ("constraints.txt", "LICENSE", "pyproject.toml", "README.md", "iro_server", "training", "value_heads")
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MEMORY = {
    "SERVER_MEMORY": "4g",
    "WORKER_MEMORY": "6g",
    "VLLM_MEMORY": "8g",
    "GRADERS_MEMORY": "4g",
    "POSTGRES_MEMORY": "1g",
}


def engine_problem() -> str | None:
    """Why no Docker engine with Compose can be used from here."""
    if shutil.which("docker") is None:
        return "no Docker engine: the command docker is not installed"
    for command in (["docker", "version", "--format", "{{.Server.Version}}"], ["docker", "compose", "version"]):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            return f"no Docker engine: `{' '.join(command[:2])}` fails: {result.stderr.strip()}"
    return None


class Deployment:
    """A copy of what the images are built from, in ``folder``, and its compose project ``PROJECT``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.docker = folder, folder / "docker"
        for name in ("docker", ".dockerignore", "vllm-requirements.txt"):
            copy(ROOT / name, folder / name)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        example = self.docker / ".env.example"
        example.write_text(re.sub(r"(?m)^PORT=.*", f"PORT={self.port}", example.read_text()))
        self.key = "none"
        self.use()

    def take_sources(self, revision: str | None) -> None:
        """Put SOURCES as they are at a git revision, or as they are now, where images are built from."""
        for name in SOURCES:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            if revision is None:
                copy(ROOT / name, self.folder / name)
        if revision is not None:
            command = ["git", "archive", revision, *SOURCES]
            archive = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x"], cwd=self.folder, input=archive, check=True)

    def use(self, *names: str) -> None:
        """Compose from compose.yaml and ``compose.NAME.yaml`` of each of ``names``, and from an override that keeps the
        project apart from a real one on the same engine and names this machine's mirrors."""
        self.names = (*names, "drill")
        self.services = (*SERVICES, *(["graders"] if "graders" in names else []))
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
        services["worker"]["healthcheck"] = {"interval": "15s"}  # of 60 s, for which each step would wait
        override = {"services": services, "networks": networks}
        if path := os.environ.get("PIP_CONFIG_FILE"):
            override["secrets"] = {"pip": {"file": path}}
        (self.docker / "compose.drill.yaml").write_text(yaml.safe_dump(override))

    def _override(self, image: str) -> JsonObject:
        build: JsonObject = {"network": os.environ.get("BUILD_NETWORK", "default")}
        if "PIP_CONFIG_FILE" in os.environ:
            build["secrets"] = ["pip"]
        return {"image": f"{PROJECT}-{image.removeprefix('iro-')}", "build": build}

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
        """Kill every process of the container but its first, which ends with them and is started again, or,
        PostgreSQL's, recovers."""
        before = self.states()[service]["State"]["StartedAt"]
        with contextlib.suppress(RuntimeError):  # the killed container takes the command with it
            self.execute(service, "bash", "-c", "kill -KILL -1")
        if service != "postgres":
            wait_for(lambda: self.states()[service]["State"]["StartedAt"] > before, f"{service} to start again", 120)

    def states(self) -> dict[str, JsonObject]:
        """The container of each service as `docker inspect` describes it."""
        ids = self.compose("ps", "--all", "--quiet", *self.services).split()
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

    def back_up(self) -> bytes:
        """As docker/README.md says: a tar archive of the backup's folder."""
        self.execute("server", "iro", "backup", "/data/backup")
        server = self.states()["server"]["Id"]
        archive = self.run(["docker", "exec", server, "tar", "-C", "/data/backup", "-c", "."])
        self.execute("server", "rm", "-r", "/data/backup")
        return archive

    def restore(self, archive: bytes) -> None:
        """As docker/README.md says, into volumes that do not exist yet."""
        self.compose("up", "--detach", "--wait", "postgres")
        if "MODEL_SOURCE" in os.environ:
            self.copy_model()
        unpack = "mkdir /data/backup && tar -C /data/backup -x && iro restore /data/backup && rm -r /data/backup"
        self.compose("run", "--rm", "--no-deps", "-T", "server", "sh", "-c", unpack, input=archive)

    def logs(self) -> str:
        return self.compose("logs", "--no-color", "--no-log-prefix", "--tail", "60")


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".env", "__pycache__"))
    else:
        shutil.copy(source, target)


@contextlib.contextmanager
def deployment() -> Iterator[Deployment]:
    """A deployment of the sources as they are now; what it made is removed at the end, its logs printed on an error."""
    with tempfile.TemporaryDirectory() as folder:
        deployment = Deployment(Path(folder))
        deployment.take_sources(None)
        try:
            yield deployment
        except Exception:
            with contextlib.suppress(RuntimeError):
                print(deployment.logs(), flush=True)
            raise
        finally:
            deployment.remove()
