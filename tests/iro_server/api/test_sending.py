"""Clients that stop reading their answers, and streams that wait for their place."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from typing import Any

import openai
import pytest
import uvicorn

from iro_server.api import respond
from iro_server.api.app import Server, create_app
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import new_key, serving, settings_for, wait_for

HI = [{"role": "user", "content": "hi"}]
READERS = 200


def chat_body(**options: Any) -> bytes:
    return json.dumps({"model": "bytes", "messages": HI, "max_tokens": 100, "stream": True} | options).encode()


class Reader:
    """An ASGI client that reads ``parts`` parts of its answer, then stops but stays connected."""

    def __init__(self, key: str, parts: int) -> None:
        self.key, self.parts, self.sent = key, parts, []
        self.pending = [{"type": "http.request", "body": chat_body(), "more_body": False}]

    async def ask(self, app: Any) -> None:
        headers = [(b"authorization", f"Bearer {self.key}".encode()), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        scope |= {"query_string": b"", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"}
        await app(scope, self.receive, self.send)

    async def receive(self) -> dict[str, Any]:
        if not self.pending:
            await asyncio.Event().wait()
        return self.pending.pop()

    async def send(self, message: dict[str, Any]) -> None:
        if len(self.sent) >= self.parts:
            await asyncio.Event().wait()
        self.sent.append(message)


async def stopped_readers(app: Any, key: str, count: int) -> tuple[list[Reader], list[asyncio.Task[None]]]:
    readers = [Reader(key, parts=2) for _ in range(count)]
    return readers, [asyncio.create_task(reader.ask(app)) for reader in readers]


async def until(condition: Any, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.slow(10)
async def test_rows_are_free_once_all_is_computed_though_nobody_reads_it(tmp_path):
    settings = settings_for(tmp_path, max_active_rows=4)
    key, engine = new_key(settings, "reads"), ByteEngine("x" * 400)
    app = create_app(settings, engine)
    _, tasks = await stopped_readers(app, key, READERS)
    admission = app.state.context.admission
    await until(lambda: engine.opened == READERS, seconds=120)  # more would be generated than may be at once
    await until(lambda: admission.active == 0 and not admission.waiting, seconds=120)
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_readers_that_stop_lose_their_connections_and_rows_in_the_send_timeout(tmp_path):
    settings = settings_for(tmp_path, max_active_rows=READERS, send_timeout=1.0)
    key, engine = new_key(settings, "reads"), ByteEngine("x" * 400, noise=0.0, seconds_per_token=0.2)
    app = create_app(settings, engine)
    readers, tasks = await stopped_readers(app, key, READERS)  # each generates for 20 s
    await until(lambda: all(len(reader.sent) == 2 for reader in readers), seconds=120)
    await asyncio.wait_for(asyncio.gather(*tasks), 120)
    assert app.state.context.admission.active == 0
    await until(lambda: engine.open_sessions == 0, seconds=120)


@pytest.mark.slow(25)
def test_a_connection_whose_client_stops_reading_ends(tmp_path):
    """Its unread answer is larger than what the sockets hold."""
    settings = settings_for(tmp_path, send_timeout=1.0)
    key = new_key(settings, "reads")
    with serving(settings, ByteEngine("x" * 400)) as client, socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect((client.base_url.host, client.base_url.port))
        body = chat_body(max_tokens=400, n=128, logprobs=True, top_logprobs=1)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        head += f"Content-Type: application/json\r\nAuthorization: Bearer {key}\r\n\r\n"
        reader.sendall(head.encode() + body)
        assert reader.recv(15) == b"HTTP/1.1 200 OK"
        wait_for(lambda: reader.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET)


@pytest.mark.slow(8)
def test_a_stream_that_waits_for_its_place_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(respond, "COMMENT_SECONDS", 0.1, raising=False)
    settings = settings_for(tmp_path, max_active_rows=1, max_waiting=1)
    engine = ByteEngine("x" * 400, noise=0.0, seconds_per_token=0.06)
    key = new_key(settings, "waits")
    with serving(settings, engine) as client, ThreadPoolExecutor() as threads:
        create = client.with_options(api_key=key).chat.completions.create
        ask = {"model": "bytes", "messages": HI, "max_tokens": 100}
        running = threads.submit(create, **ask)
        wait_for(lambda: engine.open_sessions)
        with client.with_options(api_key=key).chat.completions.with_streaming_response.create(
            **ask | {"max_tokens": 2}, stream=True
        ) as response:
            assert response.status_code == 200 and not running.done()
            with pytest.raises(openai.InternalServerError) as refusal:  # one more than may wait: its status says so
                create(**ask, stream=True)
            assert (refusal.value.status_code, refusal.value.code) == (503, "overloaded")
            lines = list(response.iter_lines())
        assert lines[0] == ": waiting" and lines.count(": waiting") >= 3 and lines[-2] == "data: [DONE]"
        running.result()


def test_the_official_client_reads_a_stream_that_waited(tmp_path, monkeypatch):
    monkeypatch.setattr(respond, "COMMENT_SECONDS", 0.1, raising=False)
    settings = settings_for(tmp_path, max_active_rows=1)
    engine = ByteEngine("x" * 400, noise=0.0, seconds_per_token=0.02)
    with serving(settings, engine) as client, ThreadPoolExecutor() as threads:
        running = threads.submit(client.chat.completions.create, model="bytes", messages=HI, max_tokens=100)
        wait_for(lambda: engine.open_sessions)
        stream = client.chat.completions.create(model="bytes", messages=HI, max_tokens=8, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in stream) == "x" * 8
        running.result()


@pytest.mark.slow(7)
def test_a_connection_that_idles_longer_than_clients_keep_one_is_still_open(tmp_path):
    """httpx keeps one for 5 s: where the server closes it at that moment, the request on it is lost."""
    with serving(settings_for(tmp_path), ByteEngine()) as client:
        connection = HTTPConnection(client.base_url.host, client.base_url.port, timeout=60)
        connection.connect()
        first_socket = connection.sock
        for pause in (6, 0):
            connection.request("GET", "/v1/health")
            with connection.getresponse() as response:
                assert response.status == 200 and response.read()
            time.sleep(pause)
        assert connection.sock is first_socket
        connection.close()


async def test_a_connection_that_comes_while_the_server_stops_is_closed(tmp_path):
    """One that is being accepted when the others are told to close."""
    app = create_app(settings_for(tmp_path), ByteEngine())
    server = Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=60), drain=60)
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started, seconds=60)
    _, request = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    request.write(head + b"Content-Length: 9\r\n\r\n")  # its body does not come
    await until(lambda: server.server_state.tasks, seconds=60)
    server.should_exit = True
    await until(lambda: not server.servers[0].is_serving(), seconds=60)
    late, accepted = socket.socketpair()
    late.setblocking(False)
    loop, state = asyncio.get_running_loop(), server.server_state
    protocol = partial(server.config.http_protocol_class, server.config, state, server.lifespan.state)
    with late:
        await loop.connect_accepted_socket(protocol, accepted)
        assert await asyncio.wait_for(loop.sock_recv(late, 1), 20) == b""
    assert not running.done()
    request.close()
    await running
