"""Connections whose requests arrive a byte at a time."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from contextlib import ExitStack

from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import new_key, serving, settings_for

CONNECTIONS = 500
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\nX-Padding: " + b"x" * 1000


def test_others_are_served_beside_500_connections_that_send_a_byte_a_second(tmp_path):
    settings = settings_for(tmp_path)
    key = new_key(settings, "tenant")
    with serving(settings, ByteEngine()) as client, ExitStack() as stack:
        address = (client.base_url.host, client.base_url.port)
        senders = [stack.enter_context(socket.create_connection(address)) for _ in range(CONNECTIONS)]
        ended = threading.Event()

        def send() -> None:
            for byte in itertools.takewhile(lambda _: not ended.is_set(), REQUEST):
                for sender in senders:
                    sender.send(bytes([byte]))
                ended.wait(1)

        sending = threading.Thread(target=send)
        sending.start()
        try:
            tenant = client.with_options(api_key=key)
            for _ in range(5):
                started = time.monotonic()
                tenant.chat.completions.create(
                    model="bytes", messages=[{"role": "user", "content": "hi"}], max_tokens=4
                )
                assert time.monotonic() - started < 20
                time.sleep(0.5)
        finally:
            ended.set()
            sending.join()
