"""What a host has to spare while a benchmark runs, and what goes on in the sandboxes of a server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from iro_server import JsonObject
from iro_server.graders import cgroup

PERIOD = 0.1  # seconds between two samples of the host
SETTLING = 30.0  # seconds in which a kernel frees what ended processes held


@contextmanager
def sampled(sample: Callable[[], None], period: float = PERIOD) -> Iterator[None]:
    """Call ``sample`` while the block runs, ``period`` seconds after its last call."""
    stopping = threading.Event()

    def run() -> None:
        while not stopping.wait(period):
            sample()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


@contextmanager
def host_use(pid: int) -> Iterator[JsonObject]:
    """MiB of the host's available memory that go while the block runs, at most, at its end and ``SETTLING`` later, and
    the highest counters of the sandboxes' cgroups of server ``pid``, where it has any."""
    start = psutil.virtual_memory().available
    lowest, counters = start, dict[str, int]()

    def sample() -> None:
        nonlocal lowest
        lowest = min(lowest, psutil.virtual_memory().available)
        for name, value in cgroup_counters(pid):
            counters[name] = max(counters.get(name, 0), value)

    use: JsonObject = {"cgroup": counters}
    with sampled(sample):
        yield use
    use["memory_taken_mib"] = (start - lowest) // 2**20
    use["memory_at_end_mib"] = (start - psutil.virtual_memory().available) // 2**20
    time.sleep(SETTLING)
    use["memory_kept_mib"] = (start - psutil.virtual_memory().available) // 2**20


def cgroup_counters(pid: int) -> Iterator[tuple[str, int]]:
    """The counters of each sandbox's cgroup: memory in bytes, processes, and processes killed for the memory limit."""
    membership = Path(f"/proc/{pid}/cgroup").read_text()
    group = cgroup.server_group(Path("/proc/self/mountinfo").read_text(), membership)
    folder = group.parent if group and group.name == cgroup.SERVER else group
    for sandbox in folder.glob(f"{cgroup.SANDBOX}-{pid}-*") if folder else ():
        with contextlib.suppress(OSError):  # it has ended, or the hierarchy has no controller of memory
            yield "memory.peak", int((sandbox / "memory.peak").read_text())
            yield "pids.peak", int((sandbox / "pids.peak").read_text())
            events = dict(line.split() for line in (sandbox / "memory.events").read_text().splitlines())
            yield "oom_kill", int(events["oom_kill"])


def sandboxed(pid: int) -> list[psutil.Process]:
    """The processes within the sandboxes of process ``pid``, not bubblewrap's that watches from outside."""
    outside = [child for child in psutil.Process(pid).children() if child.name() == "bwrap"]
    return [process for child in outside for process in child.children(recursive=True)]


def activity(pid: int, seconds: float) -> dict[str, float]:
    """What the sandboxes of process ``pid`` do in ``seconds``: their processes, those of them that are not stopped at
    the end, their CPU seconds meanwhile and the MiB by which their memory has grown."""
    before, memory = cpu_seconds(pid), resident(pid)
    time.sleep(seconds)
    after = cpu_seconds(pid)
    return {
        "processes": len(after),
        "not_stopped": sum(process.status() != psutil.STATUS_STOPPED for process in after),
        "cpu_seconds": sum(spent - before.get(process, 0) for process, spent in after.items()),
        "memory_grown_mib": (resident(pid) - memory) // 2**20,
    }


def resident(pid: int) -> int:
    """Bytes of the processes in the sandboxes of process ``pid``."""
    return sum(process.memory_info().rss for process in sandboxed(pid))


def cpu_seconds(pid: int) -> dict[psutil.Process, float]:
    spent = {}
    for process in sandboxed(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent[process] = times.user + times.system
    return spent
