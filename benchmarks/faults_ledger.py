"""What a fault run counts, phase by phase."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iro_server import JsonObject


class Phase:
    """``kills`` by (what was killed, at what moment); ``acknowledged`` by kind of item. Threads may note at once.

    ``lost``: acknowledged items that were not there, or not as they were, afterwards. ``stuck``: what never came to
    its end. ``unequal``: results that differ from an uninterrupted run's. ``repeated``: work or rows that were there
    twice. ``failed``: expectations of another kind. ``skipped`` says why nothing was done.
    """

    FAULTS = ("lost", "stuck", "unequal", "repeated", "failed")

    def __init__(self, name: str) -> None:
        self.name = name
        self.kills: Counter[tuple[str, str]] = Counter()
        self.acknowledged: Counter[str] = Counter()
        self.faults: dict[str, list[str]] = {fault: [] for fault in self.FAULTS}
        self.notes: Counter[str] = Counter()
        self.jobs = 0
        self.skipped: str | None = None
        self._lock = threading.Lock()

    def killed(self, target: str, moment: str) -> None:
        self.kills[target, moment] += 1
        print(f"{self.name}: kill {self.kills.total()}, {target} at {moment}", flush=True)

    def acknowledge(self, kind: str, count: int = 1) -> None:
        with self._lock:
            self.acknowledged[kind] += count

    def note(self, event: str) -> None:
        with self._lock:
            self.notes[event] += 1

    def fault(self, fault: str, description: str) -> None:
        with self._lock:
            self.faults[fault].append(description)
        print(f"{self.name}: {fault}: {description}", flush=True)

    def expect(self, holds: bool, description: str) -> None:
        if not holds:
            self.fault("failed", description)

    def row(self) -> JsonObject:
        kills = [{"target": t, "moment": m, "count": count} for (t, m), count in sorted(self.kills.items())]
        row: JsonObject = {"phase": self.name, "kills": self.kills.total(), "kills_by_moment": kills}
        row |= {"acknowledged": dict(self.acknowledged), "jobs": self.jobs, "notes": dict(self.notes)}
        return row | self.faults | {"skipped": self.skipped}


class Ledger:
    """All phases, on disk after each."""

    def __init__(self, out: Path, options: JsonObject) -> None:
        self.path, self.options = out / "results.json", options
        self.phases: list[Phase] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        phase = Phase(name)
        self.phases.append(phase)
        try:
            yield phase
        except Exception as error:
            phase.fault("failed", f"the phase broke off: {type(error).__name__}: {error}")
            raise
        finally:
            self.save()

    def save(self) -> None:
        self.path.write_text(json.dumps(self.summary(), indent=1) + "\n")

    def faults(self) -> int:
        return sum(len(details) for phase in self.phases for details in phase.faults.values())

    def summary(self) -> JsonObject:
        rows = [phase.row() for phase in self.phases]
        total: JsonObject = {"kills": sum(row["kills"] for row in rows), "jobs": sum(row["jobs"] for row in rows)}
        total["acknowledged"] = sum(sum(row["acknowledged"].values()) for row in rows)
        total |= {fault: sum(len(row[fault]) for row in rows) for fault in Phase.FAULTS}
        return {"asked": self.options, "total": total, "phases": rows}
