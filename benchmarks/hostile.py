"""Hostile python graders against a real server, and what others notice: ``python -m benchmarks.hostile --json``.

Every grader of ``hostile_graders`` is sent to the route ``graders/run`` of a server with the real model, three at
once. Meanwhile one client chats and another grades with a python grader that means well; their latencies stand beside
those of a quiet server, and of one with three well-meaning graders at once that are as busy. Measured too: the
memory that the host has to spare, the counters of the sandboxes' cgroups where there are any, and what goes on in
sandboxes at rest whose graders have left something behind. The table is kept as ``OUT/table.md``. The exit status is 1
if anything was not contained.
"""

from __future__ import annotations

import os
import secrets
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks.host_watch import SETTLING, activity, host_use
from benchmarks.hostile_graders import HOSTILE, KINDS, LEFT_BEHIND, Hostile
from benchmarks.processes import ServerProcess, terminated_is_exit
from benchmarks.record import command_line, finish
from iro_server import JsonObject
from iro_server.graders.base import Sample
from iro_server.graders.cgroup import memory_bound
from iro_server.graders.environment import GraderEnvironment, PythonLimits
from iro_server.graders.parsing import parse_grader
from iro_server.settings import Settings

LIMITS = PythonLimits(memory_bytes=256 * 2**20, processes=16, disk_bytes=8 * 2**20, output_bytes=2**16, timeout=5)
AT_ONCE = 3
MOST_AT_REST = 0.1  # CPU seconds of sandboxes at rest
GOOD = "def grade(sample, item): return len(sample['output_text'])"
BUSY = """
import time
def grade(sample, item):
    end = time.monotonic() + 1
    while time.monotonic() < end: pass
    return 1.0
"""


def run_grader(http: httpx.Client, source: str, item: JsonObject, timeout: float = 5) -> JsonObject:
    grader = {"type": "python", "name": "a", "source": source, "timeout": timeout, "workers": 1}
    body = {"grader": grader, "item": item, "model_sample": "four"}
    return http.post("/fine_tuning/alpha/graders/run", json=body).raise_for_status().json()


def attack(http: httpx.Client, hostile: Hostile, secret: str, mark: str) -> JsonObject:
    """What the server answered, and whether that is what the grader must come to."""
    answer = run_grader(http, hostile.source(secret, mark), {"calm": False}, hostile.timeout)
    error, flags = answer["iro"]["error"], answer["metadata"]["errors"]
    raised = [flag for flag, is_up in flags.items() if is_up is True]
    if hostile.error is None:
        contained = (answer["reward"], error, raised) == (1.0, None, [])
    else:
        contained = answer["reward"] == 0 and hostile.error in error and raised == [hostile.flag]
    return {"name": hostile.name, "error": error, "flags": raised, "contained": contained}


@contextmanager
def others(http: httpx.Client) -> Iterator[dict[str, list[float]]]:
    """Seconds of a chat and of a grading, one after the other each, while the block runs."""
    calls: dict[str, Callable[[], object]] = {
        "chat": lambda: http.post("/chat/completions", json=CHAT).raise_for_status(),
        "grading": lambda: run_grader(http, GOOD, {}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    stopping = threading.Event()

    def go_on(name: str) -> None:
        while not stopping.is_set():
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
            stopping.wait(0.1)

    with ThreadPoolExecutor() as threads:
        running = [threads.submit(go_on, name) for name in calls]
        try:
            yield seconds
        finally:
            stopping.set()
        for future in running:
            future.result()


CHAT = {
    "model": Settings().model_name,
    "messages": [{"role": "user", "content": "What is a tide?"}],
    "max_tokens": 16,
    "seed": 1,
}


def measure(seconds: float) -> JsonObject:
    mark = f"hostile-{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory(prefix="iro-hostile-") as folder:
        secret = Path(folder) / "key"
        secret.write_text("the key")
        limits = LIMITS.model_dump_json()
        with (
            ServerProcess(Path(folder), python_limits=limits) as server,
            httpx.Client(base_url=server.url, timeout=120) as http,
            ThreadPoolExecutor(AT_ONCE) as threads,
        ):
            run_grader(http, GOOD, {})
            with others(http) as quiet:
                time.sleep(seconds)
            with others(http) as busy:
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    list(threads.map(lambda _: run_grader(http, BUSY, {}), range(AT_ONCE)))
            with host_use(server.process.pid) as use, others(http) as attacked:
                graders = list(threads.map(lambda hostile: attack(http, hostile, str(secret), mark), HOSTILE))
            children = psutil.Process(server.process.pid).children(recursive=True)
        _, surviving = psutil.wait_procs(children, timeout=5)
        untouched = secret.read_text() == "the key" and not (Path(folder) / mark).exists()
    latencies = {"quiet": quiet, "busy": busy, "attacked": attacked}
    return {
        "graders": graders,
        "contained": sum(each["contained"] for each in graders),
        "of": len(HOSTILE),
        "host_untouched": untouched,
        "processes_left": len(surviving),
        "memory_bound": memory_bound(),
        "host": use,
        "at_rest": at_rest(seconds=5),
        "latencies": {when: {what: quantiles(took) for what, took in each.items()} for when, each in latencies.items()},
        "cores": psutil.cpu_count(),
    }


def at_rest(seconds: float) -> dict[str, float]:
    """What goes on in the sandboxes of graders that are open, and have left something behind in a call."""
    grader_environment = GraderEnvironment(python="sandbox", python_limits=LIMITS)
    with ExitStack() as graders:
        for hostile in LEFT_BEHIND:
            spec = {"type": "python", "source": hostile.source("/nowhere", "nothing"), "workers": 1, "timeout": 5}
            graders.enter_context(parse_grader(spec, grader_environment)).grade(Sample("four"), {"calm": False})
        time.sleep(1)
        return activity(os.getpid(), seconds)


def quantiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=20)
    return {"count": len(seconds), "p50": statistics.median(seconds), "p95": cuts[18], "max": max(seconds)}


def table(result: JsonObject) -> str:
    """All of it as Markdown."""
    came = {each["name"]: each for each in result["graders"]}
    lines = ["| | while | calls | p50, s | p95, s | longest, s |", "|---|---|---|---|---|---|"]
    for when, latencies in result["latencies"].items():
        for call, q in latencies.items():
            lines.append(f"| {call} | {when} | {q['count']} | {q['p50']:.2f} | {q['p95']:.2f} | {q['max']:.2f} |")
    use, rest = result["host"], result["at_rest"]
    lines += ["", result["memory_bound"], "", "| measure | value |", "|---|---|"]
    lines.append(f"| host memory taken by attacks, at most, MiB | {use['memory_taken_mib']} |")
    lines.append(f"| host memory not given back {SETTLING:.0f} s after the last, MiB | {use['memory_kept_mib']} |")
    lines += [f"| highest {name} of a sandbox's cgroup | {value} |" for name, value in use["cgroup"].items()]
    lines.append(f"| CPU seconds of sandboxes at rest | {rest['cpu_seconds']:.2f} |")
    lines.append(f"| growth of sandboxes at rest, MiB | {rest['memory_grown_mib']} |")
    for kind, graders in KINDS.items():
        lines += ["", f"**{kind}**", "", "| grader | what came of it | flag |", "|---|---|---|"]
        for hostile in graders:
            if hostile.name not in came:  # newer than the results
                continue
            outcome = came[hostile.name]
            verdict = "graded, no harm done" if outcome["error"] is None else cell(outcome["error"])
            mark = "" if outcome["contained"] else " **not as it should be**"
            lines.append(f"| {hostile.name} | {verdict}{mark} | {', '.join(outcome['flags'])} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """The last line of a message, short, as a cell of a table."""
    line = text.strip().splitlines()[-1].strip()
    return (line if len(line) <= 90 else line[:89] + "…").replace("|", "\\|")


def main() -> None:
    parser = command_line("hostile", __doc__)
    parser.add_argument("--seconds", type=float, default=30, help="seconds of the quiet and the busy measurement")
    args = parser.parse_args()
    terminated_is_exit()
    result = measure(args.seconds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(table(result))
    finish(args, result, lambda numbers: print(table(numbers)))
    safe = result["contained"] == result["of"] and result["host_untouched"] and not result["processes_left"]
    safe = safe and result["at_rest"]["cpu_seconds"] < MOST_AT_REST
    sys.exit(0 if safe else 1)


if __name__ == "__main__":
    main()
