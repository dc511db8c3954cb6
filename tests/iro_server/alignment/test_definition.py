"""One definition of an alignment job: its request, its command-line options, its config and its documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from iro_server.alignment.definition import DEFAULT_OPTIONS, SERVER_LIMITS, Alignment, AlignmentOptions
from iro_server.api.reinforcement_options import RENAMED, Hyperparameters, IroOptions
from tests.hyperparameter_tables import DOCUMENT, with_tables
from training.iro.config import AlignConfig

CHECK = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "a", "operation": "eq"}


def test_a_request_sets_every_option_by_ours_or_openais_name() -> None:
    ours, openais = set(IroOptions.model_fields), set(RENAMED)
    assert openais <= set(Hyperparameters.model_fields)
    assert ours | set(RENAMED.values()) == set(AlignmentOptions.model_fields)


def test_the_document_has_the_tables_of_the_request() -> None:
    """If it has not: python -m tests.hyperparameter_tables"""
    text = DOCUMENT.read_text()
    assert with_tables(text) == text
    assert "| `beam_width` | W: beams" in text


@pytest.mark.parametrize("name", AlignmentOptions.model_fields)
def test_every_option_is_described(name: str) -> None:
    description = AlignmentOptions.model_fields[name].description
    assert description and description.endswith(".")


@pytest.mark.parametrize(("name", "limit"), SERVER_LIMITS.items())
def test_a_server_limits_what_the_command_line_does_not(name: str, limit: int) -> None:
    model = Hyperparameters if name in RENAMED.values() else IroOptions
    field = {option: openais for openais, option in RENAMED.items()}.get(name, name)
    model.model_validate({field: limit})
    with pytest.raises(ValidationError, match=f"less than or equal to {limit}"):
        model.model_validate({field: limit + 1})
    AlignmentOptions.model_validate({name: limit + 1})


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "bce", "value_model": "mlp"},
        {"return_lambda": 0.5, "value_model": "lora"},
        {"return_lambda": 0.5, "loss": "bce"},
        {"iterations": 2, "betas": [1.0]},
        {"betas": [0.0]},
        {"betas": [1e-300]},
        {"betas": []},
        {"iterations": 0},
        {"iterations": 17},
        {"selection": "best"},
        {"temperature": 0},
        {"depth": 1},
    ],
)
def test_request_and_config_refuse_the_same(options: dict[str, Any]) -> None:
    places = []
    for validate in (IroOptions.model_validate, AlignmentOptions.model_validate):
        with pytest.raises(ValidationError) as refused:
            validate(options)
        error = refused.value.errors()[0]
        places.append((error["loc"][:1], error["msg"]))
    assert places[0] == places[1]


def test_betas_say_how_many_iterations_there_are() -> None:
    assert AlignmentOptions(betas=[1.0, 0.5]).iterations == 2
    assert IroOptions.model_validate({"betas": [1.0, 0.5]}).options() == {"iterations": 2, "betas": [1.0, 0.5]}


def test_a_model_is_served_as_its_job_searched() -> None:
    options = AlignmentOptions(beam_width=3, selection="smc", temperature=0.7, max_tokens=20)
    search = {"beam_width": 3, "num_successors": 8, "chunk_length": 4, "selection": "smc", "pick": "value"}
    search |= {"strength": 0.0}
    assert options.served_defaults.model_dump(exclude_none=True) == {
        "search": search,
        "temperature": 0.7,
        "max_tokens": 20,
    }
    assert DEFAULT_OPTIONS.served_defaults.max_tokens is None  # the job measures it


def test_the_api_document_describes_the_options() -> None:
    schema = IroOptions.model_json_schema()["properties"]
    assert schema["iterations"]["description"] == AlignmentOptions.model_fields["iterations"].description
    integer, null = schema["iterations"]["anyOf"]
    assert integer == {"type": "integer", "minimum": 1, "maximum": 16} and null == {"type": "null"}


def test_a_saved_config_is_still_the_same_config(tmp_path: Path) -> None:
    """The fields of config.json as version 0.1.0 wrote it, and those added since: a run in a folder continues with
    equal fields alone."""
    saved = json.loads(Path(__file__).with_name("config.json").read_text())
    added = {"keep_unproven": False, "tilt": "auto", "tilt_rounds": 3, "max_kl": None, "max_rows": 256}
    added |= {"engine_adapters": None, "engine_precision": "float32"}
    assert AlignConfig.model_validate(saved).model_dump(mode="json") == saved | added


def test_the_trainers_config_is_an_alignment() -> None:
    config = AlignConfig(training_file="rows.jsonl", grader=CHECK)
    assert isinstance(config, Alignment)
    assert config.model_dump(include=set(AlignmentOptions.model_fields)) == DEFAULT_OPTIONS.model_dump()
