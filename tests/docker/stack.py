"""The services of docker/compose.yaml as plain processes of this machine: their commands from docker/bin, their
environment from docker/env, with this machine's addresses and folders in place of the containers'."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import openai
import psutil
import psycopg
import yaml

from benchmarks.faults_server import wait_for
from benchmarks.postgres import postgres, programs
from iro_server.engines.ports import free_port
from iro_server.engines.prepare import iro_home
from tests.docker.envfiles import read

DOCKER = Path(__file__).parents[2] / "docker"
SERVICES = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
VLLM = Path(os.environ.get("VLLM_VENV", DOCKER.parent / ".venv-vllm")) / "bin"
HAS_ENGINE = VLLM.exists()
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PASSWORD, ENGINE_KEY = "of-the-database", "of-the-engine"
SECRETS = {"PGPASSWORD": PASSWORD, "IRO_ENGINE_KEY": ENGINE_KEY, "VLLM_API_KEY": ENGINE_KEY, "MODEL": MODEL}
OF_THIS_MACHINE = {"PATH", "HOME", "LANG", "OMP_NUM_THREADS", "PYTHONPATH", "TMPDIR"}


class Stack:
    """``names``: the services that run, postgres first. ``client`` has the key that setup made."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder = folder
        self.ports = {"server": free_port(), "vllm": free_port()}
        self.here = {
            "/data": str(folder / "data"),
            "/models": str(iro_home()),
            "postgres:5432": database,
            "//server:8000": f"//127.0.0.1:{self.ports['server']}",
            "//vllm:8001": f"//127.0.0.1:{self.ports['vllm']}",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "data").mkdir()

    def environment(self, service: str) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if name in OF_THIS_MACHINE}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        for file in SERVICES[service]["env_file"]:
            environment |= {name: self._here(value) for name, value in read(DOCKER / file).items()}
        if service == "vllm":
            environment["PATH"] = f"{VLLM}{os.pathsep}{environment['PATH']}"
            environment.pop("PYTHONPATH", None)
            environment["ENGINE_PORT"] = str(self.ports["vllm"])
            environment["ENGINE_HOST"] = "127.0.0.1"
        else:
            environment["IRO_PORT"] = str(self.ports["server"])
        if not HAS_ENGINE:
            environment.pop("IRO_ENGINE_URLS", None)
        return environment | SECRETS

    def _here(self, value: str) -> str:
        for there, here in self.here.items():
            value = value.replace(there, here)
        return value

    def run(self, service: str) -> str:
        """A service that ends: what it printed."""
        command = self._command(service)
        done = subprocess.run(command, env=self.environment(service), cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, service: str) -> None:
        with (self.folder / f"{service}.log").open("ab") as log:
            command, environment = self._command(service), self.environment(service)
            process = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log)
        self.processes[service] = process
        wait_for(lambda: self.well(service), f"{service} to be well", 600)

    def _command(self, service: str) -> list[str]:
        (script,) = SERVICES[service].get("command", ["/iro/bin/vllm.sh"])
        return [str(DOCKER / script.removeprefix("/iro/"))]

    def well(self, service: str) -> bool:
        """What the service's healthcheck says."""
        assert self.processes[service].poll() is None, (self.folder / f"{service}.log").read_text()[-3000:]
        _, program, *arguments = SERVICES[service]["healthcheck"]["test"]
        program = str(DOCKER / program.removeprefix("/iro/")) if program.startswith("/") else program
        command = [program, *arguments]
        return subprocess.run(command, env=self.environment(service), capture_output=True).returncode == 0

    def crash(self, service: str) -> None:
        """End the service's processes at once, as a container's end does: no worker of a job outlives it."""
        process = self.processes.pop(service)
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):  # it ended since
                each.kill()
        process.wait()

    def stop(self, service: str) -> None:
        """As `docker stop`."""
        process = self.processes.pop(service)
        process.terminate()
        assert process.wait(60) in (0, -15)

    @property
    def client(self) -> openai.OpenAI:
        key = (self.folder / "data" / "first.key").read_text().strip()
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.ports['server']}/v1", api_key=key, max_retries=0)


@contextmanager
def database(password: str) -> Iterator[object]:
    """PostgreSQL as its image makes it: a user and a database named iro, and no way in without the password."""
    with postgres(programs()) as server:
        with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"ALTER USER iro PASSWORD '{password}'")
            connection.execute("CREATE DATABASE iro")
        (server.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        server._run("pg_ctl", "reload", "-D", str(server.data))
        yield server


@contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    with database(PASSWORD) as server:
        stack = Stack(folder, f"127.0.0.1:{server.port}")
        stack.database = server
        try:
            yield stack
        finally:
            for service in list(stack.processes):
                stack.crash(service)
