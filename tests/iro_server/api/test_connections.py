"""Connections without a request, and file descriptors that run out."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import time
from contextlib import ExitStack

import httpx
import pytest

from iro_server.api import app, connections
from iro_server.api.connections import AcceptErrors, raise_descriptor_limit
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import serving, settings_for

PROBE = b"GET /v1/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def opened(client, stack: ExitStack) -> socket.socket:
    connection = stack.enter_context(socket.create_connection((client.base_url.host, client.base_url.port)))
    connection.settimeout(20)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """True once the server has closed the connection; TimeoutError where it does not."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def answered(connection: socket.socket) -> bool:
    connection.sendall(PROBE)
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(4096)
    return answer.startswith(b"HTTP/1.1 200")


def test_a_connection_that_sends_no_complete_header_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1.0)
    with serving(settings_for(tmp_path), ByteEngine()) as client, ExitStack() as stack:
        silent, partial, second, idle = (opened(client, stack) for _ in range(4))
        partial.sendall(PROBE[:20])
        assert answered(second) and answered(idle)
        second.sendall(PROBE[:20])
        assert all(map(is_closed, (silent, partial, second)))
        time.sleep(1.5)
        assert answered(idle)


def test_the_oldest_idle_connections_make_room_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "max_idle_connections", lambda: 20)
    with serving(settings_for(tmp_path), ByteEngine()) as client, ExitStack() as stack:
        oldest = [opened(client, stack) for _ in range(30)]
        time.sleep(1.5)
        newest = [opened(client, stack) for _ in range(20)]
        assert all(map(is_closed, oldest))
        assert httpx.get(f"{client.base_url}health/live").status_code == 200
        assert answered(newest[-1])


def test_the_limit_of_descriptors_is_raised_as_far_as_the_host_allows():
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        limit = raise_descriptor_limit()
        assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, connections.MAX_DESCRIPTORS)
        assert connections.max_idle_connections() == limit // 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@pytest.mark.parametrize(("number", "lines"), [(errno.EMFILE, 1), (errno.EPERM, 100)])
def test_exhausted_descriptors_are_logged_once_a_minute(caplog, number, lines):
    loop, handler = asyncio.new_event_loop(), AcceptErrors()
    with caplog.at_level(logging.ERROR):
        for _ in range(100):
            handler(loop, {"message": "socket.accept() out of system resource", "exception": OSError(number, "no")})
    loop.close()
    assert len(caplog.records) == lines
