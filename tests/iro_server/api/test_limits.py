"""What a body may hold, on a server with keys as they are made by default."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from iro_server.api.limits import REFUSAL_DELAY
from iro_server.graders import json_schema
from iro_server.graders import similarity as text_similarity
from iro_server.graders.similarity import METRICS
from iro_server.store import keys
from iro_server.store.database import open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, serving, settings_for

MIB = 2**20
PATHS = ("chat/completions", "fine_tuning/jobs", "fine_tuning/alpha/graders/run", "uploads")
LARGE = {
    "nested": b"[" * (22 * MIB),
    "a string": b'{"model": "' + b"x" * (20 * MIB) + b'"}',
    "keys": b"{" + b",".join(b'"%d":1' % i for i in range(10**6)) + b"}",
    "objects": b'{"model": "bytes", "messages": [' + b"{}," * 10**6 + b"{}]}",
    "wrong values": b'{"model": "bytes", "messages": [' + b"1," * 10**6 + b"1]}",
}


@pytest.fixture(scope="module")
def tenant(tmp_path_factory):
    """A client, with its key, of a server of many."""
    settings = settings_for(tmp_path_factory.mktemp("limits"))
    secret = keys.create(open_database(settings), "tenant")[1]
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    with serving(settings, ByteEngine()) as client, httpx.Client(base_url=str(client.base_url), timeout=120) as http:
        http.headers = headers
        yield http


@pytest.mark.parametrize(
    ("path", "body"), [*((path, "nested") for path in PATHS), *((PATHS[0], body) for body in LARGE if body != "nested")]
)
def test_a_large_body_is_refused(tenant, path, body):
    answer = tenant.post(path, content=LARGE[body])
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_refusal_by_size_waits_so_that_repeating_it_is_slow(tenant):
    started = time.monotonic()
    for _ in range(3):
        assert tenant.post("chat/completions", content=LARGE["nested"]).status_code == 413
    assert time.monotonic() - started >= 3 * REFUSAL_DELAY


def test_one_of_unknown_length_is_refused_as_it_arrives(tenant):
    answer = tenant.post("chat/completions", content=(b"x" * MIB for _ in range(100)))
    assert answer.status_code == 413 and int(answer.headers["openai-processing-ms"]) < 10_000


def test_a_form_is_no_way_around_it(tenant):
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert tenant.post("chat/completions", content=b"x" * (5 * MIB), headers=form).status_code == 413


def test_a_file_may_be_larger(tenant):
    content = b'{"prompt": "%s"}\n' % (b"a, " * 20_000) * 100
    files = {"file": ("rows.jsonl", content), "purpose": (None, "fine-tune")}
    with httpx.Client(base_url=tenant.base_url, headers={"authorization": tenant.headers["authorization"]}) as http:
        assert len(content) > 5 * MIB and http.post("files", files=files, timeout=60).status_code == 200


def longest_wait(client, busy):
    """The longest that a neighbour's request took, in seconds, while ``busy()`` ran."""
    waits = [0.0]
    ended = threading.Event()

    def neighbour():
        while not ended.is_set():
            started = time.monotonic()
            assert client.get("health").status_code == 200
            waits.append(time.monotonic() - started)

    thread = threading.Thread(target=neighbour)
    thread.start()
    busy()
    ended.set()
    thread.join()
    return max(waits)


@pytest.mark.parametrize("value", ["{}", "1", '{"role": "user", "content": 1, "x": 2}'])
def test_the_worst_that_is_let_in_takes_little_time(tenant, value):
    count = 49_000 // (value.count(",") + value.count("{") + 1)
    body = f'{{"model": "bytes", "messages": [{",".join([value] * count)}]}}'
    started = time.monotonic()
    assert tenant.post("chat/completions", content=body).status_code == 400
    assert time.monotonic() - started < 20  # a body of 22 MiB took 8.6 s on an idle machine


def letters(count):
    return "".join(random.Random(count).choices("abcdefghij ", k=count))


def similarity(metric, text, reference):
    grader = {"type": "text_similarity", "name": "s", "evaluation_metric": metric, "reference": "{{ item.reference }}"}
    grader["input"] = "{{ sample.output_text }}"
    return {"grader": grader, "model_sample": text, "item": {"reference": reference}}


@pytest.mark.parametrize("sizes", [(400_000, 400_000), (10, 400_000), (400_000, 10)])
@pytest.mark.parametrize("metric", METRICS)
def test_a_text_that_is_too_long_to_grade_is_refused(tenant, metric, sizes):
    text, reference = map(letters, sizes)
    answer = tenant.post("fine_tuning/alpha/graders/run", json=similarity(metric, text, reference))
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "text_too_long"
    assert "limit of 100000 bytes" in error["message"]


@pytest.mark.slow(15)
@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_are_served_while_long_texts_are_compared(tenant, metric):
    texts = " ".join(letters(50_000)), " ".join(reversed(letters(50_000)))
    text, reference = (text[:99_999] for text in texts)

    def attack():
        body = similarity(metric, text, reference)
        with ThreadPoolExecutor(6) as threads:
            answers = list(threads.map(lambda _: tenant.post("fine_tuning/alpha/graders/run", json=body), range(6)))
        assert all(answer.status_code == 200 and answer.json()["iro"]["error"] is None for answer in answers)

    assert longest_wait(tenant, attack) < 15


def test_a_schema_of_many_references_is_checked_quickly(tenant):
    schema = {"name": "s", "schema": {"allOf": [{"$ref": "#"}] * 200}}
    method = {"grader": GRADER, "response_format": {"type": "json_schema", "json_schema": schema}}
    body = {"model": "bytes", "training_file": "file-0", "method": {"type": "reinforcement", "reinforcement": method}}
    started = time.monotonic()
    error = tenant.post("fine_tuning/jobs", json=body).json()["error"]
    assert error["code"] == "file_not_found"  # which is looked for last
    assert time.monotonic() - started < 20  # it took 21 s on an idle machine where each reference was followed
    method["response_format"] = {"type": "yaml"}
    error = tenant.post("fine_tuning/jobs", json=body).json()["error"]
    assert (error["param"], error["code"]) == ("method.reinforcement.response_format", "invalid_value")


def in_place_of_a_check(ending):
    """A function that ends as ``ending`` says, by itself: its worker process need not import this module."""
    return {
        "out of memory": lambda *_: os.kill(os.getpid(), signal.SIGKILL),  # as the kernel does
        "never": lambda *_: sum(number for number in iter(int, 1)),
    }[ending]


@pytest.mark.parametrize(
    ("ending", "message"),
    [("out of memory", "ran out of memory"), pytest.param("never", "took more than 3 s", marks=pytest.mark.slow(20))],
)
def test_a_comparison_that_takes_too_much_is_a_grading_error(tenant, monkeypatch, ending, message):
    monkeypatch.setattr(text_similarity, "_similarity", in_place_of_a_check(ending))
    answer = tenant.post("fine_tuning/alpha/graders/run", json=similarity("fuzzy_match", letters(5000), letters(5000)))
    assert answer.status_code == 200
    assert message in answer.json()["iro"]["error"]
    assert answer.json()["metadata"]["errors"]["other_error"] is True


def test_a_schema_whose_check_runs_out_of_memory_is_refused(tenant, monkeypatch):
    monkeypatch.setattr(json_schema, "_check_schema", in_place_of_a_check("out of memory"))
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    method = {"grader": GRADER, "response_format": form}
    body = {"model": "bytes", "training_file": "file-0", "method": {"type": "reinforcement", "reinforcement": method}}
    answer = tenant.post("fine_tuning/jobs", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_value")
    assert "ran out of memory" in error["message"]
    assert error["param"] == "method.reinforcement.response_format"


def doubling(depth):
    """A schema of ``depth`` references whose check keeps 2^depth errors, each with the text of the value."""
    either = {str(i): {"anyOf": [{"$ref": f"#/$defs/{i - 1}"}] * 2} for i in range(1, depth + 1)}
    return {
        "type": "object",
        "$defs": {"0": {"type": "integer"}} | either,
        "properties": {"q": {"$ref": f"#/$defs/{depth}"}},
    }


@pytest.mark.slow(11)
def test_an_item_whose_check_takes_all_memory_is_refused_and_the_server_goes_on(tenant):
    config = {"type": "custom", "item_schema": doubling(14)}
    made = tenant.post("evals", json={"data_source_config": config, "testing_criteria": [GRADER]})
    assert made.status_code == 200, made.text
    item = {"q": "x" * 90_000 + "\U0001f600"}  # for which Python's text takes four bytes a character
    source = {"type": "file_content", "content": [{"item": item, "sample": {"output_text": "z"}}]}
    body = {"data_source": {"type": "jsonl", "source": source}}
    started = time.monotonic()
    answer = tenant.post(f"evals/{made.json()['id']}/runs", json=body)
    assert answer.status_code == 400, answer.text
    assert "took more than 1024 MiB of memory" in answer.json()["error"]["message"]
    assert time.monotonic() - started < 60
    grading = tenant.post("fine_tuning/alpha/graders/run", json=similarity("rouge_l", letters(5000), letters(5000)))
    assert grading.json()["reward"] == 1 and grading.json()["iro"]["error"] is None
