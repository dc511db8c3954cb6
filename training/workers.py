"""Independent calls, in this process or in parallel processes, that stop when their run is cancelled."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

import torch

from training.run import Cancelled, Run

Value = TypeVar("Value")
_stop: Event | None = None  # in a worker: set once its run ends


@contextmanager
def workers(count: int, run: Run) -> Iterator[Callable[..., Callable[[], Any]]]:
    """Gives ``submit(function, *arguments)``, which returns a function that waits for the value.

    With one worker, waiting makes the call in this process. ``function`` may call ``stop_if_asked`` in either case.
    """
    if count == 1:
        yield partial
        return
    context = get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(count, context, initializer=_begin, initargs=(stop,)) as pool:
        try:
            yield lambda function, *arguments: partial(_value, pool.submit(function, *arguments), run)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch to one thread: the bits of a sum depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def computed_steps(
    run: Run,
    submit: Callable[..., Callable[[], Any]],
    calls: Mapping[str, Callable[[], Value]],
    report: Callable[[str, Value], None],
) -> dict[str, Value]:
    """The value of each call, as the run's step of that name. ``report`` is told of each new one, within its step."""
    waits = {name: submit(call) for name, call in calls.items() if not run.has(name)}

    def reported(name: str) -> Value:
        value: Value = waits[name]()
        report(name, value)
        return value

    return {name: run.step(name, partial(reported, name)) for name in calls}


def stop_if_asked() -> None:
    """In a worker, raise Cancelled once its run has ended."""
    if _stop is not None and _stop.is_set():
        raise Cancelled("the run has ended")


def _begin(stop: Event) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run handles Ctrl-C
    threading.Thread(target=_end_with_run, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_run() -> None:
    """End this worker when its run's process ends, because a killed run cannot stop its workers."""
    run = parent_process()
    assert run is not None
    run.join()
    os._exit(1)


def _value(future: Future[Value], run: Run) -> Value:
    while not future.done():
        run.stop_if_asked()
        wait([future], timeout=0.5)
    return future.result()
