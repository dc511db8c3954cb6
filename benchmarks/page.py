"""The page beside a job that trains, and its way to a first aligned answer: ``python -m benchmarks.page --json``.

A real server of the real model with an empty data directory, and Chromium. A script takes the way of a new user: the
example of "New job", the job, "Try it", an answer of the aligned model. The time beyond the job's own is what server,
page and clicks take; a person reads and decides besides. While the job runs on the same cores, another client reads
what the page reads, one call after the other.
"""

from __future__ import annotations

import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import httpx
from playwright.sync_api import Page, sync_playwright

from benchmarks.host_watch import sampled
from benchmarks.processes import ServerProcess, say, terminated_is_exit
from benchmarks.record import command_line, finish
from benchmarks.tables import page_reads, way_to_an_answer
from iro_server import JsonObject

AIMS = {"seconds_beyond_the_job": 180.0, "read_p95_ms": 200.0, "first_paint_ms": 1000.0}
PAUSE = 0.2  # seconds between reads
MINUTES = 60_000  # milliseconds
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


class Reads:
    """Milliseconds of each kind of read."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=120)
        self.milliseconds: dict[str, list[float]] = {}

    @cached_property
    def urls(self) -> dict[str, str]:
        """Of each kind, once there is a job."""
        (job,) = self.http.get("/fine_tuning/jobs").json()["data"]
        paths = {"jobs": "", "job": f"/{job['id']}", "events": f"/{job['id']}/events?limit=100"}
        paths["checkpoints"] = f"/{job['id']}/checkpoints"
        return {kind: f"/fine_tuning/jobs{path}" for kind, path in paths.items()} | {"models": "/models"}

    def read_all(self) -> None:
        for kind, url in self.urls.items():
            start = time.perf_counter()
            self.http.get(url).raise_for_status()
            self.milliseconds.setdefault(kind, []).append(1000 * (time.perf_counter() - start))

    def summary(self) -> JsonObject:
        return {
            kind: {"count": len(times), "p50": statistics.median(times), "p95": cuts[18]}
            for kind, times in self.milliseconds.items()
            for cuts in [statistics.quantiles(times, n=20, method="inclusive")]
        }


class Stopwatch:
    """``seconds`` of each step of the way."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start
        say(f"{name}: {self.seconds[name]:.1f} s")


def start_example(page: Page) -> None:
    page.get_by_role("link", name="Start your first job").click()
    page.get_by_role("button", name="Fill in an example").click()
    page.get_by_role("button", name="Start the job").click()
    page.get_by_role("button", name="Cancel").wait_for()


def first_answer(page: Page) -> None:
    """The aligned model's answer beside the frozen model's and the best of n."""
    page.get_by_role("link", name="Try it", exact=True).first.click()
    page.get_by_role("button", name="Generate").click()
    page.get_by_text(re.compile("tokens.* drawn")).nth(2).wait_for()


def measure(folder: Path) -> JsonObject:
    watch, server = Stopwatch(), ServerProcess(folder)
    reads = Reads(server.url)
    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        stack.callback(browser.close)
        page = browser.new_page()
        page.set_default_timeout(60 * MINUTES)
        with watch.step("server starts"):
            stack.enter_context(server)
        with watch.step("page opens"):
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.get_by_role("link", name="Start your first job").wait_for()
        paint = page.evaluate(PAINT)
        with watch.step("example is filled in and started"):
            start_example(page)
        with watch.step("job"), sampled(reads.read_all, PAUSE):
            page.get_by_text(re.compile("^succeeded$")).first.wait_for()
        with watch.step("first answers"):
            first_answer(page)
    return {
        "aims": AIMS,
        "seconds": watch.seconds,
        "seconds_beyond_the_job": sum(watch.seconds.values()) - watch.seconds["job"],
        "first_paint_ms": paint,
        "reads_ms": reads.summary(),
    }


def main() -> None:
    terminated_is_exit()
    args = command_line("page", __doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="iro-page-") as folder:
        numbers = measure(Path(folder))
    finish(args, numbers, lambda content: print(way_to_an_answer(content), page_reads(content), sep="\n\n"))


if __name__ == "__main__":
    main()
