import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iro_server.graders.base import GraderError
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.parsing import parse_grader

CHECK = {
    "type": "string_check",
    "name": "c",
    "operation": "like",
    "input": "{{ sample.output_text }}",
    "reference": "x",
}
LENGTH = {
    "type": "python",
    "name": "n",
    "source": "def grade(sample, item): return len(sample['output_text']) / item['m']",
}


def multi(formula, **graders):
    return {"type": "multi", "name": "m", "graders": graders, "calculate_output": formula}


@pytest.mark.parametrize(
    ("spec", "param", "said"),
    [
        ({}, "grader.type", "type"),
        (
            {"type": "vibes"},
            "grader.type",
            "'string_check', 'text_similarity', 'python', 'score_model', 'label_model', 'multi'",
        ),
        ("grade", "grader", "dictionary"),
        ({**CHECK, "operation": "equals"}, "grader.operation", "'eq', 'ne', 'like' or 'ilike'"),
        ({k: v for k, v in CHECK.items() if k != "input"}, "grader.input", "required"),
        ({**CHECK, "reference": "{{ label }}"}, "grader.reference", "{{ label }} is not a path"),
        ({**CHECK, "refrence": 1}, "grader.refrence", "no such field; did you mean reference?"),
        ({"type": "string_check", "refrence": 1}, "grader.refrence", "no such field; did you mean reference?"),
        ({**CHECK, "q": 1}, "grader.q", "no such field, only type, name, input, reference, operation"),
        (multi("a", a={**CHECK, "op": "eq"}), "grader.graders.a.op", "no such field, only"),
        (
            {"type": "score_model", "model": "m", "sampling_params": {"max_completion_tokens": 3}},
            "grader.sampling_params.max_completion_tokens",
            "did you mean max_completions_tokens?",
        ),
        ({"type": "python", "source": "def grade(:"}, "grader.source", "line 1"),
        ({"type": "python", "source": "x = 1"}, "grader.source", "defines no function grade"),
        ({"type": "python", "source": "async def grade(s, i): ..."}, "grader.source", "grade is async; define it"),
        ({"type": "python", "source": "def grade(item): ..."}, "grader.source", "line 1: grade is called with two"),
        ({"type": "python", "source": "def grade(s, i, x): ..."}, "grader.source", "line 1: grade is called with two"),
        ({"type": "python", "source": "def grade(s, i, *, x): ..."}, "grader.source", "called with two arguments"),
        ({"type": "python", "source": "a = " + "(" * 10_000}, "grader.source", ""),
        (multi("a", a={**CHECK, "operation": "?"}), "grader.graders.a.operation", "eq"),
        ({**multi("a"), "graders": [{**CHECK, "operation": "?"}]}, "grader.graders.0.operation", "eq"),
        ({**multi("a"), "graders": [{**CHECK, "name": "a.b", "operation": "?"}]}, "grader.graders.0.operation", "eq"),
        ({**multi("a"), "graders": {**CHECK, "operation": "?"}}, "grader.graders.operation", "eq"),
        (multi("a", a=multi("b", b=CHECK)), "grader.graders", "a: a multi grader cannot hold another"),
        (multi("a", a={**CHECK, "type": "vibes"}), "grader.graders.a.type", "'score_model'"),
        (multi("a + b", a=CHECK), "grader.calculate_output", "'b' is not one of the graders a"),
        (multi("a", **{"not a name": CHECK}), "grader.graders", "'not a name'"),
        (multi("a", **{"lambda": CHECK}), "grader.graders", "'lambda'"),
        ({**multi("c"), "graders": [CHECK, CHECK]}, "grader.graders", "two graders have the name 'c'"),
        ({**multi("c"), "graders": [{**CHECK, "name": None}]}, "grader.graders", "needs a name"),
        ({**multi("c"), "graders": [[CHECK]]}, "grader.graders", "needs a name"),
        ({**multi("c"), "graders": {**CHECK, "name": "not a name"}}, "grader.graders", "'not a name'"),
        (multi("1"), "grader.graders", "at least 1"),
    ],
)
def test_a_wrong_spec_names_the_field_and_the_mistake(spec, param, said):
    with pytest.raises(GraderError) as refused:
        parse_grader(spec)
    assert refused.value.param == param
    assert said in refused.value.message and param in refused.value.message


@pytest.mark.parametrize(
    "source",
    [
        "def grade(*_): return 1",
        "def grade(sample, /, item, *, scale=2): return 1",
        "def grade(sample, item, scale=2): return 1",
        "def wrap(f): return lambda s, i: f(s)\n@wrap\ndef grade(sample): return 1",
        "def grade(sample): return 1\nfirst = grade\ndef grade(sample, item): return first(sample)",
        "class A:\n def grade(self, a, b, c): return 1\ngrade = A().grade",
    ],
)
def test_a_grader_that_can_be_called_with_two_arguments_is_accepted(source):
    parse_grader({"type": "python", "name": "n", "source": source}).close()


def test_the_official_clients_types_are_accepted():
    from openai.types.graders import (
        LabelModelGrader,
        PythonGrader,
        ScoreModelGrader,
        StringCheckGrader,
        TextSimilarityGrader,
    )

    check = StringCheckGrader(**CHECK)
    similar = TextSimilarityGrader(type="text_similarity", name="t", evaluation_metric="bleu", input="a", reference="b")
    asked = {"name": "m", "model": "judge", "input": [{"role": "user", "content": "{{ sample.output_text }}?"}]}
    score = ScoreModelGrader(type="score_model", range=[1, 5], sampling_params={"temperature": 0, "seed": 1}, **asked)
    label = LabelModelGrader(type="label_model", labels=["a", "b"], passing_labels=["a"], **asked)
    here = GraderEnvironment(base_url="http://127.0.0.1:1/v1")
    for example in (check, similar, score, label, PythonGrader(**LENGTH)):
        assert parse_grader(example.to_dict(), here).name == example.name


def test_what_openais_guide_shows_is_accepted():
    parse_grader(
        {
            "type": "multi",
            "graders": {
                "name": {
                    "name": "name_grader",
                    "type": "text_similarity",
                    "input": "{{sample.output_json.name}}",
                    "reference": "{{item.name}}",
                    "evaluation_metric": "fuzzy_match",
                    "pass_threshold": 0.9,
                },
                "function": {
                    "name": "function_name",
                    "type": "string_check",
                    "input": "get_acceptors",
                    "reference": "{{sample.output_tools[0].function.name}}",
                    "operation": "eq",
                },
            },
            "calculate_output": "(name + function) / 2",
        }
    )


FIELDS = (
    "type name input reference operation evaluation_metric model range labels passing_labels graders calculate_output"
    " source role content text base_url sampling_params eq cosine user input_text a string_check text_similarity python"
    " score_model label_model multi http://x/"
)
VALUES = ["def grade(sample, item): return 1", "{{ item.a }}", "{{ a }}", "a + 1", "\ud800"]
words = st.sampled_from([*FIELDS.split(), *VALUES])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | words
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=6), max_leaves=12
)
whole = st.sampled_from(
    [
        CHECK,
        LENGTH,
        {"type": "text_similarity", "evaluation_metric": "bleu", "input": "a", "reference": "{{ item.b }}"},
        {"type": "score_model", "model": "m", "input": [{"role": "user", "content": [{"type": "input_text"}, "x"]}]},
        {"type": "label_model", "model": "m", "input": [], "labels": ["a", "b"], "passing_labels": ["a"]},
        multi("c + 1", c=CHECK),
    ]
)
changed = st.builds(lambda spec, change: {**spec, **change}, whole, st.dictionaries(words, json_values, max_size=3))


@given(json_values | changed, st.booleans())
def test_any_json_is_a_grader_or_refused(spec, anywhere):
    grader_environment = GraderEnvironment(
        base_url="http://127.0.0.1:1/v1" if anywhere else None, any_endpoint=anywhere
    )
    with contextlib.suppress(GraderError):
        parse_grader(spec, grader_environment).close()


def test_a_deeply_nested_spec_is_refused():
    nested = "a"
    for _ in range(900):
        nested = [nested]
    for field in ("input", "type", "reference"):
        with pytest.raises(GraderError):
            parse_grader({**CHECK, field: nested})
