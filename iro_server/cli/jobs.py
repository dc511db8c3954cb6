"""``iro jobs``: alignment jobs of a running server, followed in the terminal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.bar import Bar
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iro_server import JsonObject
from iro_server.cli.http import (
    NO_KEY,
    RECONNECT,
    SERVER,
    Key,
    Url,
    get,
    get_when_available,
    path_part,
    retry_pause,
    server_client,
)
from iro_server.cli.times import local_time

if TYPE_CHECKING:
    import httpx

app = typer.Typer(no_args_is_help=True, help="Alignment jobs of a running server.")
console = Console(highlight=False)
PAGE = 100
STATUS_WIDTH = len("validating_files")
STATUS_EVERY = 10.0  # seconds: a key may have few requests a minute, and a long job has many events
STYLES = {"warn": "yellow", "error": "red"}
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, ftjob-….")]


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    after: Annotated[str | None, typer.Option(metavar="JOB", help="Those older than this job.")] = None,
    url: Url = SERVER,
    key: Key = NO_KEY,
) -> None:
    """List jobs, newest first: id, status, creation, frozen model and, of one that has succeeded, its aligned model."""
    jobs: list[JsonObject] = []
    last, more = after, True
    with server_client(url, key) as server:
        while more and len(jobs) < limit:
            query = {"after": last} if last else {}
            page = get(server, "/fine_tuning/jobs", limit=min(PAGE, limit - len(jobs)), **query)
            jobs, more, last = jobs + page["data"], page["has_more"], page["last_id"]
    if not jobs:
        typer.echo("No jobs yet." if after is None else "No older jobs.", err=True)
    for job in jobs:
        status, created = job["status"].ljust(STATUS_WIDTH), local_time(job["created_at"])
        typer.echo("  ".join((job["id"], status, created, job["model"], job["fine_tuned_model"] or "")).rstrip())
    if more:
        typer.echo(f"Older ones: iro jobs list --after {last}", err=True)


@app.command()
def watch(job: JobId, url: Url = SERVER, key: Key = NO_KEY) -> None:
    """Print a job's events and rewards until it has ended. Status 0: it succeeded, 1: it failed or was cancelled, 2:
    the server refuses or stays away."""
    with server_client(url, key) as server, console.status("") as status:  # on a terminal only
        status.update(status_line(get(server, _path(job)), time.time()))
        asked = time.monotonic()
        for event in follow(server, job):
            console.print(_line(event), style=STYLES.get(event["level"]), soft_wrap=True)
            if console.is_terminal and time.monotonic() - asked >= STATUS_EVERY:
                status.update(status_line(get_when_available(server, _path(job)), time.time()))
                asked = time.monotonic()
        record = get_when_available(server, _path(job))
    if record["status"] != "succeeded":
        raise typer.Exit(1)
    console.print(f"Call it through the server's API, as model={escape(record['fine_tuned_model'])}", soft_wrap=True)


def status_line(job: JsonObject, now: float) -> str:
    """A job's status and, once its first steps tell, how long it may take. ``now``: seconds since 1970."""
    finish = job["estimated_finish"]
    remaining = f", about {math.ceil((finish - now) / 60)} min left" if finish and finish > now else ""
    return job["status"] + remaining


@app.command()
def plot(job: JobId, url: Url = SERVER, key: Key = NO_KEY) -> None:
    """Draw a job's reward by iteration."""
    with server_client(url, key) as server:
        record = get(server, _path(job))
        rows = iterations(_all_events(server, job))
    if not rows and record["error"]:
        raise ValueError(f"{job} failed before its first measurement: {record['error']['message']}")
    if not rows:
        raise ValueError(f"{job} has no rewards yet: they come with its first measurement of the frozen model")
    console.print(_chart(rows))
    if record["status"] != "succeeded":
        typer.echo(f"Status: {record['status']}", err=True)


def follow(server: httpx.Client, job: str) -> Iterator[JsonObject]:
    """A job's events, oldest first, until it has ended; goes on where a stream breaks off or the server is unavailable
    for a while. ValueError with what the server says where it refuses, TransportError where it stays away."""
    import httpx

    path, after = f"{_path(job)}/events", None
    while True:
        query = {"stream": "true"} | ({"after": after} if after else {})
        pause = RECONNECT
        try:
            with server.stream("GET", path, params=query) as response:
                if response.status_code == 200:
                    for event in _events(response):
                        if event is None:
                            return
                        yield event
                        after = event["id"]
                else:
                    response.read()
                    pause = retry_pause(response)
        except httpx.TransportError as error:
            typer.echo(f"The stream broke off ({error}); trying again.", err=True)
            get_when_available(server, _path(job))
        time.sleep(pause)


def _path(job: str) -> str:
    id = path_part(job, "JOB: give a job's id; `iro jobs list` shows them")
    return f"/fine_tuning/jobs/{id}"


def _events(response: httpx.Response) -> Iterator[JsonObject | None]:
    """The events of a stream; None where it says that the job has ended."""
    for line in response.iter_lines():
        if line == "data: [DONE]":
            yield None
        elif line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def iterations(events: list[JsonObject]) -> list[JsonObject]:
    """The metrics by iteration, 0 the frozen model; of one that was repeated, the last. ``events``: oldest first."""
    metrics = [event["data"] for event in events if event["type"] == "metrics" and "step" in event["data"]]
    return sorted({row["step"]: row for row in metrics}.values(), key=lambda row: row["step"])


def _all_events(server: httpx.Client, job: str) -> list[JsonObject]:
    events: list[JsonObject] = []
    more = True
    while more:
        after = {"after": events[-1]["id"]} if events else {}
        page = get(server, f"{_path(job)}/events", limit=PAGE, **after)
        events, more = events + page["data"], page["has_more"]
    return events[::-1]


def _line(event: JsonObject) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
    data = event["data"] or {}
    rewards = {"held out": _held_out(data), "training": _number(data.get("train_mean_reward"))}
    known = [f"{name} {text}" for name, text in rewards.items() if text] if event["type"] == "metrics" else []
    return f"[dim]{clock}[/] {escape(event['message'])}" + "".join(f"  [bold]{text}[/]" for text in known)


def _held_out(row: JsonObject) -> str:
    half_width = row.get("full_valid_half_width")
    reward = _number(row.get("full_valid_mean_reward"))
    return f"{reward} ± {half_width:.2f}" if reward and half_width is not None else reward


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _chart(rows: list[JsonObject]) -> Table:
    """A line for each iteration: the bar reaches from the lowest of all rewards to the iteration's."""
    held_out = [row.get("full_valid_mean_reward") for row in rows]
    values = [value for value in held_out if value is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.1 * (high - low) or 1.0
    table = Table(box=None)
    table.add_column("iteration", justify="right")
    table.add_column("held out", justify="right")
    table.add_column(f"from {low - margin:.3f} to {high:.3f}", ratio=1)
    table.add_column("training", justify="right")
    for row, value in zip(rows, held_out, strict=True):
        size, end = high - low + margin, 0.0 if value is None else value - low + margin
        color = "white" if row["step"] == 0 else "green"
        name = "frozen" if row["step"] == 0 else str(row["step"])
        bar = Bar(size, 0, end, color=color)
        table.add_row(name, _held_out(row), bar, _number(row.get("train_mean_reward")))
    return table
