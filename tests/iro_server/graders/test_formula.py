import contextlib
import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iro_server.graders.formula import evaluate, parse_formula

numbers = st.floats(-1e6, 1e6)
small = st.floats(-50, 50)


def value(formula, **rewards):
    return evaluate(parse_formula(formula, rewards), rewards)


@given(a=numbers, b=numbers)
def test_arithmetic_is_pythons(a, b):
    assert value("0.7 * a - b / 4 + -2", a=a, b=b) == 0.7 * a - b / 4 + -2
    assert value("(a + b) * max(a, b, 0)", a=a, b=b) == (a + b) * max(a, b, 0)


@given(a=small)
def test_functions_are_maths(a):
    assert value("exp(a) + abs(a)", a=a) == math.exp(a) + abs(a)
    assert value("floor(a) + ceil(a)", a=a) == math.floor(a) + math.ceil(a)
    assert value("log(a^2 + 1) + sqrt(abs(a))", a=a) == pytest.approx(math.log(a**2 + 1) + math.sqrt(abs(a)))


def test_power_binds_tighter_than_times_and_plus():
    assert value("1 + 2 * a ^ 2", a=3.0) == 19


def test_a_grader_may_bear_a_functions_name():
    assert value("max(min, 2)", min=1.0) == 2


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_found_in_any_normal_form(form):
    name = unicodedata.normalize(form, "clart\N{LATIN SMALL LETTER E WITH ACUTE}")
    assert value(f"{name} + 1", **{name: 2.0}) == 3
    assert value(f"{unicodedata.normalize('NFC', name)} + max({name}, 0)", **{name: 2.0}) == 4


@given(st.text())
def test_no_text_does_anything_but_parse_or_be_refused(text):
    with contextlib.suppress(ValueError):
        parse_formula(text, {"a"})


@pytest.mark.parametrize(
    "formula",
    [
        "b",
        "a.real",
        "a[0]",
        "__import__('os')",
        "(lambda: 1)()",
        "a if a else 1",
        "[a]",
        "True",
        "'a'",
        "a and 1",
        "a % 2",
        "max(a)",
        "sqrt(a, 2)",
        "min(*a, 1)",
        "log(a, base=2)",
        "a := 1",
        "",
        "a +",
        "print(a)",
    ],
)
def test_anything_but_arithmetic_over_the_graders_is_refused(formula):
    with pytest.raises(ValueError):
        parse_formula(formula, {"a"})


@pytest.mark.parametrize("formula", ["(" * 400 + "a" + ")" * 400, "-" * 990 + "a", "a+" * 500 + "a" * 500])
def test_deep_or_long_formulas_are_refused_or_work(formula):
    with contextlib.suppress(ValueError):
        assert value(formula, a=1.0) in (1.0, -1.0)


@pytest.mark.parametrize("formula", ["1 / (a - 1)", "9 ^ 9 ^ 9 ^ 9", "log(0 * a)", "(0 - a) ^ 0.5", "exp(1000 * a)"])
def test_what_has_no_value_is_an_arithmetic_or_value_error(formula):
    with pytest.raises((ArithmeticError, ValueError)):
        value(formula, a=1.0)
