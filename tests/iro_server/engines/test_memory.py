"""What memory is free for caches, and which failures are of memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from iro_server.engines import memory
from iro_server.engines.memory import EngineOutOfMemory, as_memory_error, available_memory


@pytest.mark.parametrize(("limit", "room"), [("max", None), (2**20, 0), (2**60, None)])
def test_a_containers_limit_bounds_the_machines_memory(
    limit: str | int, room: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "memory.max"
    file.write_text(f"{limit}\n")
    monkeypatch.setattr(memory, "CGROUP_LIMIT", file)
    available = available_memory(torch.device("cpu"))
    assert available == room if room is not None else 0 < available <= psutil.virtual_memory().total


def test_only_failed_allocations_are_memory_errors() -> None:
    bug = RuntimeError("shapes do not match")
    assert as_memory_error(bug) is bug
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert isinstance(as_memory_error(raised.value), EngineOutOfMemory)
    assert isinstance(as_memory_error(torch.OutOfMemoryError("CUDA out of memory")), EngineOutOfMemory)
