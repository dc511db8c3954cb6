import math

import pytest

from iro_server.graders import GraderError, Sample, parse_grader

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
        ({"type": "vibes"}, "grader.type", "'string_check', 'text_similarity', 'python', 'multi'"),
        ("grade", "grader", "dictionary"),
        ({**CHECK, "operation": "equals"}, "grader.operation", "'eq', 'ne', 'like' or 'ilike'"),
        ({k: v for k, v in CHECK.items() if k != "input"}, "grader.input", "required"),
        ({**CHECK, "reference": "{{ label }}"}, "grader.reference", "{{ label }} is not a path"),
        ({**CHECK, "extra": 1}, "grader.extra", "not permitted"),
        (
            {"type": "text_similarity", "evaluation_metric": "cosine", "input": "a", "reference": "b"},
            "grader.evaluation_metric",
            "fuzzy_match",
        ),
        ({"type": "python", "source": "def grade(:"}, "grader.source", "line 1"),
        ({"type": "python", "source": "x = 1"}, "grader.source", "defines no function grade"),
        ({"type": "python", "source": "a = " + "(" * 10_000}, "grader.source", ""),
        (multi("a", a={**CHECK, "operation": "?"}), "grader.graders.a.operation", "eq"),
        (multi("a", a=multi("b", b=CHECK)), "grader.graders.a.type", "'python'"),
        (multi("a + b", a=CHECK), "grader.calculate_output", "'b' is not one of the graders a"),
        (multi("a", **{"not a name": CHECK}), "grader.graders", "'not a name'"),
        (multi("1"), "grader.graders", "at least 1"),
    ],
)
def test_a_wrong_spec_names_the_field_and_the_mistake(spec, param, said):
    with pytest.raises(GraderError) as refused:
        parse_grader(spec)
    assert refused.value.param == param
    assert said in refused.value.message and param in refused.value.message


def test_multi_combines_by_its_formula_and_reports_the_parts():
    with parse_grader(multi("0.5 * has_x + length ^ 2", has_x=CHECK, length=LENGTH)) as grader:
        grade = grader.grade(Sample("xy"), {"m": 1})
    assert grade.reward == 4.5
    assert grade.sub_rewards == {"has_x": 1.0, "length": 2.0}


def test_multi_fails_where_a_part_or_the_formula_fails_and_only_there():
    with parse_grader(multi("1 / length", has_x=CHECK, length=LENGTH)) as grader:
        broken, undefined, fine = grader.grade_many(
            [(Sample("x"), {"m": 0}), (Sample(""), {"m": 1}), (Sample("xxxx"), {"m": 1})]
        )
    assert math.isnan(broken.reward) and "length: ZeroDivisionError" in broken.error
    assert broken.sub_rewards["has_x"] == 1
    assert math.isnan(undefined.reward) and "calculate_output" in undefined.error
    assert fine.reward == 0.25 and fine.error is None


def test_the_official_clients_types_are_accepted():
    from openai.types.graders import PythonGrader, StringCheckGrader, TextSimilarityGrader

    check = StringCheckGrader(**CHECK)
    similar = TextSimilarityGrader(type="text_similarity", name="t", evaluation_metric="bleu", input="a", reference="b")
    for given in (check, similar, PythonGrader(**LENGTH)):
        assert parse_grader(given.model_dump()).name == given.name
