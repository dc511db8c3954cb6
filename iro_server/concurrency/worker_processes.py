"""Python work on users' texts and schemas, in worker processes: in a thread of the server it would hold the
interpreter's lock, for which the embedded engine and the event loop would wait."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from typing import TypeVar, cast

from loky import ProcessPoolExecutor, get_reusable_executor
from loky.process_executor import ShutdownExecutorError, TerminatedWorkerError

Result = TypeVar("Result")

CPU_SECONDS = 3.0  # of one call
MEMORY_BYTES = 2**30  # of a worker's own memory; 0.25 GiB are its modules
IDLE_SECONDS = 60  # after which a worker ends
ORPHAN_SECONDS = 1.0  # between two looks of a worker whether its parent is alive
NICENESS = 10  # the engine's threads come first
_repeating = threading.Lock()  # one repeated call at a time, so that memory serves one more worker and no more


class WorkerKilled(Exception):
    """The worker process of a call was killed, and so was the one that repeated the call."""

    def __init__(self) -> None:
        super().__init__("ran out of memory, or was killed: its process ended without a result, twice")


def in_worker_process(
    function: Callable[..., Result], *args: object, load: Callable[[], object] | None = None
) -> Result:
    """What ``function`` returns or raises, computed in a worker process, which imports its module.

    ``load`` imports what the function imports where it first needs it, before its time counts. Waits while the workers
    are busy: to be called from a thread, not from an event loop. A killed worker ends the calls of the others too, so
    that each of these calls is repeated once, apart from the others. Raises TimeoutError after CPU_SECONDS of CPU time,
    MemoryError beyond MEMORY_BYTES, and WorkerKilled where the second process is killed too, as one is on a host out of
    memory.
    """
    with contextlib.suppress(TerminatedWorkerError, ShutdownExecutorError):
        return cast(Result, _executor().submit(_within_limits, function, args, load).result())
    with _repeating, ProcessPoolExecutor(1, initializer=_prepare_worker, initargs=(os.getpid(),)) as executor:
        try:
            return cast(Result, executor.submit(_within_limits, function, args, load).result())
        except TerminatedWorkerError as error:
            raise WorkerKilled from error


def _executor() -> ProcessPoolExecutor:
    """The workers of this process: started when they are first needed, and anew where one has ended."""
    workers = max(1, (os.cpu_count() or 1) // 2)
    return get_reusable_executor(
        workers, timeout=IDLE_SECONDS, initializer=_prepare_worker, initargs=(os.getpid(),), reuse=True
    )


def _prepare_worker(parent: int) -> None:
    """``parent``: the process id whose end is this worker's end."""
    os.nice(NICENESS)
    signal.signal(signal.SIGPROF, _time_is_up)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once ``parent`` has ended, which a killed one cannot ask for. (The kernel's signal for this,
    PR_SET_PDEATHSIG, comes when the parent's thread that started the worker ends.)"""
    while os.getppid() == parent:
        time.sleep(ORPHAN_SECONDS)
    os._exit(1)


def _within_limits(
    function: Callable[..., Result], args: tuple[object, ...], load: Callable[[], object] | None
) -> Result:
    assert threading.current_thread() is threading.main_thread(), "only there does a signal's handler run"
    if load is not None:
        load()
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # the kernel's time too: to give a process memory takes some
    try:
        return function(*args)
    except MemoryError:
        pass  # whose traceback holds the memory: the error below has none of it
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    raise MemoryError(f"took more than {MEMORY_BYTES // 2**20} MiB of memory")


def _time_is_up(signum: int, frame: object) -> None:
    raise TimeoutError(f"took more than {CPU_SECONDS:g} s")
