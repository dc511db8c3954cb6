"""What one tenant's attacks cost another: ``python -m benchmarks.neighbours --json``.

A real server of the real model with keys made by ``iro keys``. One tenant chats, stores and reads a file, lists its
jobs and grades, one call after the other, alone and beside each attack by another tenant's key: the 95th percentile of
each kind of call, and its ratio to the same alone, whatever 5xx the tenant saw. The attackers are threads of this
process and take their share of the machine's cores. The figures are medians over ``--repeats`` rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from benchmarks.processes import ServerProcess, say, terminated_is_exit
from benchmarks.record import command_line, finish
from benchmarks.tables import neighbours
from iro_server import JsonObject
from iro_server.settings import Settings

MODEL = Settings().model_name
ROW = json.dumps({"prompt": "The film was"}).encode() + b"\n"
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
AIM = 2.0

Attack = Callable[[httpx.Client, threading.Event], None]


def parse() -> argparse.Namespace:
    parser = command_line("neighbours", __doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of each measurement")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    return parser.parse_args()


def repeated(call: Callable[[httpx.Client], object], at_once: int) -> Attack:
    """The call, again and again in so many threads."""

    def attack(http: httpx.Client, stopping: threading.Event) -> None:
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


def deaf_readers(http: httpx.Client, stopping: threading.Event) -> None:
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


class Tenant:
    """Who behaves well. ``seconds`` of each kind of call; ``failures``: statuses of 500 and more."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        self.seconds: dict[str, list[float]] = {"chat": [], "files": [], "jobs": [], "grading": []}
        self.failures: Counter[int] = Counter()

    def calls(self) -> dict[str, Callable[[], httpx.Response]]:
        graded = {"grader": QUICK, "model_sample": "x", "item": {}}
        return {
            "chat": lambda: self.http.post("/chat/completions", json=CHAT),
            "files": self._store,
            "jobs": lambda: self.http.get("/fine_tuning/jobs"),
            "grading": lambda: self.http.post(RUN, json=graded),
        }

    def _store(self) -> httpx.Response:
        stored = self.http.post("/files", files={"file": ("rows.jsonl", ROW)}, data={"purpose": "fine-tune"})
        return self.http.delete(f"/files/{stored.json()['id']}") if stored.is_success else stored

    def work(self, seconds: float) -> JsonObject:
        """p95 of each kind of call, and what failed, over so many seconds; each kind three times at least."""
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(self.seconds["grading"]) < 3:
            for kind, call in self.calls().items():
                start = time.perf_counter()
                response = call()
                self.seconds[kind].append(time.perf_counter() - start)
                self.failures[response.status_code] += response.status_code >= 500
            time.sleep(0.05)
        p95 = {kind: quantile(took) for kind, took in self.seconds.items()}
        return {"p95": p95, "calls": len(self.seconds["chat"]), "failures": dict(+self.failures)}


def quantile(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20, method="inclusive")[18]


@contextlib.contextmanager
def under(attack: Attack, http: httpx.Client) -> Iterator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=attack, args=(http, stopping))
    thread.start()
    time.sleep(2)  # until it is in full swing
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def key(data_dir: Path, name: str) -> str:
    iro = str(Path(sys.executable).with_name("iro"))
    process = subprocess.run(
        [iro, "keys", "create", name, "--data-dir", str(data_dir)], capture_output=True, check=True
    )
    return process.stdout.decode().strip()


def measure(seconds: float, attacks: list[str]) -> JsonObject:
    """One round: the tenant alone, beside each attack, and after the last one."""
    with tempfile.TemporaryDirectory(prefix="iro-neighbours-") as folder:
        secrets = [key(Path(folder), name) for name in ("tenant", "attacker")]
        with ServerProcess(Path(folder)) as server, contextlib.ExitStack() as clients:
            tenant, attacker = (
                clients.enter_context(
                    httpx.Client(
                        base_url=server.url,
                        headers={"authorization": f"Bearer {secret}"},
                        timeout=120,
                        limits=httpx.Limits(max_connections=300),
                    )
                )
                for secret in secrets
            )
            Tenant(tenant).work(2)  # the first calls load
            result = {"alone": Tenant(tenant).work(seconds)}
            for name in attacks:
                say(name)
                with under(ATTACKS[name], attacker):
                    result[name] = Tenant(tenant).work(seconds)
            result["afterwards"] = Tenant(tenant).work(seconds)
    return result


def summarise(rounds: list[JsonObject]) -> JsonObject:
    rows = {}
    for name in rounds[0]:
        ratios = {
            kind: statistics.median(each[name]["p95"][kind] / each["alone"]["p95"][kind] for each in rounds)
            for kind in rounds[0]["alone"]["p95"]
        }
        p95 = {kind: statistics.median(each[name]["p95"][kind] for each in rounds) for kind in ratios}
        failures = sum((Counter(each[name]["failures"]) for each in rounds), Counter())
        holds = max(ratios.values()) <= AIM and not failures
        rows[name] = {"p95": p95, "ratio": ratios, "failures": dict(failures), "holds": holds}
    return {"aim": AIM, "rows": rows, "rounds": len(rounds)}


def main() -> None:
    terminated_is_exit()
    args = parse()
    summary = summarise([measure(args.seconds, args.attacks) for _ in range(args.repeats)])
    finish(args, summary, lambda numbers: print(neighbours(numbers)))


if __name__ == "__main__":
    main()
