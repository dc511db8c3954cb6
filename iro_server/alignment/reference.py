"""Fields of pydantic models as rows of a reference, for the command line's help and docs/hyperparameters.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pydantic import BaseModel

from iro_server import JsonObject


class FieldRow(NamedTuple):
    """``default``: as JSON; empty where the description says it. ``values``: what the field accepts."""

    name: str
    description: str
    default: str
    values: str


def field_rows(model: type[BaseModel], defaults: Mapping[str, object] | None = None) -> list[FieldRow]:
    """A row for each field of ``model``. ``defaults``: shown in place of the model's own, by the field's name."""
    properties = model.model_json_schema()["properties"]
    rows = []
    for name, schema in properties.items():
        default = (defaults or {}).get(name, schema.get("default"))
        members = [member for member in schema.get("anyOf", [schema]) if member.get("type") != "null"]
        values = " or ".join(_values(member) for member in members)
        rows.append(FieldRow(name, schema.get("description", ""), _as_json(default), values))
    return rows


def markdown_table(title: str, rows: list[FieldRow]) -> str:
    lines = [f"| {title} | | default | values |", "|---|---|---|---|"]
    for row in rows:
        default = f"`{row.default}`" if row.default else ""
        lines.append(f"| `{row.name}` | {row.description} | {default} | {row.values} |")
    return "\n".join(lines) + "\n"


def _as_json(default: object) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def _values(schema: JsonObject) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema["type"] in ("integer", "number"):
        return _range(schema)
    if schema["type"] == "array":
        return f"{schema['minItems']} to {schema['maxItems']} numbers {_range(schema['items'])}"
    return {"boolean": "`true`, `false`"}[schema["type"]]


def _range(schema: JsonObject) -> str:
    low = schema.get("minimum")
    high = schema.get("maximum")
    if "exclusiveMinimum" in schema:
        above = f"above {schema['exclusiveMinimum']:g}"
        return above if high is None else f"{above}, up to {high:,g}"
    return f"{low:g} or more" if high is None else f"{low:g} to {high:,g}"
