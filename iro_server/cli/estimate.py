"""``iro estimate``: what a job may gain and cost, by a running server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from iro_server import JsonObject
from iro_server.alignment.definition import AlignmentOptions
from iro_server.api.reinforcement_options import RENAMED
from iro_server.cli.http import NO_KEY, SERVER, Key, Url, get, get_when_available, post, server_client, upload
from iro_server.cli.options import parse_value, read_grader, with_options_of

POLL = 3.0  # seconds: a key may have few requests a minute


@with_options_of(AlignmentOptions, "Options of the job")
def estimate(
    training_file: Annotated[Path, typer.Argument(metavar="TRAIN", help="Training rows.")],
    grader: Annotated[Path, typer.Argument(help="JSON, or a .py file with grade(sample, item).")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]…", help="Options of the job; values as JSON.")
    ] = None,
    url: Url = SERVER,
    key: Key = NO_KEY,
    **options: Any,
) -> None:
    """Sample and grade a few prompts (about two minutes), and say what a job would gain and cost. Status 1: not go."""
    method = _method(read_grader(grader), options | dict(_setting(text) for text in settings or []))
    with server_client(url, key) as server:
        model = get(server, "/models")["data"][0]["id"]
        file = upload(server, training_file, "fine-tune")
        try:
            body = {"model": model, "training_file": file, "method": method}
            record = post(server, "/fine_tuning/jobs/estimate", body)
        finally:  # the estimate has a copy of the prompts that it samples
            server.delete(f"/files/{file}")
        while record["status"] in ("queued", "in_progress"):
            time.sleep(POLL)
            record = get_when_available(server, f"/fine_tuning/jobs/estimate/{record['id']}")
    if record["result"] is None:
        raise ValueError((record["error"] or {}).get("message", f"the estimate was {record['status']}"))
    for line in _lines(record["result"]):
        typer.echo(line)
    if record["result"]["verdict"] != "go":
        raise typer.Exit(1)


def _method(grader: JsonObject, options: JsonObject) -> JsonObject:
    """The request's ``method``: options that are OpenAI's hyperparameters are in their block, by OpenAI's name."""
    hyperparameters = {name: options[field] for name, field in RENAMED.items() if field in options}
    iro = {field: value for field, value in options.items() if field not in RENAMED.values()}
    blocks = {"grader": grader, "hyperparameters": hyperparameters, "iro": iro}
    return {"type": "reinforcement", "reinforcement": blocks}


def _setting(text: str) -> tuple[str, object]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"{text}: write key=value")
    return name, parse_value(value)


def _lines(result: JsonObject) -> list[str]:
    reward, cost, grader = result["reward"], result["cost"], result["grader"]
    lines = [f"{result['verdict']}: {result['message']}"]
    if reward["mean"] is not None:
        best = ", ".join(f"of {n} {mean:.3g}" for n, mean in reward["best_of"].items())
        lines.append(f"reward {reward['mean']:.3g}; best {best}")
    lines.append(
        f"prompts {result['prompts']}, completions {result['completions']}; ungradable "
        f"{result['ungradable_share']:.0%}, prompts with equal rewards {result['all_equal_share']:.0%}; "
        f"grader {grader['seconds_per_call']:.2g} s a call"
    )
    lines.append(
        f"the job: {cost['base_tokens']} tokens, {cost['grader_calls']} grader calls, about {cost['seconds']} s, "
        f"{cost['disk_bytes'] / 2**20:.0f} MiB of disk"
    )
    for sample in result["samples"]:
        said = sample["error"] or f"reward {sample['reward']:.3g}"
        lines.append(f"  {said}: {' '.join(sample['text'].split())[:200]}")
    return lines
