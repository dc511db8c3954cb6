"""Threads that projects share: in rotation, each project within its own limits."""

from __future__ import annotations

import asyncio
import threading

import pytest

from iro_server.concurrency.fair_executor import FairExecutor
from iro_server.concurrency.fair_queue import QueueFull


class Calls:
    """Calls that block until the test lets them return."""

    def __init__(self, executor: FairExecutor) -> None:
        self.executor, self.started, self.release = executor, [], threading.Semaphore(0)

    def start(self, project: str, count: int = 1) -> list[asyncio.Task]:
        return [asyncio.create_task(self.executor.run(project, self._call, project)) for _ in range(count)]

    def _call(self, project: str) -> str:
        self.started.append(project)
        assert self.release.acquire(timeout=10)
        return project

    async def until_started(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.started) < count:
                await asyncio.sleep(0.01)


async def test_projects_take_turns_whatever_one_of_them_has_waiting():
    calls = Calls(FairExecutor("test", threads=1, per_project=1, max_waiting=8))
    tasks = calls.start("flood", 5)
    await calls.until_started(1)
    tasks += calls.start("second", 2) + calls.start("third")
    await asyncio.sleep(0)
    calls.release.release(8)
    await asyncio.gather(*tasks)
    assert calls.started == ["flood", "flood", "second", "third", "flood", "second", "flood", "flood"]


async def test_a_project_holds_no_more_threads_than_it_may():
    calls = Calls(FairExecutor("test", threads=4, per_project=2, max_waiting=8))
    tasks = calls.start("flood", 6)
    await calls.until_started(2)
    tasks += calls.start("other")
    await calls.until_started(3)
    assert sorted(calls.started) == ["flood", "flood", "other"]
    calls.release.release(7)
    await asyncio.gather(*tasks)


async def test_one_call_too_many_is_refused_and_other_projects_are_not():
    calls = Calls(FairExecutor("test", threads=2, per_project=1, max_waiting=2))
    tasks = calls.start("flood", 3)
    await calls.until_started(1)
    with pytest.raises(QueueFull, match="2 calls of this project wait"):
        await calls.executor.run("flood", print)
    tasks += calls.start("other")
    calls.release.release(4)
    assert await asyncio.gather(*tasks) == ["flood"] * 3 + ["other"]


async def test_a_call_that_is_given_up_leaves_its_place():
    calls = Calls(FairExecutor("test", threads=1, per_project=1, max_waiting=1))
    running, waiting = calls.start("a", 2)
    await calls.until_started(1)
    waiting.cancel()
    await asyncio.wait({waiting})
    (waiting,) = calls.start("a")
    running.cancel()  # its thread goes on, and stays taken
    await asyncio.wait({running})
    assert calls.started == ["a"]
    calls.release.release(2)
    assert await waiting == "a"
    (last,) = calls.start("b")
    calls.release.release()
    assert await last == "b"


async def test_a_call_that_waits_too_long_is_refused_and_leaves_the_queue():
    calls = Calls(FairExecutor("test", threads=1, per_project=1, max_waiting=1, max_seconds=0.2))
    (running,) = calls.start("a")
    await calls.until_started(1)
    for _ in range(2):  # the second has the place in the queue that the first has left
        with pytest.raises(QueueFull, match=r"waited for 0\.2 s"):
            await calls.executor.run("b", print)
    calls.release.release(2)
    assert await running == "a"
    (last,) = calls.start("b")
    assert await last == "b"
    assert calls.started == ["a", "b"]
