"""method.reinforcement as the alignment job's config."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from iro_server.api.errors import APIError
from iro_server.api.reinforcement import Reinforcement
from iro_server.api.reinforcement_options import (
    OPTIONS_BY_BLOCK,
    REINFORCEMENT_FIELDS,
    Hyperparameters,
    IroOptions,
)
from training.iro.config import AlignConfig

GRADER = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "reference": "a",
    "operation": "eq",
}


def method(hyperparameters: dict[str, Any] | None = None, **fields: Any) -> Reinforcement:
    return Reinforcement.model_validate({"grader": GRADER, "hyperparameters": hyperparameters or {}} | fields)


def test_hints_know_all_fields_of_the_method():
    assert {*REINFORCEMENT_FIELDS, *OPTIONS_BY_BLOCK} == set(Reinforcement.model_fields)


@pytest.mark.parametrize(
    ("hyperparameters", "iro", "options"),
    [
        ({}, {}, {}),
        (dict.fromkeys(set(Hyperparameters.model_fields) - {"reasoning_effort"}, "auto"), {}, {}),
        ({"reasoning_effort": "default"}, {}, {}),
        ({"reasoning_effort": "medium"}, {}, {}),
        ({"n_epochs": 5, "learning_rate_multiplier": 2.0}, {}, {"epochs": 5, "learning_rate_multiplier": 2.0}),
        ({"eval_interval": 2, "eval_samples": 4}, {}, {"eval_interval": 2, "eval_samples": 4}),
        ({"batch_size": 16}, {}, {"prompts_per_iteration": 16}),
        ({"batch_size": 1}, {}, {"prompts_per_iteration": 2}),
        ({"batch_size": 16}, {"prompts_per_iteration": 20}, {"prompts_per_iteration": 20}),
        ({"reasoning_effort": "low"}, {}, {"num_successors": 4}),
        ({"reasoning_effort": "high"}, {}, {"beam_width": 4, "num_successors": 8}),
        ({"reasoning_effort": "high"}, {"beam_width": 3}, {"beam_width": 3, "num_successors": 8}),
        ({"compute_multiplier": 1.5}, {}, {"num_successors": 12}),
        ({"compute_multiplier": 0.01}, {}, {"num_successors": 1}),
        ({"compute_multiplier": 2, "reasoning_effort": "low"}, {}, {"num_successors": 8}),
        ({"compute_multiplier": 2}, {"num_successors": 3}, {"num_successors": 6}),
        ({}, {"betas": [1.0, 0.5]}, {"betas": [1.0, 0.5], "iterations": 2}),
        ({}, {"betas": "auto", "early_stop": False}, {"betas": "auto", "early_stop": False}),
        ({}, {"max_tokens": "auto"}, {"max_tokens": "auto"}),
    ],
)
def test_what_a_job_is_told(hyperparameters: dict, iro: dict, options: dict) -> None:
    assert method(hyperparameters, iro=iro).options() == options


def test_the_job_takes_whatever_a_request_may_set(tmp_path) -> None:
    (tmp_path / "rows.jsonl").touch()
    hyperparameters = {"n_epochs": 3, "batch_size": 8, "eval_interval": 2, "eval_samples": 2, "compute_multiplier": 2.0}
    iro = {
        "iterations": 2,
        "betas": [1.0, 2.0],
        "rollouts_per_prompt": 4,
        "prompts_per_iteration": 6,
        "validation_prompts": 3,
        "beam_width": 3,
        "num_successors": 5,
        "chunk_length": 7,
        "selection": "smc",
        "guided_searches": 2,
        "max_tokens": 20,
        "temperature": 0.5,
        "value_model": "mlp",
        "loss": "mse",
        "return_lambda": 0.5,
        "counted_tokens": 10,
        "backbone_layers": 3,
        "tilt": "off",
        "tilt_rounds": 2,
        "max_kl": 12.5,
        "max_rows": 4,
        "keep_unproven": True,
        "early_stop": False,
    }
    assert iro.keys() == IroOptions.model_fields.keys()
    options = method(hyperparameters, iro=iro, response_format={"type": "json_object"}).options()
    config = AlignConfig(training_file=tmp_path / "rows.jsonl", grader=GRADER, **options)
    expected = iro | {"num_successors": 10, "epochs": 3, "eval_interval": 2, "eval_samples": 2}
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.response_format == {"type": "json_object"}


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"iro": {"loss": "bce", "value_model": "mlp"}}, ("iro",)),
        ({"iro": {"return_lambda": 0, "value_model": "lora"}}, ("iro",)),
        ({"iro": {"iterations": 2, "betas": [1.0]}}, ("iro", "betas")),
        ({"iro": {"max_tokens": 10**9}}, ("iro", "max_tokens")),
        ({"iro": {"counted_tokens": 10**6}}, ("iro", "counted_tokens")),
        ({"hyperparameters": {"eval_samples": 65}}, ("hyperparameters", "eval_samples")),
        ({"hyperparameters": {"n_epochs": 0}}, ("hyperparameters", "n_epochs")),
        (
            {"hyperparameters": {"learning_rate_multiplier": float("inf")}},
            ("hyperparameters", "learning_rate_multiplier"),
        ),
        ({"hyperparameters": {"reasoning_effort": "utmost"}}, ("hyperparameters", "reasoning_effort")),
    ],
)
def test_what_is_refused_is_named(fields: dict, at: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        method(**fields)
    assert refused.value.errors()[0]["loc"][: len(at)] == at


@pytest.mark.parametrize(
    ("hyperparameters", "iro", "param"),
    [
        ({"compute_multiplier": 3}, {}, "hyperparameters.compute_multiplier"),
        ({"reasoning_effort": "high"}, {}, "hyperparameters.reasoning_effort"),
        ({"reasoning_effort": "high"}, {"beam_width": 5}, "iro.num_successors"),
        ({}, {"beam_width": 4}, "iro.num_successors"),
    ],
)
def test_a_search_of_too_many_rows_is_refused(hyperparameters: dict, iro: dict, param: str) -> None:
    method().check_rows(16)
    with pytest.raises(APIError, match="over 16") as refused:
        method(hyperparameters, iro=iro).check_rows(16)
    assert refused.value.param == f"method.reinforcement.{param}"


@pytest.mark.parametrize("response_format", [{"type": "yaml"}, {"type": "json_schema"}])
def test_a_wrong_response_format_is_refused(response_format: dict) -> None:
    with pytest.raises(APIError, match=r"Invalid 'method\.reinforcement\.response_format'") as refused:
        method(response_format=response_format).check_format()
    assert (refused.value.status, refused.value.param) == (400, "method.reinforcement.response_format")


@pytest.mark.parametrize("response_format", [None, {"type": "text"}, {"type": "json_object"}])
def test_a_response_format_is_accepted(response_format: dict | None) -> None:
    method(response_format=response_format).check_format()
