"""A run's folder in the data directory: what its process is to do, and what it says of itself.

``request.json``: the batch job and its config. ``files/<id>``: stored files that the config names. ``run/``: the run
folder of the batch job. ``status.json``: how far it is. ``error.json``: why it failed. ``log``: what it prints.
"""

from __future__ import annotations

import contextlib
import json
import os
from itertools import islice
from pathlib import Path

from iro_server import JsonObject
from iro_server.alignment.entry import JobEvent

PNG_END = b"IEND\xaeB`\x82"  # the chunk that closes every PNG file


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.out, self.files, self.log = path / "run", path / "files", path / "log"
        self._metrics, self._figures = self.out / "metrics.jsonl", self.out / "figures"

    def result(self) -> bytes | None:
        """The content of result.json. None: there is none."""
        return _content(self.out / "result.json")

    @property
    def metrics_bytes(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self._metrics.stat().st_size
        return 0

    def metrics(self, offset: int, limit: int) -> list[JsonObject]:
        """Up to ``limit`` rows after the first ``offset``."""
        rows: list[JsonObject] = []
        # ValueError: a run that is resumed writes its rows again, and the line was cut
        with contextlib.suppress(FileNotFoundError, ValueError), self._metrics.open() as lines:
            for line in islice(lines, offset, offset + limit):
                if line.endswith("\n"):  # else it is being written
                    rows.append(json.loads(line))
        return rows

    def figures(self) -> list[str]:
        """Names of PNG files, without the suffix."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(Path(name).stem for name in os.listdir(self._figures) if name.endswith(".png"))
        return []

    def figure(self, name: str) -> bytes | None:
        """The content of a PNG file of ``figures``. None: there is none of that name, or it is still being drawn."""
        content = _content(self._figures / f"{name}.png") if name in self.figures() else None
        return content if content is not None and content.endswith(PNG_END) else None

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
        content: JsonObject = json.loads(_content(self.path / name) or b"{}")
        return content

    def _write(self, name: str, value: JsonObject) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / f"{name}.partial"
        partial.write_text(json.dumps(value))
        os.replace(partial, self.path / name)


def _content(path: Path) -> bytes | None:
    """None: not written yet, or the run is being deleted."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None
