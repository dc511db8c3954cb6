"""``flwr run APP local --stream`` on this machine alone: no network, no telemetry, and no process left behind.

flwr starts a SuperLink if none is running, and leaves it running. This module starts a separate one, with its own port
and home (FLWR_HOME), and ends it with all processes that it started.

    python -m training.federated.flower_local training/federated/flower_app --supernodes 10 rounds=50
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from iro_server.engines.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ADDRESS": "local",  # not a Ray that happens to run on this machine
    "RAY_TMPDIR": os.environ.get("RAY_TMPDIR", "/tmp"),  # socket paths are limited to 107 bytes, and TMPDIR may be long
}
START_TIMEOUT, STOP_TIMEOUT = 300.0, 20.0  # seconds of a SuperLink


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("app", type=Path, help="the app's folder")
    parser.add_argument("--supernodes", type=int, default=10, help="number of simulated clients")
    parser.add_argument("config", nargs="*", help="key=value, as in [tool.flwr.app.config]")
    args = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the SuperLink first
    with superlink() as env:
        try:
            run(args.app, env, [f"num-supernodes={args.supernodes}"], args.config)
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode)
        sys.exit(0 if completed(env) else "the run has failed")


@contextmanager
def superlink(*flags: str, ca: Path | None = None, bin: Path = BIN) -> Iterator[dict[str, str]]:
    """A separate SuperLink. Yields the environment in which `flwr` finds it under the name "local".

    ``flags`` of `flower-superlink`; without flags, it simulates clients. ``ca``: for TLS, the absolute path of the
    certificate that signed the SuperLink's. ``bin``: the folder of flwr's programs. Raises TimeoutError, with the end
    of the log, if it does not start.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="flwr-") as home:
        trust = f'root-certificates = "{ca}"' if ca else "insecure = true"
        (Path(home) / "config.toml").write_text(
            f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\n{trust}\n'
        )
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = os.environ | OFFLINE | {"FLWR_HOME": home, "PYTHONPATH": path}
        env["PATH"] = f"{bin}{os.pathsep}{env['PATH']}"
        command = [str(bin / "flower-superlink"), *(flags or ("--insecure", "--simulation"))]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        with (Path(home) / "superlink.log").open("w+") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
            try:
                _wait_for(process, port, ca, Path(log.name))
                yield env
            finally:
                end_superlink(process, home)


def run(app: Path, env: dict[str, str], federation: Sequence[str] = (), config: Sequence[str] = ()) -> None:
    """`flwr run APP local --stream`, with `--federation-config` and `--run-config`.

    Raises CalledProcessError if flwr does not accept the run, and nothing if the run fails.
    """
    command = ["flwr", "run", str(app), "local", "--stream"]
    for flag, values in (("--federation-config", federation), ("--run-config", config)):
        if values:
            command += [flag, " ".join(values)]
    subprocess.run(command, env=env, check=True)


def completed(env: dict[str, str]) -> bool:
    """Whether the SuperLink has at least one run, and all succeeded."""
    listed = subprocess.run(["flwr", "list", "local", "--format", "json"], env=env, capture_output=True, text=True)
    runs = json.loads(listed.stdout)["runs"]
    return bool(runs) and all(run["status"] == "finished:completed" for run in runs)


def _wait_for(process: subprocess.Popen[bytes], port: int, ca: Path | None, log: Path) -> None:
    context = ssl.create_default_context(cafile=ca) if ca else None
    url = f"{'https' if ca else 'http'}://127.0.0.1:{port}/health"
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=1, context=context).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TimeoutError(f"the SuperLink did not start: {log.read_text()[-2000:]}")


def end_superlink(process: subprocess.Popen[bytes], home: str) -> None:
    """Terminates the SuperLink, and kills the processes that still have its home in their environment.

    Ray's processes start others while they are ended, so that one look at them is not enough. Raises TimeoutError where
    some do not end.
    """
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    deadline = time.monotonic() + STOP_TIMEOUT
    while pids := processes_of(home):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes of the SuperLink do not end: {pids}")
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes_of(home: str) -> list[int]:
    """Processes, on Linux, with FLWR_HOME=``home`` in the environment at their start."""
    needle, pids = f"FLWR_HOME={home}".encode(), []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = environ.read_bytes().split(b"\0")
        except OSError:  # gone, or another user's
            continue
        if needle in variables:
            pids.append(int(environ.parent.name))
    return pids


if __name__ == "__main__":
    main()
