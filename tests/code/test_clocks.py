"""What tests may not do to the process that they share with servers of other tests."""

from __future__ import annotations

import re
from pathlib import Path

SETS_A_CLOCK = re.compile(r"""setattr\(\s*(?:\w+\.)*time,|setattr\(\s*["']time\.|\btime\.(?:monotonic|time|sleep) = """)


def test_no_test_sets_a_clock_that_event_loops_read() -> None:
    """A loop that reads another ``time.monotonic`` once waits for as long as the clocks differ: a server whose loop did
    so while a test of threads ran did not stop. A test replaces the name ``time`` in the module that it tests."""
    tests = Path(__file__).parents[1]
    setting = [path.name for path in tests.rglob("*.py") if SETS_A_CLOCK.search(path.read_text())]
    assert setting == []
