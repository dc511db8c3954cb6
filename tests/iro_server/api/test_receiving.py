"""Requests whose bodies stop arriving, and files that a project has no room for."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack

import httpx
import pytest

from iro_server.api import receive_timeout
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import new_key, serving, settings_for, upload, wait_for

MIB = 2**20
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def settings(tmp_path):
    return settings_for(tmp_path, project_bytes=10 * MIB)


def begin(client, key: str, path: str, length: int, stack: ExitStack) -> socket.socket:
    """A connection that has sent the header of a form of ``length`` bytes, and the form's beginning."""
    connection = stack.enter_context(socket.create_connection((client.base_url.host, client.base_url.port)))
    connection.settimeout(30)
    header = (
        f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {length}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    )
    connection.sendall(header.encode())
    return connection


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(4096).split()[1])


@pytest.mark.parametrize("path", ["files", "uploads/upload_1/parts", "chat/completions"])
def test_a_body_that_stops_arriving_is_given_up(settings, monkeypatch, path):
    monkeypatch.setattr(receive_timeout, "RECEIVE_SECONDS", 1.0)
    key = new_key(settings, "stalls")
    with serving(settings, ByteEngine()) as client, ExitStack() as stack:
        connection = begin(client, key, path, 3 * MIB, stack)
        connection.sendall(b"x" * (2 * MIB))
        assert status_of(connection) == 408
        while connection.recv(4096):  # until the server closes the connection
            pass


def test_an_answer_may_take_longer_than_a_part_of_the_request(settings, monkeypatch):
    monkeypatch.setattr(receive_timeout, "RECEIVE_SECONDS", 0.5)
    with serving(settings, ByteEngine("x" * 20, noise=0.0, seconds_per_token=0.1)) as client:
        assert client.chat.completions.create(model="bytes", messages=HI, max_tokens=20).choices


def test_a_file_without_room_is_refused_before_it_arrives(settings):
    key = new_key(settings, "full")
    with serving(settings, ByteEngine()) as client, ExitStack() as stack:
        connection = begin(client, key, "files", 11 * MIB, stack)
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(2**16)
        assert answer.split()[1] == b"429" and b"insufficient_quota" in answer


def test_files_that_are_being_received_count_together(settings):
    key, other_key = new_key(settings, "full"), new_key(settings, "other")
    row = json.dumps({"messages": HI}).encode() + b"\n"
    with serving(settings, ByteEngine()) as client, ExitStack() as stack:
        stalled = begin(client, key, "files", 6 * MIB, stack)
        time.sleep(0.5)
        assert status_of(begin(client, key, "files", 6 * MIB, stack)) == 429
        upload(client.with_options(api_key=other_key), row * (6 * MIB // len(row)))
        stalled.close()
        tenant = client.with_options(api_key=key)
        wait_for(lambda: uploaded(tenant, row * (6 * MIB // len(row))), seconds=20)


def uploaded(client, content: bytes) -> bool:
    try:
        return bool(upload(client, content))
    except Exception as error:
        assert "insufficient_quota" in str(error)
        return False


def test_a_form_without_length_is_told_to_send_one_where_the_largest_has_no_room(settings):
    with serving(settings, ByteEngine()) as client:
        form = {"files": {"file": ("rows.jsonl", b'{"prompt": "a"}\n')}, "data": {"purpose": "fine-tune"}}
        request = httpx.Request("POST", f"{client.base_url}files", **form)
        chunked = httpx.post(
            request.url, content=iter([request.read()]), headers={"content-type": request.headers["content-type"]}
        )
        assert chunked.status_code == 411 and "Content-Length" in chunked.json()["error"]["message"]
        assert httpx.post(request.url, **form).status_code == 200
