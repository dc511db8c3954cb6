"""``iro evals``: evals to and from a running server, OpenAI's exports among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel, Field, TypeAdapter

from iro_server import JsonObject, JsonValue
from iro_server.cli.http import NO_KEY, SERVER, Key, Url, get, path_part, post, server_client, upload
from iro_server.cli.options import read_json

if TYPE_CHECKING:
    import httpx

app = typer.Typer(no_args_is_help=True, help="Evals of a running server.")
PAGE = 100


class ExportedSchema(BaseModel):
    properties: dict[str, JsonObject] = {}


class ExportedConfig(BaseModel):
    type: str
    schema_: ExportedSchema | None = Field(default=None, alias="schema")


class ExportedSource(BaseModel):
    source: JsonObject


class ExportedRun(BaseModel):
    data_source: ExportedSource


class ExportedEval(BaseModel):
    """The parts of an exported eval that its import reads; what else it holds, the server checks."""

    data_source_config: ExportedConfig
    testing_criteria: list[JsonObject]
    metadata: JsonObject | None = None
    runs: list[ExportedRun] = []


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
    exported = exported_evals(read_json(file))
    paths = dict(_pair(text) for text in items or [])
    with server_client(url, key) as server:
        if model is not None:
            get(server, f"/models/{path_part(model, '--model: give a model')}")  # refused before an eval is made
        files = {id: upload(server, Path(path), "evals") for id, path in paths.items()}
        requests = [
            (eval_request(evaluation, judge), [run_request(run, model, files) for run in evaluation.get("runs", [])])
            for evaluation in exported
        ]  # all of them are read before one is made
        for body, runs in requests:
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
    path = f"/evals/{path_part(id, 'ID: give the id of an eval')}"
    with server_client(url, key) as server:
        evaluation = get(server, path)
        evaluation["runs"] = _pages(server, f"{path}/runs")
        for run in evaluation["runs"]:
            run["output_items"] = _pages(server, f"{path}/runs/{run['id']}/output_items")
    out.write_text(json.dumps(evaluation, indent=1) + "\n")
    typer.echo(f"{evaluation['name'] or id}, {len(evaluation['runs'])} runs: {out}")


def eval_request(exported: JsonObject, judge: str | None = None) -> JsonObject:
    """The body that creates an exported eval anew. ``judge``: the model that its model graders ask instead of theirs.

    One over stored completions selects those that are stored here.
    """
    config = exported["data_source_config"]
    body: JsonObject = {name: exported[name] for name in ("name", "metadata") if exported.get(name)}
    is_custom = config.get("type") == "custom"
    body["data_source_config"] = _custom(config) if is_custom else _without_nulls(config | {"schema": None})
    criteria = _clean(exported["testing_criteria"])
    body["testing_criteria"] = criteria if judge is None else _with_judge(criteria, judge)
    return body


def _custom(config: JsonObject) -> JsonObject:
    """GET answers with the schema of ``item`` and ``sample`` together, where POST takes that of ``item``."""
    if config.get("schema") is None:
        return _without_nulls(config)
    properties = config["schema"].get("properties", {})
    with_sample = "sample" in properties
    return {"type": "custom", "item_schema": properties.get("item", {}), "include_sample_schema": with_sample}


def _with_judge(graders: JsonValue, judge: str) -> JsonValue:
    """A grader, or several by name or in a list, with ``judge`` as the model of each that asks one; those of a multi
    too."""
    if isinstance(graders, list):
        return [_with_judge(grader, judge) for grader in graders]
    if not isinstance(graders, dict):
        return graders
    if graders.get("type") in ("score_model", "label_model"):
        return graders | {"model": judge}
    return {name: _with_judge(inner, judge) for name, inner in graders.items()}


def run_request(exported: JsonObject, model: str | None, files: dict[str, str]) -> JsonObject:
    """The body that starts an exported run anew. ``files``: ids here by ids there. ValueError for a file not among
    them."""
    data_source = exported["data_source"]
    body: JsonObject = {name: exported[name] for name in ("name", "metadata") if exported.get(name)}
    source = _without_nulls(data_source)
    if "content" in source["source"]:
        source["source"]["content"] = data_source["source"]["content"]  # items, whose nulls are theirs
    if source.get("type") != "jsonl" and model is not None:
        source["model"] = model
    if source["source"].get("type") == "file_id":
        id = source["source"].get("id")
        if id not in files:
            raise ValueError(f"{exported.get('name') or exported.get('id')}: give its items by --file {id}=PATH")
        source["source"] = {"type": "file_id", "id": files[id]}
    return body | {"data_source": source}


def _without_nulls(value: JsonObject) -> JsonObject:
    return {name: _clean(inner) for name, inner in value.items() if inner is not None}


def _clean(value: JsonValue) -> JsonValue:
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    return _without_nulls(value) if isinstance(value, dict) else value


def exported_evals(exported: JsonValue) -> list[JsonObject]:
    """The evals of an export: one, a list, or a page of the API. ValidationError for what is no eval."""
    if isinstance(exported, dict):
        exported = exported.get("data", [exported])
    evals: list[JsonObject] = TypeAdapter(list[JsonObject]).validate_python(exported)
    TypeAdapter(list[ExportedEval]).validate_python(evals)
    return evals


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
