"""Why a sandbox is not there."""

from __future__ import annotations

import signal


class StartError(Exception):
    """The process does not start: no fault of the user's code, which has not run."""


class Ended(Exception):
    """The process is gone; the message says why."""


def fate(code: int) -> str:
    """What an exit code says of a process."""
    number = -code if code < 0 else code - 128  # as bubblewrap reports a signal
    is_signal = number in set(signal.Signals)
    return f"signal {signal.Signals(number).name}" if is_signal else f"exit code {code}"
