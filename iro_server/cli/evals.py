"""``iro evals``: evals to and from a running server, OpenAI's exports among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iro_server import JsonObject, JsonValue
from iro_server.cli.http import NO_KEY, SERVER, Key, Url, get, post, server_client, upload
from iro_server.cli.options import read_json

if TYPE_CHECKING:
    import httpx

app = typer.Typer(no_args_is_help=True, help="Evals of a running server.")
PAGE = 100


@app.command("import")
def import_evals(
    file: Annotated[Path, typer.Argument(help="JSON: an eval as it is created or as GET answers, or a list of these.")],
    model: Annotated[str | None, typer.Option(help="The model of all runs, in place of the exported one.")] = None,
    judge: Annotated[str | None, typer.Option(help="The model of all model graders, in place of theirs.")] = None,
    items: Annotated[
        list[str] | None, typer.Option("--file", help="file-ID=PATH: the items of runs that name this file.")
    ] = None,
    url: Url = SERVER,
    key: Key = NO_KEY,
) -> None:
    """Create the evals of FILE, and start the runs that they hold under "runs"."""
    exported = read_json(file)
    paths = dict(_pair(text) for text in items or [])
    with server_client(url, key) as server:
        if model is not None:
            get(server, f"/models/{model}")  # refused before an eval is made
        files = {id: upload(server, Path(path), "evals") for id, path in paths.items()}
        for evaluation in _evals(exported):
            body = eval_request(evaluation, judge)
            runs = [run_request(run, model, files) for run in evaluation.get("runs", [])]
            created = post(server, "/evals", body)
            typer.echo(f"{created['id']}  {created['name']}")
            for run in runs:
                started = post(server, f"/evals/{created['id']}/runs", run)
                typer.echo(f"{started['id']}  {started['name']}  {started['report_url']}")


@app.command()
def export(
    id: Annotated[str, typer.Argument(help="The eval.")],
    out: Annotated[Path, typer.Option(help="The JSON file to write; it must not exist.")],
    url: Url = SERVER,
    key: Key = NO_KEY,
) -> None:
    """Write an eval with its runs and their output items, in the API's shapes."""
    if out.exists():
        raise FileExistsError(f"{out} exists")
    with server_client(url, key) as server:
        evaluation = get(server, f"/evals/{id}")
        evaluation["runs"] = _pages(server, f"/evals/{id}/runs")
        for run in evaluation["runs"]:
            run["output_items"] = _pages(server, f"/evals/{id}/runs/{run['id']}/output_items")
    out.write_text(json.dumps(evaluation, indent=1) + "\n")
    typer.echo(f"{evaluation['name'] or id}, {len(evaluation['runs'])} runs: {out}")


def eval_request(exported: JsonObject, judge: str | None = None) -> JsonObject:
    """The body that creates an exported eval anew. ``judge``: the model that its model graders ask instead of theirs.

    One over stored completions selects those that are stored here.
    """
    config = exported.get("data_source_config")
    if not isinstance(config, dict) or "testing_criteria" not in exported:
        raise ValueError("no eval: it has no data_source_config or no testing_criteria")
    body: JsonObject = {name: exported[name] for name in ("name", "metadata") if exported.get(name)}
    is_custom = config.get("type") == "custom"
    body["data_source_config"] = _custom(config) if is_custom else _without_nulls(config | {"schema": None})
    body["testing_criteria"] = [_criterion(criterion, judge) for criterion in exported["testing_criteria"]]
    return body


def _custom(config: JsonObject) -> JsonObject:
    """GET answers with the schema of ``item`` and ``sample`` together, where POST takes that of ``item``."""
    if "schema" not in config:
        return config
    properties = config["schema"].get("properties", {})
    with_sample = "sample" in properties
    return {"type": "custom", "item_schema": properties.get("item", {}), "include_sample_schema": with_sample}


def _criterion(criterion: JsonObject, judge: str | None) -> JsonObject:
    asks = judge is not None and criterion.get("type") in ("score_model", "label_model")
    return _without_nulls(criterion) | ({"model": judge} if asks else {})


def run_request(exported: JsonObject, model: str | None, files: dict[str, str]) -> JsonObject:
    """The body that starts an exported run anew. ``files``: ids here by ids there. ValueError for a file not among
    them, and for what is no run."""
    label = exported.get("name") or exported.get("id")
    data_source = exported.get("data_source")
    if not isinstance(data_source, dict) or not isinstance(data_source.get("source"), dict):
        raise ValueError(f"{label}: no run: it has no data_source with a source")
    body: JsonObject = {name: exported[name] for name in ("name", "metadata") if exported.get(name)}
    source = _without_nulls(data_source)
    if "content" in source["source"]:
        source["source"]["content"] = data_source["source"]["content"]  # items, whose nulls are theirs
    if source.get("type") != "jsonl" and model is not None:
        source["model"] = model
    if source["source"].get("type") == "file_id":
        id = source["source"]["id"]
        if id not in files:
            raise ValueError(f"{label}: give its items by --file {id}=PATH")
        source["source"] = {"type": "file_id", "id": files[id]}
    return body | {"data_source": source}


def _without_nulls(value: JsonObject) -> JsonObject:
    return {name: _clean(inner) for name, inner in value.items() if inner is not None}


def _clean(value: JsonValue) -> JsonValue:
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    return _without_nulls(value) if isinstance(value, dict) else value


def _evals(exported: JsonValue) -> list[JsonObject]:
    if isinstance(exported, dict):
        exported = exported.get("data", [exported])
    if not isinstance(exported, list) or not all(isinstance(evaluation, dict) for evaluation in exported):
        raise ValueError("the file holds no eval and no list of evals")
    return [evaluation for evaluation in exported if isinstance(evaluation, dict)]


def _pair(text: str) -> tuple[str, str]:
    id, separator, path = text.partition("=")
    if not separator:
        raise ValueError(f"--file {text}: write file-ID=PATH")
    return id, path


def _pages(server: httpx.Client, path: str) -> list[JsonObject]:
    rows: list[JsonObject] = []
    more = True
    while more:
        page = get(server, path, limit=PAGE, **({"after": rows[-1]["id"]} if rows else {}))
        rows, more = rows + page["data"], page["has_more"]
    return rows
