"""Conversions of several projects at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from iro_server.concurrency.fair_queue import QueueFull
from iro_server.store.conversions import ConversionSlots


def test_a_project_has_one_conversion_and_the_server_two():
    slots = ConversionSlots(slots=2, max_seconds=0.1)
    with slots.hold("a"):
        with pytest.raises(QueueFull, match="has waited for"), slots.hold("a"):
            pass
        with slots.hold("b"), pytest.raises(QueueFull), slots.hold("c"):
            pass
    with slots.hold("a"), slots.hold("c"):
        pass


def test_one_that_waits_runs_once_another_has_ended_and_a_second_is_refused_at_once():
    slots, waits = ConversionSlots(slots=1, max_seconds=60), threading.Event()

    def convert() -> str:
        waits.set()
        with slots.hold("a"):
            return "converted"

    with ThreadPoolExecutor(1) as threads, ExitStack() as held:
        held.enter_context(slots.hold("a"))
        waiting = threads.submit(convert)
        waits.wait()
        while not slots._queue._waiting:
            pass
        with pytest.raises(QueueFull, match="1 calls of this project wait"), slots.hold("a"):
            pass
        held.close()
        assert waiting.result(10) == "converted"
