"""The attacks of one tenant on another, for ``benchmarks.neighbours``: calls that go on until they are stopped."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Event

import httpx

from iro_server.settings import Settings

MODEL = Settings().model_name
QUICK = {
    "type": "string_check",
    "name": "quick",
    "input": "{{sample.output_text}}",
    "reference": "x",
    "operation": "eq",
}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "What is a tide?"}], "max_tokens": 8, "seed": 1}
SLEEPER = {
    "type": "python",
    "name": "sleeper",
    "source": "import time\n\ndef grade(sample, item):\n    time.sleep(30)\n",
}
STREAMS, FLOOD, SLEEPERS = 200, 64, 12
RUN, VALIDATE = "/fine_tuning/alpha/graders/run", "/fine_tuning/alpha/graders/validate"

Attack = Callable[[httpx.Client, Event], None]


def client(url: str, key: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=url, headers=headers, timeout=120, limits=httpx.Limits(max_connections=300))


@contextlib.contextmanager
def under(name: str, url: str, key: str) -> Iterator[None]:
    """The attack goes on while the block runs, in a process of the lowest priority: attackers have own machines."""
    context = get_context("spawn")
    started, stopping = context.Event(), context.Event()
    process = context.Process(target=attack_until, args=(name, url, key, started, stopping))
    process.start()
    started.wait()
    time.sleep(2)  # until it is in full swing
    try:
        yield
    finally:
        stopping.set()
        process.join()


def attack_until(name: str, url: str, key: str, started: Event, stopping: Event) -> None:
    os.nice(19)
    with client(url, key) as http:
        started.set()
        ATTACKS[name](http, stopping)


def repeated(call: Callable[[httpx.Client], object], at_once: int) -> Attack:
    """The call, again and again in so many threads."""

    def attack(http: httpx.Client, stopping: Event) -> None:
        def go_on(_: int) -> None:
            while not stopping.is_set():
                with contextlib.suppress(httpx.HTTPError):
                    call(http)

        with ThreadPoolExecutor(at_once) as threads:
            list(threads.map(go_on, range(at_once)))

    return attack


def schema(http: httpx.Client) -> None:
    """200 references to the schema itself, in a job's response_format."""
    properties = {f"p{number}": {"$ref": "#"} for number in range(200)}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": properties}}}
    method = {"type": "reinforcement", "reinforcement": {"grader": QUICK, "response_format": form}}
    http.post("/fine_tuning/jobs", json={"model": MODEL, "training_file": "file-none", "method": method})


def similarity(metric: str) -> Callable[[httpx.Client], None]:
    def call(http: httpx.Client) -> None:
        grader = {"type": "text_similarity", "name": "near", "evaluation_metric": metric}
        grader |= {"input": "{{sample.output_text}}", "reference": "{{item.text}}"}
        item = {"text": "the tide goes out " * 5500}
        http.post(RUN, json={"grader": grader, "model_sample": "the tide comes in " * 5500, "item": item})

    return call


def brackets(http: httpx.Client) -> None:
    http.post(VALIDATE, content=b"[" * (22 * 2**20), headers={"content-type": "application/json"})


def sleepers(http: httpx.Client) -> None:
    http.post(RUN, json={"grader": SLEEPER, "model_sample": "x", "item": {}}, timeout=60)


def judged(http: httpx.Client) -> None:
    """A judge that is a model of this server."""
    judge = {"type": "score_model", "name": "judge", "model": MODEL, "range": [0, 1]}
    judge["input"] = [{"role": "user", "content": "Rate: {{sample.output_text}}"}]
    http.post(RUN, json={"grader": judge, "model_sample": "x", "item": {}})


def flood(http: httpx.Client) -> None:
    http.post("/chat/completions", json=CHAT | {"max_tokens": 32})


def deaf_readers(http: httpx.Client, stopping: Event) -> None:
    """Streams whose readers stop after the first bytes."""
    body = json.dumps(CHAT | {"stream": True, "max_tokens": 64}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {http.base_url.host}\r\nContent-Type: application/json\r\n"
    head += f"Authorization: {http.headers['authorization']}\r\nContent-Length: {len(body)}\r\n\r\n"
    address = (http.base_url.host, http.base_url.port or 80)
    with contextlib.ExitStack() as readers:
        for _ in range(STREAMS):
            reader = readers.enter_context(socket.create_connection(address, timeout=30))
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            reader.sendall(head.encode() + body)
        stopping.wait()


ATTACKS: dict[str, Attack] = {
    "schema of 200 references": repeated(schema, 4),
    "fuzzy_match of 100 KB": repeated(similarity("fuzzy_match"), 4),
    "rouge_l of 100 KB": repeated(similarity("rouge_l"), 4),
    "bodies of 22 MiB": repeated(brackets, 2),
    "200 streams that nobody reads": deaf_readers,
    "sleeping graders": repeated(sleepers, SLEEPERS),
    "judges on this server": repeated(judged, 8),
    "a flood of chats": repeated(flood, FLOOD),
}
