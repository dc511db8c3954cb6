"""How long torch's idle OpenMP threads spin before they sleep, on a machine that they may share with other processes.

A thread that sleeps takes long to wake, at each of a step's many operations; one that spins keeps a core from others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

SPIN_COUNT = "20000"  # some tens of microseconds. GNU OpenMP's own default, where nobody chooses, is 300,000
SHARING_SPIN_COUNT = "5000"  # of a process that computes beside a server, with a fixed number of threads
CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Bound the time, in this process and in those it starts, unless the environment says otherwise.

    GNU OpenMP reads the variable when torch is first imported; later it has no effect.
    """
    if not any(name in environment for name in CHOSEN_BY_USER):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT


def job_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a job's process, which shares the machine with its server. A user's own choice stays."""
    if environment.get("GOMP_SPINCOUNT") == SPIN_COUNT:
        return {**environment, "GOMP_SPINCOUNT": SHARING_SPIN_COUNT}
    return dict(environment)
