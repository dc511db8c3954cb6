"""What the images of a deployment hold: sizes, users, versions, secrets in layers; and whether a build is reproducible.

    python -m benchmarks.deployment_images

It builds the server's image twice, the second time without the cache, and compares the installed files. Environment
variables are those of ``benchmarks.deployment``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.deployment_stack import PROJECT, Deployment, deployment, engine_problem
from benchmarks.record import command_line, finish
from benchmarks.tables import deployment_rebuild

CHUNK = 1 << 24  # bytes of an image's layers scanned at once
VERSIONS = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
DIGESTS = """
import hashlib, json, pathlib
paths = [path for top in ("opt/iro", "iro") for path in pathlib.Path("/", top).rglob("*")]
files = [path for path in paths if path.is_file() and path.suffix != ".pyc"]
print(json.dumps({str(path.relative_to("/")): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}))
"""


@dataclass
class ImageReport:
    """``versions``: of the Python distributions in it. ``leaked``: names of the secrets that its layers contain."""

    size_bytes: int
    uid: int
    versions: dict[str, str]
    leaked: list[str]


def image_report(deployment: Deployment, image: str, secrets: Mapping[str, bytes]) -> ImageReport:
    """Of image ``PROJECT-image``. ``secrets``: bytes that none of its layers may contain, by name."""
    name = f"{PROJECT}-{image}"
    (description,) = json.loads(deployment.run(["docker", "image", "inspect", name]))
    return ImageReport(
        size_bytes=description["Size"],
        uid=int(description["Config"]["User"] or 0),
        versions=json.loads(output(name, VERSIONS)),
        leaked=leaked_secrets(name, secrets),
    )


def output(image: str, program: str) -> str:
    """What a Python program prints in a container of the image, without a network."""
    options = ["--rm", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true"]
    command = ["docker", "run", *options, image, "python", "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


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


def environment_secrets(deployment: Deployment) -> dict[str, bytes]:
    """The secrets of .env and, where one is given, each line with a URL in pip's configuration."""
    lines = (deployment.docker / ".env").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if re.match("[A-Z_]*(PASSWORD|KEY|TOKEN)=.", line))
    secrets = {name: value.encode() for name, value in pairs}
    if path := os.environ.get("PIP_CONFIG_FILE"):
        urls = [line for line in Path(path).read_bytes().splitlines() if b"://" in line]
        secrets |= {f"pip's configuration, URL {number}": line for number, line in enumerate(urls)}
    return secrets | {"first key": deployment.key.encode()}


def installed_files(image: str) -> dict[str, str]:
    """SHA-256 of each file that an image installs, by path. Compiled files aside: they hold their sources' times."""
    digests: dict[str, str] = json.loads(output(image, DIGESTS))
    return digests


def second_build(deployment: Deployment) -> tuple[int, list[str]]:
    """The number of files in the server's image, and those that a second build, without cache, makes differently."""
    name = f"{PROJECT}-server"
    deployment.compose("build", "server")
    first = installed_files(name)
    deployment.compose("build", "--no-cache", "server")
    second = installed_files(name)
    return len(first), sorted(path for path in first.keys() | second.keys() if first.get(path) != second.get(path))


def main() -> None:
    arguments = command_line("docker", __doc__, "rebuild").parse_args()
    if problem := engine_problem():
        raise SystemExit(problem)
    with deployment() as stack:
        files, differing = second_build(stack)
    numbers = {"files": files, "differing_files": len(differing), "examples": differing[:10]}
    finish(arguments, numbers, lambda content: print(deployment_rebuild(content)))


if __name__ == "__main__":
    main()
