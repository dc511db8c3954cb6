"""Rewards: string_check, text_similarity, python, score_model, label_model and multi, in OpenAI's shapes."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from iro_server import JsonObject
from iro_server.graders.base import Grade, Grader, GraderError, Sample
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.label_model import LabelModel
from iro_server.graders.model import SamplingParams
from iro_server.graders.multi import MultiGrader, Single
from iro_server.graders.python import PythonGrader
from iro_server.graders.score_model import ScoreModel
from iro_server.graders.text import StringCheck, TextSimilarity

__all__ = [
    "Grade",
    "Grader",
    "GraderEnvironment",
    "GraderError",
    "Sample",
    "as_sent",
    "parse_grader",
    "parse_grader_of_job",
]

_ANY: TypeAdapter[Grader] = TypeAdapter(Annotated[Single | MultiGrader, Field(discriminator="type")])

_FIELDS: dict[str | int, list[str]] = {
    "label_model": [*LabelModel.model_fields],
    "multi": [*MultiGrader.model_fields],
    "python": [*PythonGrader.model_fields],
    "sampling_params": [*SamplingParams.model_fields],
    "score_model": [*ScoreModel.model_fields],
    "string_check": [*StringCheck.model_fields],
    "text_similarity": [*TextSimilarity.model_fields],
}
"""By the step of pydantic's location that an unknown field comes after."""


def parse_grader(spec: JsonObject, grader_environment: GraderEnvironment | None = None) -> Grader:
    """The grader a JSON object describes. Raises GraderError, with the field at fault, for the first mistake.

    ``grader_environment`` None: those of this process.
    """
    grader_environment = grader_environment or GraderEnvironment.of_this_process()
    try:
        return _ANY.validate_python(spec, context=grader_environment)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False, include_input=False)
        # An unknown field first: it may be the one that is missing, misspelt.
        error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    path = _field_path(error["loc"])
    if error["type"].startswith("union_tag"):
        path.append("type")
    param = as_sent(spec, path)
    message = _message(error)
    raise GraderError(f"{param}: {message}", param)


def parse_grader_of_job(spec: JsonObject, grader_environment: GraderEnvironment | None = None) -> Grader:
    """As ``parse_grader``. Raises GraderError too for a grader that reads nothing of what the model answers: all
    answers would have the same reward."""
    grader = parse_grader(spec, grader_environment)
    if grader.reads_sample():
        return grader
    grader.close()
    message = "it reads nothing of the model's answer; put {{ sample.output_text }} in one of its fields"
    raise GraderError(f"grader: {message}", "grader")


def _message(error: Any) -> str:
    context = error.get("ctx", {})
    if error["type"] == "union_tag_invalid":
        return f"there is no grader of type {context['tag']!r}, only {context['expected_tags']}"
    if error["type"] == "union_tag_not_found":
        return "a grader needs a type"
    if error["type"] == "extra_forbidden" and (fields := _FIELDS.get(error["loc"][-2])):
        similar = get_close_matches(str(error["loc"][-1]), fields, n=1)
        return f"no such field; did you mean {similar[0]}?" if similar else f"no such field, only {', '.join(fields)}"
    return str(error["msg"]).removeprefix("Value error, ")


def as_sent(spec: object, path: list[str]) -> str:
    """Where the field that is at ``path`` once graders are by name, (graders, <name>, <field>), stands in ``spec``,
    which may have them in a list, or one alone."""
    graders = spec.get("graders") if isinstance(spec, dict) else None
    if path[:1] == ["graders"] and len(path) > 1:
        if isinstance(graders, list):
            path = ["graders", str([grader["name"] for grader in graders].index(path[1])), *path[2:]]
        elif isinstance(graders, dict) and isinstance(graders.get("type"), str):
            path = ["graders", *path[2:]]
    return ".".join(["grader", *path])


def _field_path(loc: tuple[int | str, ...]) -> list[str]:
    """Pydantic's location without the union tags it puts in: first of all, and after ``graders.<name>``."""
    path = [str(step) for step in loc[1:]]
    return path[:2] + path[3:] if path[:1] == ["graders"] else path
