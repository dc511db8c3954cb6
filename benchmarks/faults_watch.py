"""How far a job is, by its run folder: what a kill interrupts."""

from __future__ import annotations

import random
from pathlib import Path

from iro_server.jobs import lock

START = "start"  # imports, the model, or the first step after them
CHECKPOINT = "writing a checkpoint"
END = "end"  # result, metrics table, figures, success
KINDS = ("rollouts", "rewards", "fit", "beta", "validation", "report")
MOMENTS = (START, *KINDS, CHECKPOINT, END)
LENGTHS = {START: 6.0, "rollouts": 0.5, "rewards": 0.01, "fit": 0.2, "beta": 0.3, "validation": 0.5, "report": 0.02}
LENGTHS[END] = 1.0  # seconds within which to strike, about as long as the moment takes


def kind(step: str) -> str:
    """What a step of the alignment run (``training/iro/loop.py``) does."""
    if "-valid" in step:
        return "validation"
    return next((each for each in KINDS if each in step), "fit")  # the scale of rewards belongs to the fit


class Watch:
    """A job's worker, ``pid``, and what it has done. ``steps``: the names of all that the run will do, in order."""

    def __init__(self, folder: Path, steps: list[str]) -> None:
        self.folder, self.steps = folder, steps
        self.checkpoints = folder / "run" / "checkpoints"
        self.pid = 0
        self.before: set[str] = set()
        self.modified_ns: dict[str, int] = {}

    def update(self) -> None:
        """See whether the job has a worker, and what there was before it."""
        pid = lock.holder(self.folder) or 0
        if pid != self.pid:
            self.pid, self.before = pid, self._names()

    def moment(self) -> str:
        """What the worker is at or, where it was killed, was."""
        names = self._names()
        new = names - self.before
        if any(name.endswith(".partial") for name in new):
            return CHECKPOINT
        if not new:
            return START
        return next((kind(step) for step in self.steps if f"{step}.pt" not in names), END)

    def within(self, moment: str, rng: random.Random) -> float:
        """Seconds to wait, so that the middle of a moment is struck as well as its start."""
        return rng.uniform(0, LENGTHS.get(moment, 0.0))

    def repeated(self) -> list[str]:
        """Steps that were computed again since the last call."""
        repeated_steps = []
        for path in self.checkpoints.glob("*.pt"):
            modified_ns = path.stat().st_mtime_ns
            if self.modified_ns.setdefault(path.name, modified_ns) != modified_ns:
                repeated_steps.append(path.stem)
                self.modified_ns[path.name] = modified_ns
        return repeated_steps

    def _names(self) -> set[str]:
        return {path.name for path in self.checkpoints.glob("*")}
