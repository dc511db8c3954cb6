from __future__ import annotations

import openai
import pytest

from tests.iro_server.api.serving import GRADER, conforms, ended, start_job, upload


def create(client, **changes):
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
    body = {"model": "bytes", "training_file": "file-none", "method": method}
    return client.fine_tuning.jobs.create(**(body | changes))


def test_a_job_that_succeeds_serves_its_model_and_its_checkpoints(client, job):
    conforms(job)
    assert job.status == "succeeded" and job.finished_at >= job.created_at
    assert job.fine_tuned_model.startswith("ft:bytes:iro:zeal:")
    steps = conforms(client.fine_tuning.jobs.checkpoints.list(job.id).data[0]), *client.models.list().data
    assert steps[0].step_number == 2 and steps[0].metrics.full_valid_mean_reward == 0.2
    for name in (job.fine_tuned_model, steps[0].fine_tuned_model_checkpoint):
        model = conforms(client.models.retrieve(name))
        assert model.owned_by == "iro"
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}], max_tokens=4)


def test_events_tell_the_story_newest_first_in_pages(client, job):
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    for event in events:
        conforms(event)
    messages = [event.message for event in reversed(events)]
    assert messages[0].startswith("Created") and messages[-1] == "The job has successfully completed"
    metrics = [event.data["step"] for event in reversed(events) if event.type == "metrics"]
    assert metrics == [1, 2]


def test_rows_of_another_purpose_are_refused_with_the_purpose_to_give(client):
    rows = ("rows.jsonl", b'{"item": {"prompt": "say z"}}\n')
    file = client.files.create(file=rows, purpose="evals").id
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
    with pytest.raises(openai.BadRequestError, match="is 'evals'; upload the rows again with purpose='fine-tune'") as e:
        client.fine_tuning.jobs.create(model="bytes", training_file=file, method=method)
    assert (e.value.param, e.value.code) == ("training_file", "invalid_file_purpose")


@pytest.mark.parametrize(
    ("block", "name", "message"),
    [
        ("iro", "iteration", "Did you mean method.reinforcement.iro.iterations?"),
        ("hyperparameters", "iterations", "It belongs in method.reinforcement.iro."),
        ("hyperparameters", "epochs", "Did you mean method.reinforcement.hyperparameters.n_epochs?"),
        ("iro", "n_epochs", "It belongs in method.reinforcement.hyperparameters."),
        ("hyperparameters", "response_format", "It belongs in method.reinforcement."),
        ("iro", "xyzzy", "iro.xyzzy"),
    ],
)
def test_an_unknown_option_is_answered_with_what_it_may_be_meant_for(client, block, name, message):
    reinforcement = {"grader": GRADER, block: {name: 2}}
    method = {"type": "reinforcement", "reinforcement": reinforcement}
    with pytest.raises(openai.BadRequestError) as e:
        client.fine_tuning.jobs.create(model="bytes", training_file="file-x", method=method)
    assert (e.value.param, e.value.code) == (f"method.reinforcement.{block}.{name}", "unknown_parameter")
    assert e.value.body["message"].endswith(message)


def test_jobs_are_listed_and_unknown_ones_are_not_found(client, job):
    assert job.id in [each.id for each in client.fine_tuning.jobs.list()]
    for call in (client.fine_tuning.jobs.retrieve, client.fine_tuning.jobs.cancel, client.fine_tuning.jobs.list_events):
        with pytest.raises(openai.NotFoundError):
            call("ftjob-none")


def test_jobs_are_listed_by_any_key_of_their_metadata(client):
    keys = ["label", 'a"b', '"', "a'b", "a.b", "a[0]", "a\\b", "a\0b", "é", ""]
    id = create(client, training_file=upload(client), metadata={key: f"of {key}" for key in keys}).id

    def listed(key, value):
        return [job.id for job in client.fine_tuning.jobs.list(extra_query={f"metadata[{key}]": value})]

    assert [listed(key, f"of {key}") for key in keys] == [[id]] * len(keys)
    assert [listed(key, "of none") for key in [*keys, "unknown"]] == [[]] * (len(keys) + 1)
    ended(client, id)


def test_a_request_is_stored_as_it_was_sent(client):
    hyperparameters = {"n_epochs": "auto", "compute_multiplier": 2.0, "reasoning_effort": "low"}
    reinforcement = {"grader": GRADER, "hyperparameters": hyperparameters, "iro": {"iterations": 1}}
    job = create(
        client,
        training_file=upload(client),
        method={"type": "reinforcement", "reinforcement": reinforcement},
        metadata={"team": "a"},
        seed=11,
    )
    conforms(job)
    assert job.method.reinforcement.to_dict() == reinforcement
    assert (job.seed, job.metadata, job.suffix if hasattr(job, "suffix") else None) == (11, {"team": "a"}, None)
    model = client.models.retrieve(ended(client, job.id).fine_tuned_model)
    assert model.iro["search"]["num_successors"] == 8  # 4 by low effort, times compute_multiplier


def test_a_job_outlives_the_deletion_of_its_file(client):
    file = upload(client)
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER | {"name": "slow"}}}
    job = client.fine_tuning.jobs.create(model="bytes", training_file=file, method=method)
    client.files.delete(file)
    assert ended(client, job.id).status == "succeeded"


def test_a_deleted_model_is_no_longer_served(client):
    name = ended(client, start_job(client)).fine_tuned_model
    assert client.models.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError):
        client.models.delete("bytes")


def test_a_checkpoint_that_is_to_be_deleted_is_said_to_be_one(client, job):
    name = client.fine_tuning.jobs.checkpoints.list(job.id).data[0].fine_tuned_model_checkpoint
    with pytest.raises(openai.BadRequestError, match=f"a checkpoint, .* a part of the job {job.id}") as refused:
        client.models.delete(name)
    assert (refused.value.param, refused.value.code) == ("model", "checkpoint")
    assert client.models.retrieve(name).id == name


def with_reinforcement(**changes):
    return {"method": {"type": "reinforcement", "reinforcement": {"grader": GRADER} | changes}}


ON_EACH_DATABASE = True
PYTHON = {"type": "python", "name": "p"}
BAD = [
    ({"training_file": "file-none"}, 404, "training_file"),
    ({"validation_file": "file-none"}, 404, "validation_file"),
    ({"model": "gpt-5"}, 404, "model"),
    ({"suffix": "a:b"}, 400, "suffix"),
    ({"seed": -1}, 400, "seed"),
    ({"method": {"type": "dpo"}}, 400, "method.type"),
    (with_reinforcement(iro={"iterations": 0}), 400, "method.reinforcement.iro.iterations"),
    (with_reinforcement(iro={"beam_width": -4}), 400, "method.reinforcement.iro.beam_width"),
    (with_reinforcement(iro={"iterations": 3, "betas": [1.0]}), 400, "method.reinforcement.iro.betas"),
    (with_reinforcement(iro={"beam_width": 64}), 400, "method.reinforcement.iro.num_successors"),  # 8 by default
    (
        with_reinforcement(hyperparameters={"compute_multiplier": 17}),
        400,
        "method.reinforcement.hyperparameters.compute_multiplier",
    ),
    (with_reinforcement(iro={"depth": 1}), 400, "method.reinforcement.iro.depth"),
    (with_reinforcement(grader={"type": "oracle"}), 400, "method.reinforcement.grader.type"),
    (with_reinforcement(grader=PYTHON | {"source": "def grade("}), 400, "method.reinforcement.grader.source"),
    (with_reinforcement(grader=PYTHON | {"source": "x = 1"}), 400, "method.reinforcement.grader.source"),
]


@pytest.mark.parametrize("keep", [False, True])
def test_a_model_whose_gain_is_unproven_samples_as_the_frozen_one_unless_it_is_to_search(client, keep):
    job = ended(client, start_job(client, GRADER | {"name": "unproven"}, keep_unproven=keep))
    assert job.status == "succeeded" and job.iro["improved"] is False
    model = client.models.retrieve(job.fine_tuned_model).iro
    assert model["improved"] is False
    assert (model["search"]["beam_width"], model["search"]["num_successors"]) == ((2, 3) if keep else (1, 1))
    chat = [{"role": "user", "content": "hello"}]
    answers = [
        client.chat.completions.create(model=name, messages=chat, seed=1, max_tokens=8).choices[0].message.content
        for name in ("bytes", job.fine_tuned_model)
    ]
    assert (answers[0] == answers[1]) is not keep


def test_a_model_is_served_as_its_job_decided_and_checkpoints_as_it_searched(client):
    job = ended(client, start_job(client, GRADER | {"name": "served-otherwise"}))
    assert client.models.retrieve(job.fine_tuned_model).iro["search"]["num_successors"] == 2
    checkpoint = client.fine_tuning.jobs.checkpoints.list(job.id).data[0].fine_tuned_model_checkpoint
    chat = [{"role": "user", "content": "hello"}]
    answer = client.chat.completions.create(model=checkpoint, messages=chat, n=6)
    assert len(answer.choices) == 6  # W·K of the job's search


def test_over_optimisation_is_told_of_job_and_model(client, job):
    assert job.iro["over_optimization"] == []
    overdone = ended(client, start_job(client, GRADER | {"name": "overdone"}))
    (departure,) = overdone.iro["over_optimization"]
    assert departure["measure"] == "length" and departure["median"] > departure["frozen_high"]
    assert client.models.retrieve(overdone.fine_tuned_model).iro["over_optimization"] == [departure]
    chat = [{"role": "user", "content": "hello"}]
    assert client.chat.completions.create(model=overdone.fine_tuned_model, messages=chat, max_tokens=4).choices


def test_a_proven_gain_is_told_of_job_and_model(client, job):
    assert job.iro["improved"] is True
    assert client.models.retrieve(job.fine_tuned_model).iro["improved"] is True


@pytest.mark.parametrize(("changes", "status", "param"), BAD)
def test_what_can_be_known_to_fail_is_refused_at_once(client, changes, status, param):
    with pytest.raises(openai.APIStatusError) as refused:
        create(client, **({"training_file": upload(client)} | changes))
    assert (refused.value.status_code, refused.value.param) == (status, param)


def test_an_aligned_model_is_no_base(client, job):
    with pytest.raises(openai.BadRequestError, match="aligned already"):
        create(client, model=job.fine_tuned_model, training_file=upload(client))
