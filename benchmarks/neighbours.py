"""What one tenant's attacks cost another: ``python -m benchmarks.neighbours --json``.

A real server of the real model with keys made by ``iro keys``. One tenant chats and, in another thread, stores and
deletes a file, lists its jobs and grades, one call after the other, alone before each attack, and beside each attack by
another tenant's key: the 95th percentile of each kind of call, and its ratio to the same alone. Calls that a status
other than 2xx answers are counted apart. Attackers are a process of the lowest priority, as they have machines of their
own in life. The figures are medians over ``--repeats`` rounds. With a part of the ``--attacks`` no results file is
written.
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
KINDS = ("chat", "files", "jobs", "grading")
COUNTED = ("calls", "failures")
SETTLING = 10.0  # seconds after an attack, in which its last requests end


def parse() -> argparse.Namespace:
    parser = command_line("neighbours", __doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of each measurement")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    return parser.parse_args()


class Tenant:
    """Who behaves well. ``num_calls`` of each kind; ``seconds`` of those that succeeded; ``failures``: statuses of the
    others."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        self.num_calls: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
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
        """p95 of each kind of call that succeeded, and what failed, over so many seconds and those of earlier calls of
        this method; three chats at least."""
        until = time.monotonic() + seconds
        with ThreadPoolExecutor(2) as threads:
            going = [threads.submit(self._go_on, kinds, until) for kinds in (["chat"], ["files", "jobs", "grading"])]
            for thread in going:
                thread.result()
        p95 = {kind: quantile(took) for kind, took in self.seconds.items() if took}
        return {"p95": p95, "calls": dict(self.num_calls), "failures": dict(self.failures)}

    def _go_on(self, kinds: Sequence[str], until: float) -> None:
        calls = self.calls()
        while time.monotonic() < until or self.num_calls[kinds[0]] < 3:
            for kind in kinds:
                start = time.perf_counter()
                response = calls[kind]()
                self.num_calls[kind] += 1
                if response.is_success:
                    self.seconds[kind].append(time.perf_counter() - start)
                else:
                    self.failures[response.status_code] += 1
            time.sleep(0.05)


def quantile(seconds: list[float]) -> float:
    if len(seconds) == 1:
        return seconds[0]
    return statistics.quantiles(seconds, n=20, method="inclusive")[18]


def key(data_dir: Path, name: str) -> str:
    iro = str(Path(sys.executable).with_name("iro"))
    process = subprocess.run(
        [iro, "keys", "create", name, "--data-dir", str(data_dir)], capture_output=True, check=True
    )
    return process.stdout.decode().strip()


def measure(seconds: float, attacks: list[str]) -> JsonObject:
    """One round: the tenant alone, for half of the seconds before each attack, beside each, and after the last one."""
    with tempfile.TemporaryDirectory(prefix="iro-neighbours-") as folder:
        secrets = [key(Path(folder), name) for name in ("tenant", "attacker")]
        with ServerProcess(Path(folder)) as server, client(server.url, secrets[0]) as http:
            Tenant(http).work(2)  # the first calls load
            alone = Tenant(http)
            result: JsonObject = {"alone": {}}
            for name in attacks:
                say(name)
                result["alone"] = alone.work(seconds / 2)
                with under(name, server.url, secrets[1]):
                    result[name] = Tenant(http).work(seconds)
                time.sleep(SETTLING)
            result["afterwards"] = Tenant(http).work(seconds)
    return result


def summarise(rounds: list[JsonObject]) -> JsonObject:
    """Medians over the rounds, of the kinds of call that succeeded in each; counts of all rounds."""
    rows = {}
    for name in rounds[0]:
        beside = [measured[name] for measured in rounds]
        alone = [measured["alone"] for measured in rounds]
        kinds = [kind for kind in KINDS if all(kind in cell["p95"] for cell in (*beside, *alone))]
        ratios = {
            kind: statistics.median(a["p95"][kind] / b["p95"][kind] for a, b in zip(beside, alone, strict=True))
            for kind in kinds
        }
        p95 = {kind: statistics.median(cell["p95"][kind] for cell in beside) for kind in kinds}
        calls, failures = (dict(sum((Counter(cell[part]) for cell in beside), Counter())) for part in COUNTED)
        holds = len(kinds) == len(KINDS) and max(ratios.values()) <= AIM and not failures
        rows[name] = {"p95": p95, "ratio": ratios, "calls": calls, "failures": failures, "holds": holds}
    return {"aim": AIM, "rows": rows, "rounds": len(rounds), "failed": "other than 2xx"}


def main() -> None:
    terminated_is_exit()
    args = parse()
    summary = summarise([measure(args.seconds, args.attacks) for _ in range(args.repeats)])
    if missing := [name for name in ATTACKS if name not in args.attacks]:
        print(f"No results file is written without {', '.join(missing)}.", neighbours(summary), sep="\n")
        return
    finish(args, summary, lambda numbers: print(neighbours(numbers)))


if __name__ == "__main__":
    main()
