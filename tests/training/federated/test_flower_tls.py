"""The page's lines for a federation of several machines, on this one: TLS, and SuperNodes that must be registered."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import which

import pytest

from iro_server.engines.ports import free_port
from training.federated.flower_local import completed, processes_of, superlink

ROOT = Path(__file__).parents[3]
BIN = ROOT / ".venv-flower" / "bin"
PAGE = (ROOT / "docs/flower.md").read_text().replace("\\\n", " ")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BIN / "flwr").exists(), reason=f"no {BIN}: `make flower` installs Flower"),
    pytest.mark.skipif(not (which("openssl") and which("ssh-keygen")), reason="openssl and ssh-keygen are needed"),
]


def line(begins: str, **instead: str) -> list[str]:
    """The page's one line that begins so, with some of its words replaced."""
    (command,) = [line for line in LINES if line.startswith(begins)]
    for word, replacement in instead.items():
        command = re.sub(rf"\b{word}\b", replacement, command)
    return shlex.split(command)


def by_path(words: list[str], folder: Path) -> list[str]:
    return [str(folder / word) if (folder / word).is_file() else word for word in words]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the server's certificate and three clients' keys."""
    folder = tmp_path_factory.mktemp("keys")
    commands = [line(f"openssl req -x509 {flag}", HOST="localhost") for flag in ("-newkey", "-CA")]
    commands += [line("ssh-keygen", client=client) for client in ("one", "two", "stranger")]
    for command in commands:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def env(keys: Path) -> Iterator[dict[str, str]]:
    """Of the page's SuperLink, with two of the three keys registered."""
    with superlink(*by_path(line("flower-superlink")[1:], keys), ca=keys / "ca.crt", bin=BIN) as env:
        for client in ("one", "two"):
            command = by_path(line("flwr supernode register", client=client, far="local"), keys)
            subprocess.run(command, env=env, check=True, capture_output=True)
        yield env
    assert processes_of(env["FLWR_HOME"]) == []


def address(env: dict[str, str]) -> str:
    config = tomllib.loads((Path(env["FLWR_HOME"]) / "config.toml").read_text())
    return config["superlink"]["local"]["address"].replace("127.0.0.1", "localhost")


@contextmanager
def supernode(env: dict[str, str], keys: Path, client: str, number: int) -> Iterator[subprocess.Popen[bytes]]:
    """The page's SuperNode; what it says is in `client`.log."""
    words = {"HOST:8000": address(env), "client": client, "partition-id=0": f"partition-id={number}"}
    command = [*by_path(line("flower-supernode", **words), keys), "--port", str(free_port())]
    with (keys / f"{client}.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_the_app_runs_over_tls_on_the_clients_that_were_registered(env: dict[str, str], keys: Path) -> None:
    command = [*line("flwr run", far="local"), "-c", "rounds=1 slow=0"]
    with ExitStack() as nodes:
        for number, client in enumerate(("one", "two")):
            nodes.enter_context(supernode(env, keys, client, number))
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    logs = [(keys / f"{client}.log").read_text() for client in ("one", "two")]
    assert completed(env), (done.stdout + done.stderr)[-2000:]
    assert "round 1: " in done.stdout
    assert all("Receiving: train message" in log for log in logs)


def test_a_client_that_was_not_registered_is_refused(env: dict[str, str], keys: Path) -> None:
    with supernode(env, keys, "stranger", 2) as process:
        assert process.wait() != 0
    assert "Failed to activate SuperNode" in (keys / "stranger.log").read_text()


def test_who_does_not_speak_tls_gets_no_answer(env: dict[str, str]) -> None:
    with pytest.raises((urllib.error.URLError, OSError)):
        urllib.request.urlopen(f"http://{address(env)}/health", timeout=10)
