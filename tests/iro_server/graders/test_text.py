import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iro_server.graders import Sample, parse_grader
from iro_server.graders.text import METRICS


def check(operation, text, reference):
    spec = {"type": "string_check", "name": "c", "operation": operation}
    grader = parse_grader({**spec, "input": "{{ sample.output_text }}", "reference": "{{ item.ref }}"})
    return grader.grade(Sample(text), {"ref": reference}).reward


def similarity(metric, text, reference):
    spec = {"type": "text_similarity", "name": "s", "evaluation_metric": metric}
    grader = parse_grader({**spec, "input": "{{ sample.output_text }}", "reference": "{{ item.ref }}"})
    return grader.grade(Sample(text), {"ref": reference}).reward


@pytest.mark.parametrize(
    ("operation", "text", "reference", "reward"),
    [
        ("eq", "Paris", "Paris", 1),
        ("eq", "Paris", "paris", 0),
        ("ne", "Paris", "Lyon", 1),
        ("ne", "Paris", "Paris", 0),
        ("like", "It is Paris.", "Paris", 1),
        ("like", "It is Paris.", "paris", 0),
        ("ilike", "It is Paris.", "PARIS", 1),
        ("ilike", "It is Paris.", "Lyon", 0),
    ],
)
def test_string_check(operation, text, reference, reward):
    assert check(operation, text, reference) == reward


@pytest.mark.parametrize("metric", METRICS)
def test_same_text_is_most_similar_and_unrelated_least(metric):
    text = "the quick brown fox jumps over the lazy dog"
    assert similarity(metric, text, text) == pytest.approx(1, abs=0.01)
    assert similarity(metric, "zzzz", text) < 0.1
    half = similarity(metric, "the quick brown fox jumps under a busy cat", text)
    assert similarity(metric, "zzzz", text) < half < similarity(metric, text, text)


@given(st.sampled_from(sorted(METRICS)), st.text(), st.text())
def test_any_two_texts_have_a_similarity_between_0_and_1(metric, text, reference):
    assert 0 <= METRICS[metric](text, reference) <= 1


def test_known_values():
    assert similarity("fuzzy_match", "abcd", "abcx") == pytest.approx(0.75)  # 1 - 2 edits / 8 characters
    assert similarity("rouge_1", "a b c", "a b d e") == pytest.approx(2 * 2 / (3 + 4))
    assert similarity("rouge_2", "a b c", "a b d") == pytest.approx(0.5)
    assert similarity("rouge_l", "a x b", "a b") == pytest.approx(0.8)
    assert similarity("gleu", "a b", "a b c") == pytest.approx(3 / 6)  # 2 words and 1 pair of 6 n-grams
    assert similarity("bleu", "the cat sat on", "the cat sat on the mat") == pytest.approx(math.exp(1 - 6 / 4))


def test_meteor_matches_stems_but_not_synonyms():
    assert similarity("meteor", "cats running", "cat runs") > 0.9
    assert similarity("meteor", "film", "movie") == 0


def test_a_missing_field_is_a_grade_with_an_error_that_names_it():
    grader = parse_grader({"type": "string_check", "operation": "eq", "input": "{{ item.label }}", "reference": "x"})
    grades = grader.grade_many([(Sample(""), {}), (Sample(""), {"label": "x"})])
    assert math.isnan(grades[0].reward)
    assert "item has no field 'label'" in grades[0].error
    assert grades[1].reward == 1 and grades[1].error is None


@pytest.mark.parametrize(
    ("text", "given_json", "reward"),
    [('{"x": "yes"}', None, 1), ("not json", {"x": "yes"}, 1), ('{"x": "no"}', None, 0)],
)
def test_output_json_is_given_or_parsed_from_the_text(text, given_json, reward):
    spec = {"type": "string_check", "operation": "eq", "input": "{{ sample.output_json.x }}", "reference": "yes"}
    assert parse_grader(spec).grade(Sample(text, given_json), {}).reward == reward
