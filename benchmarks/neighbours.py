"""What one tenant's attacks cost another: ``python -m benchmarks.neighbours --json``.

A real server of the real model with keys made by ``iro keys``. One tenant chats and, in another thread, stores and
deletes a file, lists its jobs and grades, one call after the other, alone and beside each attack by another tenant's
key: the 95th percentile of each kind of call, and its ratio to the same alone, whatever 5xx the tenant saw. Attackers
are a process of the lowest priority, as they have machines of their own in life. The figures are medians over
``--repeats`` rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from benchmarks.neighbour_attacks import ATTACKS, CHAT, QUICK, RUN, client, under
from benchmarks.processes import ServerProcess, say, terminated_is_exit
from benchmarks.record import command_line, finish
from benchmarks.tables import neighbours
from iro_server import JsonObject

ROW = json.dumps({"prompt": "The film was"}).encode() + b"\n"
AIM = 2.0
SETTLING = 10.0  # seconds after an attack, in which its last requests end


def parse() -> argparse.Namespace:
    parser = command_line("neighbours", __doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of each measurement")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    return parser.parse_args()


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
        """p95 of each kind of call, and what failed, over so many seconds; three chats at least."""
        until = time.monotonic() + seconds
        with ThreadPoolExecutor(2) as threads:
            going = [threads.submit(self._go_on, kinds, until) for kinds in (["chat"], ["files", "jobs", "grading"])]
            for thread in going:
                thread.result()
        p95 = {kind: quantile(took) for kind, took in self.seconds.items()}
        calls = {kind: len(took) for kind, took in self.seconds.items()}
        return {"p95": p95, "calls": calls, "failures": dict(+self.failures)}

    def _go_on(self, kinds: Sequence[str], until: float) -> None:
        calls = self.calls()
        while time.monotonic() < until or len(self.seconds[kinds[0]]) < 3:
            for kind in kinds:
                start = time.perf_counter()
                response = calls[kind]()
                self.seconds[kind].append(time.perf_counter() - start)
                self.failures[response.status_code] += response.status_code >= 500
            time.sleep(0.05)


def quantile(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20, method="inclusive")[18]


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
        with ServerProcess(Path(folder)) as server, client(server.url, secrets[0]) as http:
            Tenant(http).work(2)  # the first calls load
            result = {"alone": Tenant(http).work(seconds)}
            for name in attacks:
                say(name)
                with under(name, server.url, secrets[1]):
                    result[name] = Tenant(http).work(seconds)
                time.sleep(SETTLING)
            result["afterwards"] = Tenant(http).work(seconds)
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
