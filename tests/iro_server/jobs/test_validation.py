"""What is found out about a job's files before it is queued, by the alignment job's own check."""

from __future__ import annotations

import json
import logging
import re

import pytest

from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, ended, serving, settings_for, upload, wait_for

READS_ANSWER = GRADER | {"reference": "{{item.answer}}"}
NUMBERS = [str(number) for number in range(8)]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with serving(settings_for(tmp_path_factory.mktemp("data"), align_entry=None), ByteEngine()) as client:
        yield client


def rows(*questions: str, **fields: str) -> bytes:
    """Training rows, a question each."""
    made = [{"messages": [{"role": "user", "content": question}]} | fields for question in questions]
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def create(client, content: bytes, validation: bytes | None = None, grader=GRADER, **iro):
    files = {"training_file": upload(client, content)}
    if validation is not None:
        files["validation_file"] = upload(client, validation)
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "iro": iro}}
    return client.fine_tuning.jobs.create(model="bytes", method=method, seed=1, **files).id


@pytest.mark.parametrize(
    ("arguments", "param", "said"),
    [
        ({"content": rows("a", "b")}, "training_file", "1 training prompts are too few: .* iterations is 1"),
        ({"content": rows(*"aaaaaaaa")}, "training_file", "0 training prompts are too few.*of 8 rows; the others"),
        (
            {"content": rows(*NUMBERS), "validation": rows(*NUMBERS)},
            "training_file",
            "the validation_file has the prompts",
        ),
        (
            {"content": rows(*NUMBERS), "validation": rows(*NUMBERS), "validation_prompts": 1},
            "training_file",
            "0 training prompts are too few",
        ),
        ({"content": rows(*NUMBERS, "x" * 500)}, "training_file", "training_file.jsonl, line 9: the prompt has 5"),
        ({"content": rows(*NUMBERS), "validation": rows("x" * 500)}, "validation_file", "validation_file.jsonl, line"),
        ({"content": rows(*NUMBERS), "grader": READS_ANSWER}, "training_file", "item.answer, a field that no row"),
        ({"content": rows(*NUMBERS), "max_tokens": 510}, "training_file", "line 1: .*up to 510.*lower max_tokens to"),
    ],
)
def test_a_job_that_cannot_run_fails_before_it_is_queued(client, arguments, param, said):
    job = ended(client, create(client, **arguments))
    assert (job.status, job.error.code, job.error.param) == ("failed", "invalid_data", param)
    assert re.search(said, job.error.message)
    assert not any("started" in event.message for event in client.fine_tuning.jobs.list_events(job.id))


def test_a_refusal_is_one_line_of_the_log(client, caplog):
    caplog.set_level(logging.INFO, "iro.jobs")
    job = ended(client, create(client, rows("a", "b")))
    (record,) = [record for record in caplog.records if f"{job.id} is refused" in record.getMessage()]
    assert job.error.message in record.getMessage() and not record.exc_info


def test_rows_without_a_field_that_the_grader_reads_are_warned_of(client):
    content = rows(*NUMBERS, answer="z") + rows("without")
    warning = first_warning(client, content, rows("held out", answer="z"), iterations=1)
    assert warning.startswith("1 of 9 rows of the training_file, row 9 the first, lack the field 'answer'")


def test_rows_that_the_validation_file_has_too_are_warned_of(client):
    content = rows(*NUMBERS, "both", answer="z") + rows("both", answer="a")
    warning = first_warning(client, content, rows("one", "two", "three", "four", "both", answer="z"), iterations=1)
    assert warning.startswith("2 rows of the training_file have prompts that the validation_file has too")


@pytest.mark.parametrize("prompts_per_iteration", [None, 8])
def test_rows_that_lack_a_field_are_counted_once_in_the_order_of_the_file(client, prompts_per_iteration):
    """Without a validation file, and where iterations share rows."""
    content = rows("first", answer="z") + rows("second", "third") + rows(*NUMBERS[1:], answer="z")
    warning = first_warning(client, content, iterations=2, prompts_per_iteration=prompts_per_iteration)
    assert warning.startswith("2 of 10 rows of the training_file, row 2 the first, lack the field 'answer'")


def first_warning(client, content: bytes, validation: bytes | None = None, **iro) -> str:
    id = create(client, content, validation, READS_ANSWER, **iro)
    warnings = wait_for(lambda: [e for e in client.fine_tuning.jobs.list_events(id) if e.level == "warn"])
    client.fine_tuning.jobs.cancel(id)
    return warnings[0].message


@pytest.mark.slow(4)
def test_a_job_may_be_paused_the_moment_it_is_made(tmp_path):
    with serving(settings_for(tmp_path), ByteEngine()) as client:
        id = create(client, rows("a"))
        assert client.fine_tuning.jobs.pause(id).status == "paused"
        assert client.fine_tuning.jobs.resume(id).status in ("validating_files", "queued")
        assert ended(client, id).status == "succeeded"
