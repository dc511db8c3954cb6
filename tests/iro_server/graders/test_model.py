"""score_model and label_model, against real servers: Iro's own, which says a script, and small ones that misbehave."""

import json
import math
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from iro_server.graders.base import GraderError, Sample
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.parsing import parse_grader
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import serving, settings_for

SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "bytes",
    "input": [{"role": "user", "content": "How good is {{ sample.output_text }} for {{ item.q }}?"}],
    "sampling_params": {"temperature": 0},
}
LABEL = {**SCORE, "type": "label_model", "labels": ["good", "bad"], "passing_labels": ["good"]}
PAIR = (Sample("it"), {"q": "x"})
OTHER = (Sample("another"), {"q": "x"})


@contextmanager
def says(folder, script):
    """A served model that says ``script``: the grader_environment that name it as theirs."""
    with serving(settings_for(folder), ByteEngine(script)) as client:
        yield GraderEnvironment(base_url=str(client.base_url).rstrip("/"))


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # more than a grader connects at once: what overflows is sent again after seconds


@contextmanager
def endpoint(*answers):
    """A server of chat completions that gives ``answers``, (status, body, headers), in turn, the last ever again.

    Its base URL, and the (headers, body) of what it was asked.
    """
    asked, turn = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            with turn:
                status, answer, headers = answers[min(len(asked), len(answers) - 1)]
                asked.append((self.path, self.headers, json.loads(body)))
            raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {"content-length": str(len(raw)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def said(content, tokens=7, **message):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **message}}
    return 200, {"object": "chat.completion", "choices": [choice], "usage": {"total_tokens": tokens}}, {}


def graded(spec, url, pairs=(PAIR,), key=""):
    with parse_grader({**spec, "base_url": url}, GraderEnvironment(endpoints={url: key})) as grader:
        return grader.grade_many(pairs)


@pytest.mark.parametrize(
    ("script", "reward"), [("0.7", 0.7), ('Well. {"result": 0.25}', 0.25), ("7", 1.0), ("-2", 0.0)]
)
def test_a_served_model_scores_within_the_range(tmp_path, script, reward):
    with says(tmp_path, script) as here, parse_grader(SCORE, here) as grader:
        grades = grader.grade_many([PAIR] * 20)
    assert [grade.reward for grade in grades] == [reward] * 20
    assert all(grade.tokens["bytes"] > len(script) for grade in grades)


def test_a_served_model_labels(tmp_path):
    with says(tmp_path, "Good, I think") as here:
        with parse_grader(LABEL, here) as grader:
            assert grader.grade(*PAIR).reward == 1
        with parse_grader({**LABEL, "passing_labels": ["bad"]}, here) as grader:
            assert grader.grade(*PAIR).reward == 0


def test_a_model_of_this_server_and_one_elsewhere_combine(tmp_path):
    with says(tmp_path / "here", "0.5") as here, says(tmp_path / "there", "0.25") as there:
        elsewhere = {**SCORE, "base_url": there.base_url}
        spec = {"type": "multi", "graders": {"a": SCORE, "b": elsewhere}, "calculate_output": "a - b"}
        grader_environment = here.model_copy(update={"endpoints": {there.base_url: ""}})
        with parse_grader(spec, grader_environment) as grader:
            grade = grader.grade(*PAIR)
    assert grade.reward == 0.25 and grade.sub_rewards == {"a": 0.5, "b": 0.25}
    assert grade.tokens["bytes"] > 2 * len("0.5")


def test_what_a_model_says_that_is_no_number_or_label_is_a_parse_error(tmp_path):
    with says(tmp_path, "no idea") as here:
        for spec in (SCORE, LABEL):
            with parse_grader(spec, here) as grader:
                grade = grader.grade(*PAIR)
            assert math.isnan(grade.reward) and grade.flag == "model_grader_parse_error"
            assert "no idea" in grade.error and grade.tokens


def test_a_model_that_is_not_served_is_a_server_error_that_says_so(tmp_path):
    with says(tmp_path, "1") as here, parse_grader({**SCORE, "model": "gpt-9"}, here) as grader:
        grade = grader.grade(*PAIR)
    assert grade.flag == "model_grader_server_error" and "'gpt-9' does not exist" in grade.error


def test_a_missing_field_fails_its_pair_alone(tmp_path):
    with says(tmp_path, "0.5") as here, parse_grader(SCORE, here) as grader:
        grades = grader.grade_many([PAIR, (Sample("it"), {}), PAIR])
    assert [grade.reward == 0.5 for grade in grades] == [True, False, True]
    assert grades[1].flag == "invalid_variable_error"


def test_an_endpoint_is_asked_as_openai_would_be():
    content = [{"type": "input_text", "text": "Rate {{ item.q }}"}, " from 1 to 5"]
    spec = {
        **SCORE,
        "range": [1, 5],
        "input": [{"role": "developer", "content": "Be strict."}, {"role": "user", "content": content}],
        "sampling_params": {"max_completions_tokens": 9, "top_p": 0.5, "seed": 3, "reasoning_effort": "low"},
    }
    with endpoint(said('{"result": 4, "steps": []}')) as (url, asked):
        (grade,) = graded(spec, url, [(Sample("it"), {"q": "caf\ud800"})], key="secret")
    path, headers, body = asked[0]
    assert grade.reward == 4 and grade.tokens == {"bytes": 7}
    assert path == "/v1/chat/completions" and headers["authorization"] == "Bearer secret"
    assert "openai-project" not in headers
    system, user = body.pop("messages")
    assert system == {"role": "developer", "content": "Be strict."}
    assert user["content"].startswith("Rate caf? from 1 to 5\n\n") and "from 1 to 5." in user["content"]
    assert body == {"model": "bytes", "max_completion_tokens": 9, "top_p": 0.5, "seed": 3, "reasoning_effort": "low"}


def test_the_own_server_is_told_the_project_and_no_reasoning_effort():
    spec = {**SCORE, "input": [{"role": "developer", "content": "x"}], "sampling_params": {"reasoning_effort": "low"}}
    with endpoint(said("1")) as (url, asked):
        grader = parse_grader(spec, GraderEnvironment(base_url=url, api_key="inner", project="p7"))
        assert grader.served_models() == {"model": "bytes"}
        assert grader.grade(*PAIR).reward == 1
        grader.close()
    _, headers, body = asked[0]
    assert headers["openai-project"] == "p7" and headers["authorization"] == "Bearer inner"
    assert [message["role"] for message in body["messages"]] == ["developer", "user"]
    assert "reasoning_effort" not in body


def test_a_busy_server_is_asked_again_when_it_says():
    busy = {"error": {"message": "slow down"}}
    with endpoint((429, busy, {"Retry-After": "1"}), (503, busy, {}), said("0.5")) as (url, asked):
        started = time.monotonic()
        (grade,) = graded(SCORE, url)
    assert grade.reward == 0.5 and len(asked) == 3
    assert time.monotonic() - started >= 1


def test_a_server_that_stays_busy_is_a_server_error(monkeypatch):
    monkeypatch.setattr("iro_server.graders.posting.ATTEMPTS", 3)
    with endpoint((500, {"error": {"message": "broken inside"}}, {"Retry-After": "0"})) as (url, asked):
        (grade,) = graded(SCORE, url)
    assert grade.flag == "model_grader_server_error" and "answered 500: broken inside" in grade.error
    assert len(asked) == 3


def test_a_server_that_is_gone_is_a_server_error(monkeypatch):
    monkeypatch.setattr("iro_server.graders.posting.ATTEMPTS", 1)
    with endpoint(said("1")) as (url, _):
        pass
    (grade,) = graded(SCORE, url)
    assert grade.flag == "model_grader_server_error" and "ConnectError" in grade.error


@pytest.mark.parametrize(
    ("answer", "flag", "message"),
    [
        ((401, {"error": {"message": "no such key"}}, {}), "model_grader_server_error", "answered 401: no such key"),
        ((200, b"<html>", {}), "model_grader_server_error", "no chat completion"),
        ((200, {"choices": []}, {}), "model_grader_server_error", "no chat completion"),
        ((200, [], {}), "model_grader_server_error", "no chat completion"),
        (said(None, refusal="I must not"), "model_grader_refusal_error", "I must not"),
        (said(None), "model_grader_parse_error", "0 numbers"),
    ],
)
def test_other_failures_are_not_asked_again(answer, flag, message):
    with endpoint(answer) as (url, asked):
        (grade,) = graded(SCORE, url)
    assert math.isnan(grade.reward) and grade.flag == flag and message in grade.error
    assert len(asked) == 1


def cut(content):
    """An answer that its token limit ended."""
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": content}}
    return 200, {"object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 7}}, {}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (SCORE, '{"steps": [], "result": 0.'),
        (SCORE, '{"result": 9.'),
        (SCORE, '{"steps": [{"result": 3}], "result": 0.'),  # whole inside one that is not
        (SCORE, "Of the 10 points that can be given"),
        (SCORE, "Step 1: the answer names the capital, so"),
        (LABEL, "The first half is good, yet the second half is"),
        (LABEL, "good"),
        ({**SCORE, "ranking": {}, "input": [{"role": "user", "content": "Which?"}]}, '{"ranking": [2'),
    ],
)
def test_an_answer_that_its_token_limit_cut_is_no_reward(spec, text):
    with endpoint(cut(text)) as (url, _):
        grades = graded({**spec, **({"range": [0, 10]} if spec["type"] == "score_model" else {})}, url, [PAIR, OTHER])
    for grade in grades:
        assert math.isnan(grade.reward) and grade.flag == "model_grader_parse_error"
        assert (
            "cut at its token limit (set a larger max_completions_tokens)" in grade.error and text[:20] in grade.error
        )
    assert sum(grade.tokens.get("bytes", 0) for grade in grades) in (7, 14)


@pytest.mark.parametrize("rest", ["", " I hope that", '\n{"result": 1'])
def test_a_whole_result_of_an_answer_that_was_cut_counts(rest):
    with endpoint(cut(f'Well. {{"result": 0.7}}{rest}')) as (url, _):
        assert graded(SCORE, url)[0].reward == 0.7
    with endpoint(cut(f'{{"result": "good"}}{rest}')) as (url, _):
        assert graded(LABEL, url)[0].reward == 1


def test_redirects_are_not_followed():
    with endpoint(said("1")) as (inside, reached), endpoint((307, {}, {"Location": f"{inside}/x"})) as (url, _):
        (grade,) = graded(SCORE, url)
    assert grade.flag == "model_grader_server_error" and "answered 307" in grade.error
    assert reached == []


def test_once_closed_it_asks_no_further():
    with endpoint((503, {}, {"Retry-After": "20"})) as (url, asked):
        grader = parse_grader({**SCORE, "base_url": url}, GraderEnvironment(any_endpoint=True))
        grades = []
        grading = threading.Thread(target=lambda: grades.extend(grader.grade_many([PAIR] * 40)))
        grading.start()
        while not asked:
            time.sleep(0.01)
        grader.close()
        grading.join(5)
        assert len(grades) == 40 and all("the grader is closed" in grade.error for grade in grades)
        assert "the grader is closed" in grader.grade(*PAIR).error


IMAGE = {"type": "input_image", "image_url": "http://x/y.png"}


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"base_url": "http://169.254.169.254/v1"}, "base_url", "not among the endpoints this server allows"),
        ({"base_url": "http://allowed/v1/other"}, "base_url", "not among the endpoints this server allows"),
        ({"base_url": "file:///etc/passwd"}, "base_url", "URL scheme"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", "'user'"),
        ({"input": [{"role": "user", "content": "{{ x }}"}]}, "input.0.content.0", "{{ x }} is not a path"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input.0.content", "'input_image' is not supported"),
        ({"input": [{"role": "user", "content": {"type": "input_audio"}}]}, "input.0.content", "not supported"),
        ({"range": [1, 1]}, "range", "below"),
        ({"range": [0, float("inf")]}, "range.1", "finite"),
        ({"range": [0]}, "range.1", "required"),
        ({"sampling_params": {"temperature": 3}}, "sampling_params.temperature", "less than or equal to 2"),
        (
            {"type": "label_model", "labels": ["a"], "passing_labels": ["b"]},
            "passing_labels",
            "b: not among the labels",
        ),
        ({"type": "label_model", "labels": ["a", "A"], "passing_labels": ["a"]}, "labels", "differ in more than case"),
        ({"type": "label_model", "labels": [], "passing_labels": []}, "labels", "at least 1"),
    ],
)
def test_a_wrong_spec_names_the_field_and_the_mistake(change, param, message):
    here = GraderEnvironment(base_url="http://127.0.0.1:1/v1", endpoints={"http://allowed/v1": "k"})
    with pytest.raises(GraderError) as refused:
        parse_grader({**SCORE, **change}, here)
    assert refused.value.param == f"grader.{param}" and message in refused.value.message


def test_without_a_server_a_grader_must_name_one():
    with pytest.raises(GraderError, match="give its base_url") as refused:
        parse_grader(SCORE, GraderEnvironment())
    assert refused.value.param == "grader.model"
    parse_grader({**SCORE, "base_url": "http://anywhere/v1/"}, GraderEnvironment(any_endpoint=True))
    parse_grader({**SCORE, "base_url": "http://allowed/v1/"}, GraderEnvironment(endpoints={"HTTP://allowed/v1": ""}))


def test_pass_threshold_is_accepted():
    parse_grader({**SCORE, "pass_threshold": 0.5}, GraderEnvironment(base_url="http://127.0.0.1:1/v1"))
