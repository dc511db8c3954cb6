import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iro_server.graders.answers import Unreadable, read_label, read_score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("0.7", 0.7),
        (" -3 \n", -3),
        ("I would say .5.", 0.5),
        ("Score: 1e-2", 0.01),
        ('{"result": 0.25}', 0.25),
        ('{"score": "4"}', 4),
        ('There are 2 errors in 3 lines.\n```json\n{"result": 0.5}\n```', 0.5),
        ('{"steps": [{"description": "2 + 2", "conclusion": "4"}], "result": 1}', 1),
        ('Use {"result": 0} for bad. This one: {"result": 0.9}', 0.9),
        ('{"note": "{"} then {"result": 2} and {"other": 3}', 2),
        ("Score: \N{MINUS SIGN}0.5", -0.5),
        ('{"result": \N{MINUS SIGN}2}', -2),
        ('{"result": "\N{MINUS SIGN}2"}', -2),
        ('I am 90% sure: {"result": 0.5}', 0.5),
        ("{" * 5000 + '{"result": 6}', 6),
    ],
)
def test_a_score_is_found(text, score):
    assert read_score(text) == score


@pytest.mark.parametrize(
    "text",
    [
        "",
        "good",
        "v2",
        "nan",
        "8/10",
        "between 0.2 and 0.4",
        "I would give this 5%.",
        "5 %",
        "50 percent",
        '{"result": "50%"}',
        '{"result": true}',
        '{"result": NaN}',
        '{"result": [1]}',
        '{"result": "high"}',
        '{"result": 1e999}',
        '{"result": 1' + "0" * 400 + "}",
    ],
)
def test_an_answer_without_one_clear_number_is_none(text):
    with pytest.raises(Unreadable):
        read_score(text)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("good", "good"),
        ("GOOD.", "good"),
        ("It is not good", "not good"),
        ('{"result": "Not Good"}', "not good"),
        ('good? no: {"label": "bad"}', "bad"),
        ("so **bad**, bad", "bad"),
        ("c++", "C++"),
    ],
)
def test_a_label_is_found(text, label):
    assert read_label(text, ["good", "not good", "bad", "C++"]) == label


@pytest.mark.parametrize("text", ["", "goodness", "good or bad", '{"result": "fine"}', "fine"])
def test_an_answer_without_one_clear_label_is_none(text):
    with pytest.raises(Unreadable):
        read_label(text, ["good", "bad"])


@given(st.text() | st.lists(st.sampled_from(['{"result": ', "1", "}", "[", '"', "-", ".", "e9", " "])).map("".join))
def test_any_answer_is_read_or_unreadable(text):
    with contextlib.suppress(Unreadable):
        read_score(text)
    with contextlib.suppress(Unreadable):
        read_label(text, ["1", "result"])
