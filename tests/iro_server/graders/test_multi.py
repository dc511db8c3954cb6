import math

import pytest

from iro_server.graders.base import GraderError, Sample
from iro_server.graders.parsing import parse_grader

HAS_X = {
    "type": "string_check",
    "name": "has_x",
    "operation": "like",
    "input": "{{ sample.output_text }}",
    "reference": "x",
}
CLOSE = {
    "type": "text_similarity",
    "name": "close",
    "evaluation_metric": "fuzzy_match",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.ref }}",
}


def multi(formula, graders):
    return parse_grader({"type": "multi", "name": "m", "graders": graders, "calculate_output": formula})


@pytest.mark.parametrize("graders", [{"has_x": HAS_X, "close": {**CLOSE, "name": "other"}}, [HAS_X, CLOSE]])
def test_it_combines_by_its_formula_and_reports_the_parts(graders):
    grade = multi("0.5 * has_x + close ^ 2", graders).grade(Sample("xy"), {"ref": "xz"})
    assert grade.reward == 0.5 + 0.5**2
    assert grade.sub_rewards == {"has_x": 1.0, "close": 0.5}


def test_one_grader_alone_goes_by_its_name():
    grade = multi("1 - has_x", HAS_X).grade(Sample("y"), {})
    assert grade.reward == 1 and grade.sub_rewards == {"has_x": 0.0}


def test_names_that_a_formula_cannot_tell_apart_are_refused():
    composed, decomposed = "\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"
    with pytest.raises(GraderError, match="two graders have the name"):
        multi(composed, {composed: HAS_X, decomposed: HAS_X})
    grade = multi(composed, {decomposed: HAS_X}).grade(Sample("x"), {})
    assert grade.reward == 1 and grade.sub_rewards == {decomposed: 1.0}


def test_a_grader_named_type_is_no_grader_alone():
    assert multi("type", {"type": HAS_X}).grade(Sample("x"), {}).reward == 1


def test_it_fails_where_a_part_or_the_formula_fails_and_only_there():
    with multi("1 / close", [HAS_X, CLOSE]) as grader:
        broken, undefined, fine = grader.grade_many(
            [(Sample("x"), {}), (Sample("x"), {"ref": "y"}), (Sample("x"), {"ref": "x"})]
        )
    assert math.isnan(broken.reward) and "close: item has no field 'ref'" in broken.error
    assert broken.flag == "invalid_variable_error" and broken.sub_rewards["has_x"] == 1
    assert math.isnan(undefined.reward) and "calculate_output" in undefined.error
    assert undefined.flag == "formula_parse_error"
    assert fine.reward == 1 and fine.error is None


def test_a_reward_that_is_no_number_is_unresponsive():
    grade = multi("1e308 * 10 * has_x", HAS_X).grade(Sample("x"), {})
    assert math.isnan(grade.reward) and grade.flag == "unresponsive_reward_error"
