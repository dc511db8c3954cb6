"""Every field of the client's published request bodies is accepted, or refused for what it asks: never as unknown.

The bodies are drawn from the client's own TypedDicts, so that a field it gains is asked about here too.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.batch_create_params import BatchCreateParams
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatBody
from openai.types.chat.completion_create_params import ResponseFormat
from openai.types.completion_create_params import CompletionCreateParamsBase as TextBody
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.eval_create_params import EvalCreateParams
from openai.types.eval_update_params import EvalUpdateParams
from openai.types.evals.run_create_params import RunCreateParams
from openai.types.fine_tuning.alpha.grader_run_params import GraderRunParams
from openai.types.fine_tuning.alpha.grader_validate_params import GraderValidateParams
from openai.types.fine_tuning.job_create_params import JobCreateParams
from openai.types.fine_tuning.reinforcement_method_param import ReinforcementMethodParam
from openai.types.responses.response_create_params import ResponseCreateParamsBase as ResponseBody
from openai.types.upload_create_params import UploadCreateParams
from openai.types.webhooks.webhook_create_params import WebhookCreateParams
from typing_extensions import is_typeddict

from tests.contract.strict import envelope_of
from tests.iro_server.api.batches import chat, lines_of, uploaded
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import serving, settings_for, upload

GRADER = {"type": "string_check", "name": "a", "input": "{{sample.output_text}}", "reference": "a", "operation": "eq"}
METHOD = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
SOURCE = "def grade(sample, item):\n    return 1\n"
HOOK = {"name": "a", "url": "https://example.com/", "event_types": ["fine_tuning.job.failed"]}
CUSTOM = {"type": "custom", "item_schema": {"type": "object"}}
JSONL = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"a": "b"}}]}}
# By route: the client's type of its body, and a body that is accepted.
ROUTES: dict[str, tuple[Any, dict[str, Any]]] = {
    "chat/completions": (ChatBody, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}),
    "completions": (TextBody, {"prompt": "hi", "max_tokens": 4}),
    "fine_tuning/jobs": (JobCreateParams, {"method": METHOD}),
    "fine_tuning/alpha/graders/run": (GraderRunParams, {"grader": GRADER, "model_sample": "a"}),
    "fine_tuning/alpha/graders/validate": (GraderValidateParams, {"grader": GRADER}),
    "uploads": (UploadCreateParams, {"filename": "a", "purpose": "fine-tune", "bytes": 9, "mime_type": "text/plain"}),
    "webhook_endpoints": (WebhookCreateParams, HOOK),
    "responses": (ResponseBody, {"input": "hi", "max_output_tokens": 4}),
    "embeddings": (EmbeddingCreateParams, {"model": "all-MiniLM-L6-v2", "input": "a"}),
    "batches": (BatchCreateParams, {"endpoint": "/v1/chat/completions", "completion_window": "24h"}),
    "evals": (EvalCreateParams, {"data_source_config": CUSTOM, "testing_criteria": [GRADER]}),
    "evals/{eval}": (EvalUpdateParams, {}),
    "evals/{eval}/runs": (RunCreateParams, {"data_source": JSONL}),
}
FIELDS = [(route, field) for route, (kind, _) in ROUTES.items() for field in get_type_hints(kind)]
TEXTS = st.sampled_from(["a", "z", "say z", "{{sample.output_text}}", "{{item.answer}}"])
PLAIN = {str: TEXTS, int: st.integers(0, 8), float: st.floats(0, 2), bool: st.booleans(), type(None): st.none()}
# Fields whose type tells less than a server needs.
KNOWN = {
    "model": st.just("bytes"),
    "name": st.sampled_from(["a", "b"]),
    "source": st.just(SOURCE),
    "input_file_id": st.just("file-unknown"),
    "url": st.just("https://example.com/hook"),
}
KNOWN |= {"validation_file": st.sampled_from([None, "file-unknown"]), "calculate_output": st.sampled_from(["a", "a +"])}


def drawn(hint: Any, name: str) -> st.SearchStrategy[Any]:
    """Values of the field ``name``, by its type."""
    origin, args = get_origin(hint), get_args(hint)
    if name in KNOWN:
        return KNOWN[name]
    if origin in (Required, NotRequired, Annotated):
        return drawn(args[0], name)
    if is_typeddict(hint):
        return body(hint)
    if origin is Literal:
        return st.sampled_from(args)
    if origin is Union:
        return st.one_of(*(drawn(arg, name) for arg in args))
    if origin is dict:
        return st.dictionaries(TEXTS, drawn(args[1], name), max_size=2)
    if args:  # a list, an Iterable, a SequenceNotStr
        return st.lists(drawn(args[0], name), min_size=1, max_size=2)
    return PLAIN.get(hint, st.just({}))  # object: left open


def body(kind: Any) -> st.SearchStrategy[Any]:
    """Objects of a TypedDict: its required fields, and any of the others."""
    hints = get_type_hints(kind, include_extras=True)
    fields = {name: st.deferred(lambda hint=hint, name=name: drawn(hint, name)) for name, hint in hints.items()}
    needed = [name for name in fields if get_origin(hints[name]) is Required]
    others = {name: value for name, value in fields.items() if name not in needed}
    return st.fixed_dictionaries({name: fields[name] for name in needed}, optional=others)


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    """A client without types, of a server that leaves jobs in the queue; and a file there."""
    folder = tmp_path_factory.mktemp("data")
    with (
        serving(settings_for(folder, python_graders="unsafe", job_poll=3600), ByteEngine()) as client,
        httpx.Client(base_url=str(client.base_url), timeout=30) as http,
    ):
        http.file = upload(client)
        http.batch = uploaded(client, lines_of([chat(0)]))
        http.eval = client.evals.create(data_source_config=CUSTOM, testing_criteria=[GRADER]).id
        yield http


def post(http: httpx.Client, route: str, **changes: Any) -> httpx.Response:
    kind, base = ROUTES[route]
    needed = {"model": "bytes", "training_file": http.file, "input_file_id": http.batch}
    needed = {name: value for name, value in needed.items() if name in get_type_hints(kind)}
    return http.post(route.format(eval=http.eval), json=needed | base | changes)


def check(answer: httpx.Response) -> None:
    """400 or 404 in OpenAI's envelope, where not 200, and not because a field is unknown; the field at fault is one of
    the body's, or one that it lacks."""
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code == 200:
        return
    error, sent = envelope_of(answer), json.loads(answer.request.content)
    assert error["type"] == "invalid_request_error" and error["code"] != "unknown_parameter", f"{sent} → {error}"
    assert names_a_part(error["param"], sent) or error["code"] == "missing_required_parameter", f"{sent} → {error}"


def names_a_part(param: str, sent: Any) -> bool:
    """Whether ``param`` is a path in ``sent``; keys may hold dots themselves, and a list may end too soon."""
    if isinstance(sent, list):
        place, _, rest = param.partition(".")
        return int(place) <= len(sent) if not rest else names_a_part(rest, sent[int(place)])
    if not isinstance(sent, dict):
        return False
    return param in sent or any(
        names_a_part(param.removeprefix(f"{key}."), part) for key, part in sent.items() if param.startswith(f"{key}.")
    )


def quickly(strategy: st.SearchStrategy[Any]) -> Any:
    """Runs a test on the same few examples each time."""
    few = settings(max_examples=8, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    return lambda test: few(given(strategy)(test))()


@pytest.mark.parametrize(("route", "field"), FIELDS, ids=lambda value: value)
def test_every_documented_field_is_known(http, route, field):
    hint = get_type_hints(ROUTES[route][0], include_extras=True)[field]

    @quickly(drawn(hint, field))
    def ask(value: Any) -> None:
        answer = post(http, route, **{field: value})
        check(answer)
        assert answer.status_code == 200 or envelope_of(answer)["param"].split(".")[0] == field


@pytest.mark.parametrize("field", [*get_type_hints(ReinforcementMethodParam), "response_format"])
def test_every_documented_field_of_reinforcement_is_known(http, field):
    hints = get_type_hints(ReinforcementMethodParam, include_extras=True) | {"response_format": ResponseFormat}

    @quickly(drawn(hints[field], field))
    def ask(value: Any) -> None:
        reinforcement = {"grader": GRADER} | {field: value}
        check(post(http, "fine_tuning/jobs", method={"type": "reinforcement", "reinforcement": reinforcement}))


def test_a_job_in_the_shape_of_openais_pages_is_accepted(http):
    """Graders by name under a multi grader without one, which the client's types do not know."""
    judge = {"type": "score_model", "name": "Explanation", "model": "bytes"}
    judge["input"] = [{"type": "message", "role": "user", "content": "{{sample.output_json.why}}, {{item.why}}"}]
    match = {"type": "string_check", "name": "compliant", "operation": "eq", "reference": "{{item.compliant}}"}
    match["input"] = "{{sample.output_json.compliant}}"
    grader = {"type": "multi", "graders": {"why": judge, "match": match}, "calculate_output": "0.5 * match + 0.5 * why"}
    texts = {"why": {"type": "string"}, "compliant": {"type": "string"}}
    schema = {"type": "object", "properties": texts, "required": list(texts), "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "assistant", "strict": True, "schema": schema}}
    reinforcement = {"grader": grader, "response_format": form, "hyperparameters": {"reasoning_effort": "medium"}}
    method = {"type": "reinforcement", "reinforcement": reinforcement}
    answer = post(http, "fine_tuning/jobs", method=method, validation_file=http.file)
    assert answer.status_code == 200, answer.text
    assert answer.json()["method"]["reinforcement"].items() >= reinforcement.items()


@pytest.mark.parametrize("route", ROUTES)
def test_the_body_that_is_changed_here_is_accepted(http, route):
    assert post(http, route).status_code == 200


@pytest.mark.parametrize(("route", "field"), FIELDS, ids=lambda value: value)
def test_a_field_of_the_wrong_type_is_named(http, route, field):
    answer = post(http, route, **{field: [[[{"no": "such"}]]]})
    if answer.status_code != 200:  # some fields hold anything
        assert answer.status_code == 400 and envelope_of(answer)["param"].split(".")[0] == field


@pytest.mark.parametrize(
    ("route", "change"),
    [
        ("chat/completions", {"functions": [{"name": "f"}]}),
        ("chat/completions", {"audio": {"voice": "alloy", "format": "wav"}}),
        ("chat/completions", {"modalities": ["audio"]}),
        ("completions", {"suffix": "the end"}),
        ("completions", {"best_of": 3}),
    ],
)
def test_what_is_not_here_is_refused_by_name(http, route, change):
    error = envelope_of(post(http, route, **change))
    (field,) = change
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")
    assert field in error["message"] and "not supported by this server" in error["message"]
