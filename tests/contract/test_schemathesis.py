"""No request that the OpenAPI document describes, or nearly describes, makes the server fail.

One case of each operation, or three, in CI's turn (--rotate-slow); 5,000 and more by `make test-all`.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.openapi import from_url

from tests.contract.strict import envelope_of
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.evals import CRITERIA, new_eval, run_eval, sampled
from tests.iro_server.api.serving import GRADER, ended, serving, settings_for, start_job, upload
from tests.iro_server.api.test_webhooks import Receiver

ROW = b'{"messages": [{"role": "user", "content": "say z"}]}\n'
HOOK = {"name": "mine", "event_types": ["fine_tuning.job.cancelled"]}
ASKED = [{"role": "user", "content": "{{item.x}}: {{sample.output_text}}"}]
ASKING = {"type": "score_model", "name": "a", "model": "bytes", "input": ASKED}
SIMILAR = {"type": "text_similarity", "name": "a", "input": "{{sample.output_text}}", "reference": "z"}
METHOD = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
SECONDS = 2.0  # that no request may take
GRADERS = [GRADER, ASKING, SIMILAR | {"evaluation_metric": "bleu"}]


# On PostgreSQL in turn (--rotate-slow): what it does otherwise than SQLite has tests of its own in tests/iro_server.
@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow(60))])
def api(request, tmp_path_factory, new_database):
    """A server's document, what its requests may name, and how the cases went. New jobs stay in the queue."""
    limits = {"max_request_tokens": 2**14, "max_rows": 64, "project_jobs": 10**6, "project_webhooks": 10**6}
    limits |= {"project_evals": 10**6, "project_eval_runs": 10**6, "project_estimates": 10**6}
    limits["project_job_runs"] = 10**6
    limits["database_url"] = new_database(request.param)
    configured = settings_for(tmp_path_factory.mktemp("data"), **limits)
    with serving(configured, ByteEngine()) as client:
        job, evaluation = ended(client, start_job(client)), an_eval(client)
    idle = configured.model_copy(update={"job_poll": 3600})
    with serving(idle, ByteEngine()) as client, Receiver() as receiver, requests.Session() as session:
        client.get("/iro/job_kinds", cast_to=object)  # read once, by a process that imports them all
        yield SimpleNamespace(
            client=client,
            session=session,
            document=from_url(str(client.base_url).replace("/v1/", "/openapi.json")),
            job=job,
            file=upload(client),
            response=client.responses.create(model="bytes", input="a", max_output_tokens=2).id,
            completion=a_completion(client),
            estimate=an_estimate(client),
            job_run=client.post("/iro/job_runs", body={"kind": "theory.cot"}, cast_to=object)["id"],
            **evaluation,
            hook=client.webhooks.create(url=receiver.url, **HOOK).id,
            url=receiver.url,
            statuses=Counter(),
            operations=Counter(),
            slow=[],
        )


def with_names(case: Case, api: SimpleNamespace, grader: dict[str, Any]) -> None:
    """Let ``case`` name what there is, so that it comes further than a name that is unknown."""
    upload, part = new_upload(api) if "/uploads/" in case.path else ("", "")
    known = {"files": api.file, "jobs": api.job.id, "webhook_endpoints": api.hook, "models": api.job.fine_tuned_model}
    known |= {"checkpoints": api.job.fine_tuned_model, "uploads": upload}
    known |= {
        "responses": api.response,
        "completions": api.completion,
        "estimate": api.estimate,
        "job_runs": api.job_run,
        "evals": api.eval,
        "runs": api.run,
        "output_items": api.output_item,
    }
    for part, id in known.items():
        for name in case.path_parameters.keys() & {"id", "name", "run_id", "item_id"}:
            if f"/{part}/{{{name}" in case.path and case.method != "DELETE":
                case.path_parameters[name] = id
    names = {"model": "bytes", "training_file": api.file, "grader": grader, "file": ROW, "data": ROW}
    names |= {"testing_criteria": [grader], "file_id": api.file, "previous_response_id": api.response}
    names |= {"part_ids": [part]}
    case.body = with_values(case.body, names)


def with_values(body: Any, values: dict[str, Any]) -> Any:
    """``body`` with ``values`` in place of the fields of those names, at any depth; of those that are null, no more."""
    if isinstance(body, list):
        return [with_values(item, values) for item in body]
    if not isinstance(body, dict):
        return body
    return {
        name: values[name] if name in values and value is not None else with_values(value, values)
        for name, value in body.items()
    }


def an_eval(client: Any) -> dict[str, str]:
    """An eval, a run of it that has ended, and an item of that."""
    eval_id = new_eval(client, CRITERIA[:2])
    run = run_eval(client, eval_id, sampled(2))
    item = client.evals.runs.output_items.list(run.id, eval_id=eval_id).data[0]
    return {"eval": eval_id, "run": run.id, "output_item": item.id}


def a_completion(client: Any) -> str:
    messages = [{"role": "user", "content": "a"}]
    create = client.chat.completions.create
    return create(model="bytes", messages=messages, max_tokens=2, store=True, metadata={"team": "red"}).id


def an_estimate(client: Any) -> str:
    """One that waits: nothing is done in the background of this server."""
    body = {"model": "bytes", "training_file": upload(client), "method": METHOD}
    return client.post("/fine_tuning/jobs/estimate", body=body, cast_to=object)["id"]


def new_upload(api: SimpleNamespace) -> tuple[str, str]:
    """An upload and its only part."""
    uploads = api.client.uploads
    upload = uploads.create(filename="a", purpose="fine-tune", bytes=len(ROW), mime_type="text/jsonl").id
    return upload, uploads.parts.create(upload, data=ROW).id


def stays_here(case: Case, api: SimpleNamespace) -> None:
    """No webhook goes out to a host that a case made up."""
    if isinstance(case.body, dict) and str(case.body.get("url", "")).startswith("http"):
        case.body["url"] = api.url


def ask_all(api: SimpleNamespace, examples: int) -> None:
    """``examples`` cases of each operation that fit the document, and as many that do not quite."""
    few = settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for operation in (each.ok() for each in api.document.get_all_operations()):
        for mode in GenerationMode:

            @few
            @given(operation.as_strategy(generation_mode=mode), st.booleans(), st.sampled_from(GRADERS))
            def ask(case: Case, named: bool, grader: dict[str, Any]) -> None:
                if named:
                    with_names(case, api, grader)
                stays_here(case, api)
                answer = case.call(session=api.session, timeout=120)
                api.statuses[answer.status_code] += 1
                if answer.status_code < 300:
                    api.operations[f"{case.method} {case.path}"] += 1
                if answer.elapsed > SECONDS:
                    api.slow.append((answer.elapsed, case.as_curl_command()))
                assert answer.status_code < 500, f"{case.as_curl_command()}\n{answer.text}"
                if answer.status_code >= 400:
                    envelope_of(answer)

            try:
                ask()
            except Unsatisfiable:  # an operation without anything that could be wrong
                assert mode is GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    "examples", [pytest.param(1, marks=pytest.mark.slow(60)), pytest.param(3, marks=pytest.mark.slow(100))]
)
def test_cases_of_each_operation_meet_no_server_error(api, examples):
    before = Counter(api.statuses)
    ask_all(api, examples)
    statuses = api.statuses - before
    assert sum(statuses.values()) >= 100 * examples
    assert statuses[200] > 10 * examples < statuses[400] and statuses[404] > 10 * examples


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_thousands_of_cases_meet_no_server_error(api):
    before = sum(api.statuses.values())
    ask_all(api, examples=65)
    assert sum(api.statuses.values()) - before >= 5000
    print(dict(api.statuses), dict(api.operations))
    assert not api.slow, api.slow


@pytest.mark.slow(32)
def test_the_document_tells_of_errors_in_the_envelope(api):
    document = api.document.raw_schema
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["tags"] and "422" not in operation["responses"], f"{method} {path}"
            envelope = operation["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"]
            assert envelope.endswith("/ErrorEnvelope")
