"""The benchmark of tilts: what the answers a second of tilted requests are compared with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks import tilts
from benchmarks.workload import BEAM
from iro_server.decoding.base import SearchParams
from iro_server.engines.base import Steering

SECONDS = {"searches": {1: 2.0, 16: 12.0}, "requests": {16: 3.0}}


class TimedBench(tilts.Bench):
    """A machine that needs ``SECONDS`` for so many searches or requests at once."""

    def __init__(self) -> None:
        self.engine, self.repeats = cast(Any, SimpleNamespace(info=None)), 2

    def seconds(self, params: SearchParams, steerings: list[Steering | None], values: Any = None) -> float:
        return SECONDS["searches" if params == BEAM else "requests"][len(steerings)]


def test_tilted_requests_are_compared_with_as_many_searches_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tilts, "linear_heads", lambda info, count: None)
    ratios = TimedBench().against_searches([cast(Steering, None)] * 16)
    assert ratios == {"at once": [4.0, 4.0], "one after another": [16 * 2 / 3] * 2}
