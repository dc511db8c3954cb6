"""Command-line options made from the fields of a pydantic model, so that their help is the model's own text."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

from iro_server import JsonObject, JsonValue
from iro_server.alignment.reference import FieldRow, field_rows

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

SettingsKind = TypeVar("SettingsKind", bound="BaseSettings")


def parse_value(text: str) -> object:
    """``text`` as JSON, or as a string where it is not JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def read_json(path: Path) -> JsonValue:
    """ValueError, with the file's name, for a file that is no JSON."""
    text = _read_text(path)
    try:
        value: JsonValue = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    return value


def read_grader(path: Path) -> JsonObject:
    """A grader's JSON, or one in Python by a ``.py`` file. ValueError for a file that is no JSON object, or no text."""
    if path.suffix == ".py":
        return {"type": "python", "name": path.stem, "source": _read_text(path)}
    grader = read_json(path)
    if not isinstance(grader, dict):
        raise ValueError(f"{path}: a grader is a JSON object")
    return grader


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from None


def with_options_of(model: type[BaseModel], panel: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator of a Typer command that ends in ``**options``: adds an option for each field of ``model``.

    The command receives those that the user sets, by the field's name. ``panel``: their heading in the help.
    """
    rows = field_rows(model)
    arrays = _array_fields(model)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_options(**arguments: str | bool | None) -> None:
            texts = {row.name: arguments.pop(row.name) for row in rows}
            options = {name: _option_value(text, name in arrays) for name, text in texts.items() if text is not None}
            command(**arguments, **options)

        signature = inspect.signature(command, eval_str=True)
        parameters = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        parameters += [_parameter(row, panel) for row in rows]
        with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return with_options

    return decorate


def _array_fields(model: type[BaseModel]) -> set[str]:
    properties = model.model_json_schema()["properties"].items()
    members = {name: schema.get("anyOf", [schema]) for name, schema in properties}
    return {name for name, schemas in members.items() if any(schema.get("type") == "array" for schema in schemas)}


def _option_value(value: str | bool, is_array: bool) -> object:
    """Of an array field ``1,0.5``, ``[1,0.5]`` and ``1`` are lists of numbers."""
    if isinstance(value, bool):
        return value
    parsed = parse_value(value)
    if not is_array or parsed is None or isinstance(parsed, bool | list):
        return parsed
    numbers = parse_value(f"[{value}]")
    return numbers if isinstance(numbers, list) else parsed


def _parameter(row: FieldRow, panel: str) -> inspect.Parameter:
    values = row.values.replace("`", "")
    default = f"; default {row.default}" if row.default else ""
    is_flag = values == "true, false"
    option = typer.Option(
        help=f"{row.description} ({values}{default})".replace("`", ""),
        metavar=None if is_flag else "VALUE",
        show_default=False,
        rich_help_panel=panel,
    )
    annotation: Any = Annotated[bool | None, option] if is_flag else Annotated[str | None, option]
    return inspect.Parameter(row.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def settings_of_environment(kind: type[SettingsKind], **options: Any) -> SettingsKind:
    """Settings of the options that are not None, the others from the environment. ValidationError for a value that
    they refuse; ValueError, which names the variable, for one that has to be JSON and is not."""
    from pydantic_settings import SettingsError

    try:
        return kind(**{name: value for name, value in options.items() if value is not None})
    except SettingsError as error:
        field = str(error).split('"')[1]  # which it holds in its text alone
        raise ValueError(
            f'IRO_{field.upper()} is not JSON ({error.__cause__}): write a list as ["…"], an object as {{"…": …}}'
        ) from None


def misspelled_settings(environ: Mapping[str, str], fields: Collection[str]) -> Iterator[str]:
    """A warning of each variable that is no setting of a server, and nearly one."""
    names = [f"IRO_{field.upper()}" for field in fields]
    for name in sorted(environ):
        if (
            name.startswith("IRO_")
            and name not in names
            and (similar := get_close_matches(name, names, 1, cutoff=0.85))
        ):
            yield f"{name} is no setting and has no effect; did you mean {similar[0]}?"
