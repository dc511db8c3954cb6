"""A run's folder in the data directory: what its process is to do, and what it says of itself.

``request.json``: the batch job and its config. ``files/<id>``: stored files that the config names. ``run/``: the run
folder of the batch job. ``status.json``: how far it is. ``error.json``: why it failed. ``log``: what it prints.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from iro_server import JsonObject
from iro_server.alignment.entry import JobEvent


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.out, self.files, self.log = path / "run", path / "files", path / "log"

    @property
    def result(self) -> Path:
        return self.out / "result.json"

    @property
    def metrics_bytes(self) -> int:
        metrics = self.out / "metrics.jsonl"
        return metrics.stat().st_size if metrics.exists() else 0

    def metrics(self, offset: int, limit: int) -> list[JsonObject]:
        """Up to ``limit`` rows after the first ``offset``."""
        return list(islice(self._rows(), offset, offset + limit))

    def _rows(self) -> Iterator[JsonObject]:
        if self.metrics_bytes == 0:
            return
        with (self.out / "metrics.jsonl").open() as lines:
            for line in lines:
                if line.endswith("\n"):  # else it is being written
                    yield json.loads(line)

    def figures(self) -> dict[str, Path]:
        """PNG files by name without the suffix."""
        return {path.stem: path for path in sorted((self.out / "figures").glob("*.png"))}

    def write_request(self, kind: str, config: JsonObject) -> None:
        """``config``: ids of the stored files become their paths."""
        stored = {path.name: str(path) for path in self.files.glob("*")}
        resolved = {
            name: stored.get(value, value) if isinstance(value, str) else value for name, value in config.items()
        }
        self._write("request.json", {"kind": kind, "config": resolved})

    def request(self) -> JsonObject:
        return self._read("request.json")

    def note(self, event: JobEvent) -> None:
        """Note an event of the batch job, for whoever asks how far it is."""
        status = self.status()
        if event["type"] == "progress":
            status["progress"] = event["data"]
        elif event["message"]:
            status["message"] = event["message"]
        self._write("status.json", status)

    def status(self) -> JsonObject:
        """``progress``: steps that are done and their total; ``message``: the last. Either may be absent."""
        return self._read("status.json")

    def saved_state(self) -> tuple[JsonObject | None, int]:
        """What changes with each step that the run saves: its progress, and when its last checkpoint was written (ns),
        of checkpoints that are kept here."""
        written = [0]
        for path in (self.out / "checkpoints").glob("*.pt"):
            with contextlib.suppress(FileNotFoundError):  # the run has dropped it since
                written.append(path.stat().st_mtime_ns)
        return self.status().get("progress"), max(written)

    def write_error(self, code: str, message: str, param: str | None) -> None:
        self._write("error.json", {"code": code, "message": message, "param": param})

    def error(self) -> JsonObject:
        """Empty where the process wrote none."""
        return self._read("error.json")

    def clear_error(self) -> None:
        (self.path / "error.json").unlink(missing_ok=True)

    def _read(self, name: str) -> JsonObject:
        try:
            content: JsonObject = json.loads((self.path / name).read_text())
        except FileNotFoundError:  # not written yet, or the run is being deleted
            return {}
        return content

    def _write(self, name: str, value: JsonObject) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / f"{name}.partial"
        partial.write_text(json.dumps(value))
        os.replace(partial, self.path / name)
