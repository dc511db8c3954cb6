"""How torch's OpenMP threads wait for work, on a machine that they share with another process."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SPIN_COUNT = "1000"  # GNU OpenMP's own default, where nobody chooses, is 300,000
CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def wait_without_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let idle OpenMP threads sleep, in this process and in those it starts, unless the environment says otherwise.

    GNU OpenMP reads the variable when torch is first imported; later it has no effect. Threads that spin while they
    wait take the core from whoever they wait for, once two processes share the machine: server and worker, say.
    """
    if not any(name in environment for name in CHOSEN_BY_USER):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
