"""Another project's ids: every route answers as it does for an id that does not exist."""

from __future__ import annotations

import re
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

from iro_server.access.scopes import Scope
from iro_server.api.app import create_app
from iro_server.jobs.job_runs.folder import PNG_END
from iro_server.settings import Settings
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.evals import CRITERIA, new_eval, run_eval, sampled
from tests.iro_server.api.serving import GRADER, ended, new_key, serving, settings_for, start_job, upload
from tests.iro_server.api.test_picking import SCORE

HOOK = {"name": "mine", "url": "https://example.com/hook", "event_types": ["fine_tuning.job.cancelled"]}
STRING_CHECK = GRADER | {"name": "a"}
METHOD = {"type": "reinforcement", "reinforcement": {"grader": STRING_CHECK}}
EVERY_SCOPE = [part for scope in Scope for part in ("--scope", scope)]
HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/uploads/{id}/parts": {"files": {"data": b"{}"}},
    "/v1/uploads/{id}/complete": {"json": {"part_ids": ["part_1"]}},
    "/v1/webhook_endpoints/{id}": {"json": {"name": "theirs"}},
    "/v1/webhook_endpoints/{id}/rotate_secret": {"json": {}},
    "/v1/webhook_endpoints/{id}/test": {"json": {"event_type": HOOK["event_types"][0]}},
    "/v1/fine_tuning/checkpoints/{name}/permissions": {"json": {"project_ids": ["theirs"]}},
    "/v1/evals/{id}": {"json": {"name": "theirs"}},
    "/v1/chat/completions/{id}": {"json": {"metadata": {"whose": "theirs"}}},
    "/v1/evals/{id}/runs": {"json": {"data_source": sampled(1)}},
}


def operations() -> list[tuple[str, str]]:
    """Method and path of each operation whose path names something."""
    with TemporaryDirectory() as folder:  # create_app makes a database there
        document = create_app(Settings(data_dir=folder, model_name="bytes"), ByteEngine()).openapi()
    return [(method, path) for path, item in document["paths"].items() if "{" in path for method in item]


def with_ids(path: str, ids: dict[str, str]) -> str:
    """``path`` with an id after each part that ``ids`` names."""
    return re.sub(r"(\w+)/\{\w+\}", lambda match: f"{match[1]}/{ids[match[1]]}", path)


def new_batch(owner: Any) -> str:
    row = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "bytes", "prompt": "a"}}'
    file = owner.files.create(file=("batch.jsonl", row), purpose="batch").id
    batch = owner.batches.create(input_file_id=file, endpoint="/v1/completions", completion_window="24h")
    return str(batch.id)


def new_job_run(owner: Any) -> str:
    body = {"kind": "theory.cot", "preset": "smoke"}
    return str(owner.post("/iro/job_runs", body=body, cast_to=object)["id"])


def new_figure(settings: Settings, run: str) -> str:
    """The name of a figure that the run has, beside a result."""
    out = settings.run_dir(run) / "run"
    (out / "figures").mkdir(parents=True)
    (out / "result.json").write_text("{}")
    (out / "figures" / "c0ffee.png").write_bytes(PNG_END)
    return "c0ffee"


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The ids of what `mine` has, by the part of a path that they follow; and a client of `theirs`."""
    settings = settings_for(tmp_path_factory.mktemp("tenants"), job_run_concurrency=0)
    mine, theirs = (new_key(settings, name, *EVERY_SCOPE) for name in ("mine", "theirs"))
    with serving(settings, ByteEngine()) as client:
        owner = client.with_options(api_key=mine)
        job = ended(owner, start_job(owner))
        file, eval_id = upload(owner), new_eval(owner, CRITERIA[:2])
        run = run_eval(owner, eval_id, sampled(2))
        model = job.fine_tuned_model
        estimate = {"model": "bytes", "training_file": file, "method": METHOD}
        ids = {
            "models": model,
            "checkpoints": model,
            "files": file,
            "uploads": owner.uploads.create(filename="a", purpose="fine-tune", bytes=1, mime_type="text/jsonl").id,
            "webhook_endpoints": owner.post("/webhook_endpoints", body=HOOK, cast_to=object)["id"],
            "estimate": owner.post("/fine_tuning/jobs/estimate", body=estimate, cast_to=object)["id"],
            "jobs": job.id,
            "permissions": owner.fine_tuning.checkpoints.permissions.create(model, project_ids=["x"]).data[0].id,
            "evals": eval_id,
            "runs": run.id,
            "output_items": owner.evals.runs.output_items.list(run.id, eval_id=eval_id).data[0].id,
            "batches": new_batch(owner),
            "completions": owner.chat.completions.create(model="bytes", messages=HI, max_tokens=2, store=True).id,
            "job_runs": (job_run := new_job_run(owner)),
            "figures": new_figure(settings, job_run),
            "responses": owner.responses.create(model="bytes", input="a", max_output_tokens=2).id,
        }
        headers = {"authorization": f"Bearer {theirs}"}
        with httpx.Client(base_url=str(client.base_url).removesuffix("/v1/"), headers=headers, timeout=120) as http:
            yield SimpleNamespace(ids=ids, http=http, owner=owner, stranger=client.with_options(api_key=theirs))


@pytest.mark.parametrize(("method", "path"), operations(), ids=lambda value: value)
def test_another_projects_id_answers_as_an_unknown_one(tenants: SimpleNamespace, method: str, path: str) -> None:
    parts = re.findall(r"(\w+)/\{\w+\}", path)
    foreign_ids = {part: tenants.ids[part] for part in parts}
    unknown_ids = {part: re.sub("[0-9a-f]{6}$", "000000", id) for part, id in foreign_ids.items()}
    assert all(foreign_ids[part] != unknown_ids[part] for part in parts)
    answers = []
    for ids in (foreign_ids, unknown_ids):
        answer = tenants.http.request(method, with_ids(path, ids), **BODIES.get(path, {}))
        text = answer.text
        for part in parts:
            text = text.replace(ids[part], part)
        answers.append((answer.status_code, text))
    assert answers[0] == answers[1]
    assert answers[0][0] == 404


def test_the_owner_reads_what_the_ids_name(tenants: SimpleNamespace) -> None:
    paths = [path for method, path in operations() if method == "get"]
    assert len(paths) > 12
    headers = {"authorization": f"Bearer {tenants.owner.api_key}"}
    for path in paths:
        assert tenants.http.get(with_ids(path, tenants.ids), headers=headers).status_code == 200, path


def test_another_projects_model_and_file_in_a_body_answer_as_unknown_ones(tenants: SimpleNamespace) -> None:
    model, file, stranger = tenants.ids["models"], tenants.ids["files"], tenants.stranger
    own_file = upload(stranger)
    calls = [
        lambda: stranger.chat.completions.create(model=model, messages=HI),
        lambda: stranger.completions.create(model=model, prompt="a"),
        lambda: stranger.responses.create(model=model, input="a"),
        lambda: stranger.responses.create(model="bytes", input="a", previous_response_id=tenants.ids["responses"]),
        lambda: stranger.fine_tuning.jobs.create(model="bytes", training_file=file, method=METHOD),
        lambda: stranger.fine_tuning.jobs.create(
            model="bytes", training_file=own_file, validation_file=file, method=METHOD
        ),
        lambda: stranger.fine_tuning.jobs.create(model=model, training_file=own_file, method=METHOD),
    ]
    for call in calls:
        with pytest.raises((openai.NotFoundError, openai.BadRequestError), match=r"not found|does not exist|No such"):
            call()


def test_another_projects_model_is_no_judge(tenants: SimpleNamespace) -> None:
    judge = SCORE | {"model": tenants.ids["models"]}
    graders = tenants.owner.fine_tuning.alpha.graders
    assert graders.run(grader=judge, model_sample="x").metadata.errors.model_grader_server_error is False
    with pytest.raises(openai.BadRequestError):
        tenants.stranger.fine_tuning.alpha.graders.run(grader=judge, model_sample="x")
