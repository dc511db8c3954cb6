"""Every method of the official client's resources that Iro serves: its answers are what the client's types say."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import openai
import pytest
from openai._resource import SyncAPIResource

from tests.contract.strict import envelope_of, strictly
from tests.iro_server.api.batches import chat, ended_batch, lines_of, new_batch
from tests.iro_server.api.evals import CRITERIA, CUSTOM, ended_run, run_eval, sampled
from tests.iro_server.api.serving import GRADER, ended, upload, wait_for

ROW = b'{"messages": [{"role": "user", "content": "say z"}], "answer": "z"}\n'
HI = [{"role": "user", "content": "hi"}]
MULTI = {"type": "multi", "name": "all", "calculate_output": "quick", "graders": GRADER}
PYTHON = {"type": "python", "name": "mine", "source": "def grade(sample, item):\n    return item['weight']\n"}


def whole_job(world: Any) -> Iterable[Any]:
    """Every field of a job at once."""
    hyperparameters = {"n_epochs": "auto", "eval_interval": 1, "compute_multiplier": 1.5, "reasoning_effort": "low"}
    schema = {"name": "answer", "strict": True, "schema": {"type": "object"}}
    reinforcement = {"grader": MULTI, "hyperparameters": hyperparameters, "iro": {"iterations": 1}}
    reinforcement["response_format"] = {"type": "json_schema", "json_schema": schema}
    integrations = [{"type": "wandb", "wandb": {"project": "p", "tags": ["a"]}}]
    job = world.client.fine_tuning.jobs.create(
        model="bytes",
        training_file=world.file,
        method={"type": "reinforcement", "reinforcement": reinforcement},
        integrations=integrations,
        metadata={"team": "red"},
        validation_file=upload(world.client),
        suffix="whole",
    )
    assert job.metadata == {"team": "red"} and job.integrations[0].wandb.project == "p"
    yield job
    yield from world.client.fine_tuning.jobs.list(metadata={"team": "red"})


def paused_and_resumed(world: Any) -> Iterable[Any]:
    jobs = world.client.fine_tuning.jobs
    id = world.slow
    wait_for(lambda: any(event.type == "metrics" for event in jobs.list_events(id)))
    paused = jobs.pause(id)
    assert paused.status == "paused"
    yield from (paused, jobs.retrieve(id), jobs.checkpoints.list(id))
    resumed = jobs.resume(id)
    assert resumed.status == "queued"
    yield from (resumed, jobs.cancel(id), jobs.list_events(id))


def failed_job(world: Any) -> Iterable[Any]:
    job = ended(world.client, world.failing)
    assert job.status == "failed" and job.error.code == "grader_failed"
    yield job


def uploaded(world: Any) -> Iterable[Any]:
    uploads = world.client.uploads
    upload = uploads.create(filename="rows.jsonl", purpose="fine-tune", bytes=2 * len(ROW), mime_type="text/jsonl")
    parts = [uploads.parts.create(upload.id, data=ROW) for _ in range(2)]
    yield from (upload, *parts, uploads.complete(upload.id, part_ids=[part.id for part in parts]))
    chunked = uploads.upload_file_chunked(
        file=ROW, filename="rows.jsonl", bytes=len(ROW), mime_type="text/jsonl", purpose="fine-tune"
    )
    assert chunked.status == "completed" and chunked.file.bytes == len(ROW)
    yield chunked
    yield uploads.cancel(uploads.create(filename="a", purpose="fine-tune", bytes=9, mime_type="text/jsonl").id)


def contents(world: Any) -> Iterable[Any]:
    assert world.client.files.content(world.file).read() == world.client.files.retrieve_content(world.file).encode()
    return []


def webhooks(world: Any) -> Iterable[Any]:
    hooks = world.client.webhooks
    made = hooks.create(name="mine", url=world.receiver.url, event_types=["fine_tuning.job.succeeded"])
    yield from (made, hooks.retrieve(made.id), hooks.update(made.id, name="yours"), hooks.list())
    yield hooks.test(made.id, event_type="fine_tuning.job.succeeded")
    body, headers = world.receiver.got[-1]
    yield hooks.unwrap(body, headers, secret=made.signing_secret)
    hooks.verify_signature(body, headers, secret=made.signing_secret)
    yield from (hooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True), hooks.delete(made.id))


def chats(world: Any) -> Iterable[Any]:
    create = world.client.chat.completions.create
    said = create(model=world.model, messages=HI, logprobs=True, top_logprobs=1, n=2, seed=1, max_completion_tokens=5)
    yield said
    yield create(model="bytes", messages=[*HI, said.choices[0].message, *HI], max_tokens=4)
    yield create(model="bytes", messages=[*HI, said.choices[0].message.model_dump(), *HI], max_tokens=4)
    options = {"include_usage": True, "include_search": True}
    yield from create(model=world.model, messages=HI, stream=True, stream_options=options, logprobs=True, max_tokens=9)


def streamed_chat(world: Any) -> Iterable[Any]:
    with world.client.chat.completions.stream(model="bytes", messages=HI) as events:
        yield from (event.chunk for event in events if event.type == "chunk")
        yield events.get_final_completion()


def texts(world: Any) -> Iterable[Any]:
    create = world.client.completions.create
    yield create(model=world.model, prompt=["a", "b"], n=2, logprobs=1, max_tokens=5)
    options = {"include_usage": True, "include_search": True}
    yield from create(model=world.model, prompt="a", stream=True, stream_options=options, logprobs=1, max_tokens=5)


def deleted_model(world: Any) -> Iterable[Any]:
    yield world.client.models.delete(ended(world.client, world.spare).fine_tuned_model)


def graded(world: Any) -> Iterable[Any]:
    run = world.client.fine_tuning.alpha.graders.run
    yield run(grader=MULTI, model_sample="z")
    answer = run(grader=PYTHON, model_sample="z", item={"weight": 0.5})
    assert answer.reward == 0.5
    yield answer
    failing = run(grader=PYTHON, model_sample="z", item={})
    assert failing.metadata.errors.python_grader_runtime_error
    yield failing


def permissions(world: Any) -> Iterable[Any]:
    permissions = world.client.fine_tuning.checkpoints.permissions
    granted = permissions.create(world.model, project_ids=["theirs"])
    yield from (granted, permissions.list(world.model), permissions.retrieve(world.model))
    yield permissions.delete(granted.data[0].id, fine_tuned_model_checkpoint=world.model)


def evals(world: Any) -> Iterable[Any]:
    evals, runs = world.client.evals, world.client.evals.runs
    label = {"type": "label_model", "name": "label", "model": "bytes", "labels": ["a", "b"], "passing_labels": ["a"]}
    judge = {"type": "score_model", "name": "judge", "model": "bytes", "input": HI, "pass_threshold": 0.5}
    criteria = [*CRITERIA, judge, label | {"input": HI}]
    made = evals.create(data_source_config=CUSTOM, testing_criteria=criteria, name="e", metadata={"team": "red"})
    yield from (made, evals.retrieve(made.id), evals.update(made.id, name="f"), evals.list(limit=5, order="desc"))
    run = runs.create(made.id, data_source=sampled(3, world.model), name="r", metadata={"try": "1"})
    yield from (run, ended_run(world.client, made.id, run.id), runs.list(made.id, order="desc", status="completed"))
    stored = [{"item": {"q": "a"}, "sample": {"output_text": "z"}}]
    jsonl = {"type": "jsonl", "source": {"type": "file_content", "content": stored}}
    items = runs.output_items
    for run_id in (run.id, run_eval(world.client, made.id, jsonl).id):
        page = items.list(run_id, eval_id=made.id, status="fail", order="desc", limit=2)
        yield from (page, items.retrieve(page.data[0].id, eval_id=made.id, run_id=run_id))
    canceled = runs.create(made.id, data_source=sampled(500))
    yield from (runs.cancel(canceled.id, eval_id=made.id), runs.delete(canceled.id, eval_id=made.id))
    yield evals.delete(made.id)


def responses(world: Any) -> Iterable[Any]:
    create = world.client.responses.create
    first = create(model=world.model, input="hi", instructions="be brief", metadata={"a": "b"}, max_output_tokens=5)
    second = create(model="bytes", input=[*first.output, *HI], previous_response_id=first.id)
    yield from (first, second, world.client.responses.retrieve(second.id))
    yield from create(model=world.model, input="hi", stream=True, max_output_tokens=9)
    with world.client.responses.stream(model="bytes", input="hi") as events:
        yield from (event for event in events if event.type == "response.created")
        assert events.get_final_response().output_text
    yield world.client.responses.input_items.list(second.id, order="asc")
    assert world.client.responses.delete(first.id) is None


def stored_completions(world: Any) -> Iterable[Any]:
    completions = world.client.chat.completions
    made = completions.create(model=world.model, messages=HI, store=True, metadata={"team": "red"}, max_tokens=5)
    yield from (completions.retrieve(made.id), completions.update(made.id, metadata={"team": "blue"}))
    yield completions.list(model=world.model, metadata={"team": "blue"}, order="desc", limit=2)
    yield from (completions.messages.list(made.id, order="asc", limit=5), completions.delete(made.id))


def batches(world: Any) -> Iterable[Any]:
    batches = world.client.batches
    made = new_batch(world.client, lines_of([chat(0), chat(1, model="other")]), metadata={"team": "red"})
    yield from (made, ended_batch(world.client, made.id), batches.list(limit=2))
    failing = new_batch(world.client, lines_of([chat(0)]) * 2)
    long = new_batch(
        world.client, lines_of([chat(number) for number in range(500)])
    )  # not ended before it is cancelled
    yield from (ended_batch(world.client, failing.id), batches.cancel(long.id))


def embeddings(world: Any) -> Iterable[Any]:
    create = world.client.embeddings.create
    yield create(model="all-MiniLM-L6-v2", input="a")
    yield create(model="all-MiniLM-L6-v2", input=["a", "b"], encoding_format="float", dimensions=384, user="u")


# By the methods of the client that each calls.
CALLS: dict[str, Callable[[Any], Any]] = {
    "files.create": lambda w: w.client.files.create(
        file=("rows.jsonl", io.BytesIO(ROW)),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    ),
    "files.retrieve": lambda w: w.client.files.retrieve(w.file),
    "files.list": lambda w: w.client.files.list(limit=2, order="asc", purpose="fine-tune"),
    "files.wait_for_processing": lambda w: w.client.files.wait_for_processing(w.file),
    "files.delete": lambda w: w.client.files.delete(upload(w.client)),
    "files.content files.retrieve_content": contents,
    "uploads.create uploads.parts.create uploads.complete uploads.cancel uploads.upload_file_chunked": uploaded,
    "fine_tuning.jobs.create": whole_job,
    "fine_tuning.jobs.retrieve": lambda w: w.client.fine_tuning.jobs.retrieve(w.job.id),
    "fine_tuning.jobs.list": lambda w: w.client.fine_tuning.jobs.list(limit=3),
    "fine_tuning.jobs.list_events": lambda w: w.client.fine_tuning.jobs.list_events(w.job.id, limit=50),
    "fine_tuning.jobs.checkpoints.list": lambda w: w.client.fine_tuning.jobs.checkpoints.list(w.job.id),
    "fine_tuning.jobs.pause fine_tuning.jobs.resume fine_tuning.jobs.cancel": paused_and_resumed,
    "fine_tuning.jobs.retrieve (failed)": failed_job,
    "fine_tuning.alpha.graders.run": graded,
    "fine_tuning.alpha.graders.validate": lambda w: w.client.fine_tuning.alpha.graders.validate(grader=MULTI),
    "fine_tuning.checkpoints.permissions.create fine_tuning.checkpoints.permissions.list "
    "fine_tuning.checkpoints.permissions.retrieve fine_tuning.checkpoints.permissions.delete": permissions,
    "models.retrieve": lambda w: w.client.models.retrieve(w.model),
    "models.list": lambda w: w.client.models.list(),
    "models.delete": deleted_model,
    "chat.completions.create": chats,
    "chat.completions.retrieve chat.completions.update chat.completions.list chat.completions.delete "
    "chat.completions.messages.list": stored_completions,
    "chat.completions.parse": lambda w: w.client.chat.completions.parse(model="bytes", messages=HI),
    "chat.completions.stream": streamed_chat,
    "completions.create": texts,
    "webhooks.create webhooks.retrieve webhooks.update webhooks.list webhooks.delete webhooks.rotate_secret "
    "webhooks.test webhooks.unwrap webhooks.verify_signature": webhooks,
    "evals.create evals.retrieve evals.update evals.list evals.delete evals.runs.create evals.runs.retrieve "
    "evals.runs.list evals.runs.cancel evals.runs.delete evals.runs.output_items.list "
    "evals.runs.output_items.retrieve": evals,
    "responses.create responses.retrieve responses.delete responses.stream responses.input_items.list": responses,
    "responses.parse": lambda w: w.client.responses.parse(model="bytes", input="hi"),
    "batches.create batches.retrieve batches.list batches.cancel": batches,
    "embeddings.create": embeddings,
    "webhooks.event_types.list": lambda w: w.client.webhooks.event_types.list(),
}
# What Iro does not have: a call is refused, and says so.
NOT_HERE: dict[str, Callable[[Any], Any]] = {
    "responses.cancel": lambda r: r.cancel("resp_1"),
    "responses.compact": lambda r: r.compact(model="bytes"),
    "responses.input_tokens.count": lambda t: t.count(model="bytes", input="hi"),
}
WEBSOCKETS = {"responses.connect"}  # which are not here either; the client raises errors of another kind
RESOURCES = ("files", "uploads", "uploads.parts", "fine_tuning.jobs", "fine_tuning.jobs.checkpoints")
RESOURCES += ("fine_tuning.alpha.graders", "fine_tuning.checkpoints.permissions", "models", "chat.completions")
RESOURCES += ("chat.completions.messages", "completions", "webhooks", "webhooks.event_types")
RESOURCES += ("evals", "evals.runs", "evals.runs.output_items")
RESOURCES += ("batches", "embeddings")
RESOURCES += ("responses", "responses.input_items", "responses.input_tokens")


def resource(client: openai.OpenAI, path: str) -> Any:
    value: Any = client
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("methods", CALLS)
def test_answers_are_what_the_clients_types_say(world, methods):
    answers = CALLS[methods](world)
    for answer in [answers] if hasattr(answers, "to_dict") else answers:
        strictly(answer)


@pytest.mark.parametrize("method", NOT_HERE)
def test_what_is_not_here_is_refused_plainly(client, method):
    path, _, _ = method.rpartition(".")
    with pytest.raises(openai.APIStatusError) as error:
        NOT_HERE[method](resource(client, path))
    assert error.value.status_code in (404, 405)
    assert envelope_of(error.value.response)["code"] in ("unknown_url", "method_not_allowed")


def test_no_method_of_the_clients_resources_is_forgotten(client):
    called = {name for names in (*CALLS, *NOT_HERE) for name in names.split()}
    for path in RESOURCES:
        kind = type(resource(client, path))
        own = [name for name in dir(kind) if not name.startswith(("_", "with_")) and not hasattr(SyncAPIResource, name)]
        forgotten = {f"{path}.{name}" for name in own} - called - set(RESOURCES) - WEBSOCKETS
        assert not forgotten, forgotten


def test_pages_lead_on_to_the_next(world):
    jobs = world.client.fine_tuning.jobs
    events = list(jobs.list_events(world.job.id, limit=2))
    assert len(events) > 4 and len({event.id for event in events}) == len(events)
    assert [e.id for e in events] == [e.id for e in jobs.list_events(world.job.id, limit=100)]


def test_every_answer_carries_a_request_id(world):
    assert world.client.models.list()._request_id.startswith("req_")
    assert world.client.with_options().files.with_raw_response.list().headers["openai-processing-ms"].isdigit()
