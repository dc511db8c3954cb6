"""The benchmark of a vLLM server: its calls share the connections of one client."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks import serving


def a_bench(monkeypatch: pytest.MonkeyPatch, clients: list[Any]) -> serving.Bench:
    class Client(httpx.AsyncClient):
        def __init__(self, **options: Any) -> None:
            clients.append(self)
            super().__init__(transport=httpx.MockTransport(lambda _: httpx.Response(200, json={})), **options)

    monkeypatch.setattr(serving.httpx, "AsyncClient", Client)
    monkeypatch.setattr(serving, "LoraValues", lambda *_: None)
    monkeypatch.setattr(serving, "linear_heads", lambda *_: None)
    monkeypatch.setattr(serving, "rows_of", lambda payload, count, *_: [SimpleNamespace(tokens=[1, 2])] * count)
    replicas = SimpleNamespace(all=[SimpleNamespace(url="http://server/v1")])
    tokenizer = lambda text: {"input_ids": list(range(40))}  # noqa: E731
    engine: Any = SimpleNamespace(tokenizer=tokenizer, info=None, model="tiny", replicas=replicas)
    return serving.Bench(engine, SimpleNamespace(), 8)  # type: ignore[arg-type]


def test_all_calls_of_a_bench_are_by_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[Any] = []
    with closing(a_bench(monkeypatch, clients)) as bench:
        assert bench.plain(2) > 0 and bench.plain(1, requests=3) > 0
        assert len(clients) == 1 and not clients[0].is_closed
    assert clients[0].is_closed
