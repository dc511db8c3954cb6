"""Places that projects take in turns."""

from __future__ import annotations

import asyncio

import pytest

from iro_server.concurrency.fair_queue import QueueFull
from iro_server.concurrency.fair_slots import FairSlots


async def test_projects_take_turns_and_one_has_its_share_at_most():
    slots, order, held = FairSlots(places=2, per_project=1, max_waiting=10), [], []

    async def work(project: str) -> None:
        async with slots.slot(project):
            order.append(project)
            held.append(project)
            assert len(held) <= 2 and held.count(project) == 1
            await asyncio.sleep(0.01)
            held.remove(project)

    await asyncio.gather(*(work(project) for project in "aaaaabc"))
    assert order[:2] == ["a", "b"] and "c" in order[:4] and len(order) == 7


async def test_a_cancelled_wait_leaves_its_place_to_others():
    slots = FairSlots(places=1, per_project=1, max_waiting=1)
    await slots.enter("a")
    waiting = asyncio.create_task(slots.enter("a"))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await slots.enter("a")
    waiting.cancel()
    await asyncio.wait([waiting])
    slots.leave("a")
    async with asyncio.timeout(5), slots.slot("b"):
        pass


async def test_a_wait_is_bounded():
    slots = FairSlots(places=1, per_project=1, max_waiting=1, max_seconds=0.01)
    await slots.enter("a")
    with pytest.raises(QueueFull, match="has waited"):
        await slots.enter("b")
