import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iro_server.store import keys
from iro_server.store.database import open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import conforms, serving, settings_for

CHECK = {
    "type": "string_check",
    "name": "check",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.label }}",
    "operation": "eq",
}
SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "bytes",
    "input": [{"role": "user", "content": "Rate {{ sample.output_text }}"}],
    "sampling_params": {"temperature": 0},
}


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """The client of a server whose model answers 0.7."""
    with serving(settings_for(tmp_path_factory.mktemp("judge")), ByteEngine("0.7")) as client:
        yield client


def run(client, grader, sample="x", **more):
    return conforms(client.fine_tuning.alpha.graders.run(grader=grader, model_sample=sample, **more))


def raised(answer):
    """The errors that the response flags."""
    return [name for name, value in answer.metadata.errors.to_dict().items() if value is True]


def test_a_grader_grades_one_sample(judge):
    answer = run(judge, CHECK, "yes", item={"label": "yes"})
    assert answer.reward == 1 and raised(answer) == []
    assert (answer.metadata.name, answer.metadata.type) == ("check", "string_check")
    assert answer.metadata.execution_time >= 0 and answer.metadata.token_usage is None
    assert run(judge, CHECK, "no", item={"label": "yes"}).reward == 0


def test_json_samples_and_the_reference_answer_of_older_clients_are_there(judge):
    grader = {**CHECK, "input": "{{ sample.output_json.x }}", "reference": "{{ item.reference_answer }}"}
    assert run(judge, grader, '{"x": "yes"}', extra_body={"reference_answer": "yes"}).reward == 1
    number = {**CHECK, "input": "{{ sample.output_json }}", "reference": "0.9"}
    assert run(judge, number, "0.9").reward == 1


def test_a_model_of_this_server_scores(judge):
    answer = run(judge, SCORE)
    tokens = answer.metadata.token_usage
    assert answer.reward == 0.7 and answer.metadata.sampled_model_name == "bytes"
    assert tokens > 0 and answer.api_model_grader_token_usage_per_model == {"bytes": {"total_tokens": tokens}}


def test_many_can_ask_at_once(judge):
    """More than there are threads for: no grader waits for a thread that waits for it."""
    with httpx.Client(base_url=str(judge.base_url), timeout=60, limits=httpx.Limits(max_connections=60)) as client:
        body = {"grader": SCORE, "model_sample": "x"}
        with ThreadPoolExecutor(60) as threads:
            answers = list(threads.map(lambda _: client.post("fine_tuning/alpha/graders/run", json=body), range(60)))
    assert [answer.json()["reward"] for answer in answers] == [0.7] * 60


def test_a_multi_grader_reports_its_parts_and_all_tokens(judge):
    grader = {
        "type": "multi",
        "name": "both",
        "graders": {"judge": SCORE, "check": CHECK},
        "calculate_output": "judge + check",
    }
    answer = run(judge, grader, "yes", item={"label": "yes"})
    assert answer.reward == 1.7 and answer.sub_rewards == {"judge": 0.7, "check": 1.0}
    assert answer.metadata.token_usage > 0
    failed = run(judge, grader, "yes")
    assert failed.reward == 0 and failed.sub_rewards == {"judge": 0.7, "check": 0.0}
    assert raised(failed) == ["invalid_variable_error"]


@pytest.mark.parametrize(
    ("grader", "flag"),
    [
        (CHECK, "invalid_variable_error"),
        ({**CHECK, "input": "{{ sample.output_json.a }}"}, "sample_parse_error"),
        (
            {"type": "multi", "graders": [{**CHECK, "reference": "y"}], "calculate_output": "1 / check"},
            "formula_parse_error",
        ),
        (
            {"type": "multi", "graders": {**CHECK, "reference": "x"}, "calculate_output": "1e308 * 10 * check"},
            "unresponsive_reward_error",
        ),
        ({**SCORE, "type": "label_model", "labels": ["a"], "passing_labels": ["a"]}, "model_grader_parse_error"),
        ({**SCORE, "sampling_params": {"max_tokens": 100_000}}, "model_grader_server_error"),
    ],
)
def test_a_grader_that_fails_gives_nothing_and_flags_why(judge, grader, flag):
    answer = run(judge, grader)
    assert answer.reward == 0 and raised(answer) == [flag]
    assert answer.iro["error"]
    details = answer.metadata.errors.api_model_grader_server_error_details
    assert bool(details) == (flag == "model_grader_server_error")


def test_a_ranking_has_no_reward_for_one_sample(judge):
    ranking = {**SCORE, "input": [{"role": "user", "content": "Rate them"}], "ranking": {}}
    assert conforms(judge.fine_tuning.alpha.graders.validate(grader=ranking)).grader.to_dict() == ranking
    answer = run(judge, ranking)
    assert answer.reward == 0 and raised(answer) == ["other_error"] and "one alone" in answer.iro["error"]


@pytest.mark.parametrize("grader", [CHECK, SCORE, {**SCORE, "range": [0, 5], "pass_threshold": 1}])
def test_a_valid_grader_comes_back_as_it_was_sent(judge, grader):
    answer = conforms(judge.fine_tuning.alpha.graders.validate(grader=grader))
    assert answer.grader.to_dict() == grader


@pytest.mark.parametrize(
    ("grader", "param", "said"),
    [
        ({}, "grader.type", "type"),
        ({**CHECK, "operation": "is"}, "grader.operation", "'eq'"),
        ({**CHECK, "input": "{{ x }}"}, "grader.input", "not a path"),
        ({**SCORE, "model": "gpt-9"}, "grader.model", "'gpt-9' does not exist"),
        (
            {"type": "multi", "graders": {"a": {**SCORE, "model": "gpt-9"}}, "calculate_output": "a"},
            "grader.graders.a.model",
            "does not exist",
        ),
        (
            {"type": "multi", "graders": [{**SCORE, "name": "a", "model": "gpt-9"}], "calculate_output": "a"},
            "grader.graders.0.model",
            "does not exist",
        ),
    ],
)
def test_a_wrong_grader_is_refused_by_both_routes(judge, grader, param, said):
    for call in (
        lambda: judge.fine_tuning.alpha.graders.validate(grader=grader),
        lambda: run(judge, grader),
    ):
        with pytest.raises(openai.BadRequestError, match=said) as refused:
            call()
        assert refused.value.param == param


def test_a_grader_that_reads_no_answer_is_no_grader_of_a_job(judge):
    blind = CHECK | {"name": "blind", "input": "{{ item.a }}", "reference": "{{ item.b }}"}
    deaf = SCORE | {"name": "deaf", "input": [{"role": "user", "content": "Rate {{ item.a }}"}]}
    both = {"type": "multi", "graders": {"blind": blind, "deaf": deaf}, "calculate_output": "blind + deaf"}
    validate = judge.fine_tuning.alpha.graders.validate
    for grader in (blind, deaf, both):
        with pytest.raises(openai.BadRequestError, match=r"put \{\{ sample\.output_text \}\}") as refused:
            validate(grader=grader)
        assert (refused.value.param, refused.value.code) == ("grader", "invalid_grader")
    validate(grader=both | {"graders": {"blind": blind, "deaf": SCORE}})


def test_a_server_for_many_lets_a_grader_ask_only_the_endpoints_it_names(tmp_path):
    settings = settings_for(tmp_path, require_keys=True, grader_endpoints={"http://127.0.0.1:9/v1": ""})
    _, secret = keys.create(open_database(settings), "mine")
    with serving(settings, ByteEngine("0.7")) as client:
        mine = client.copy(api_key=secret).fine_tuning.alpha.graders
        mine.validate(grader={**SCORE, "base_url": "http://127.0.0.1:9/v1"})
        with pytest.raises(openai.BadRequestError, match="IRO_GRADER_ENDPOINTS") as refused:
            mine.validate(grader={**SCORE, "base_url": "http://169.254.169.254/v1"})
        assert refused.value.param == "grader.base_url"
        assert mine.run(grader=SCORE, model_sample="x").reward == 0.7


@pytest.mark.parametrize("body", [{}, {"grader": CHECK}, {"grader": "x", "model_sample": "x"}, []])
def test_a_wrong_body_is_refused(judge, body):
    answer = httpx.post(f"{judge.base_url}fine_tuning/alpha/graders/run", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
texts = st.text(st.characters(), max_size=8)


@given(
    st.dictionaries(st.sampled_from(["name", "input", "reference", "operation", "\ud800"]), values | texts),
    texts,
    values,
)
def test_nothing_that_json_can_say_breaks_the_server(judge, change, sample, item):
    grader = {**CHECK, **change}
    for route, body in {
        "run": {"grader": grader, "model_sample": sample, "item": item},
        "validate": {"grader": grader},
    }.items():
        answer = httpx.post(
            f"{judge.base_url}fine_tuning/alpha/graders/{route}",
            content=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        assert answer.status_code in (200, 400), answer.text
        json.loads(answer.content, parse_constant=lambda name: pytest.fail(name))


def test_half_a_surrogate_pair_comes_back_as_it_was_sent(judge):
    content = json.dumps({"grader": {**CHECK, "reference": "\ud800"}}).encode()
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{judge.base_url}fine_tuning/alpha/graders/validate", content=content, headers=headers)
    assert answer.status_code == 200 and json.loads(answer.content)["grader"]["reference"] == "\ud800"
