import io
import math

import numpy as np
import pytest
from rich.console import Console

from iro_server.cli.demo import run
from iro_server.cli.demo.report import draw, print_results
from iro_server.cli.demo.run import FINALS, ONE_ROW, judge, summary

PROMPTS = ["The film opens with", "I have never [sic] seen"]


def by_length(texts):
    return np.array([float(len(text)) for text in texts])


@pytest.fixture
def results(monkeypatch):
    monkeypatch.setattr(run, "minilm_judge", by_length)  # the real one is judged in test_pieces
    base = [[("good " if i == 7 else "bad"[: i % 3 + 1]) for i in range(FINALS)] for _ in PROMPTS]
    aligned = [["better film", "the very best film", "x"], ["fine", "good", "a [great] film"]]
    return judge({"base": base, "IRO-1": aligned, ONE_ROW: [["one row"], ["another"]]}, PROMPTS, by_length)


def test_base_and_value_picks_are_the_first_final_reward_picks_the_best(results):
    texts = {method["name"]: method["texts"] for method in results["methods"]}
    assert texts == {
        "base": ["b", "b"],
        "best of 16": ["good ", "good "],
        "IRO-1, value": ["better film", "fine"],
        "IRO-1, reward": ["the very best film", "a [great] film"],
        "IRO, one row": ["one row", "another"],
    }
    rows = {method["name"]: method["rows"] for method in results["methods"]}
    assert rows == {"base": 1, "best of 16": 16, "IRO-1, value": 16, "IRO-1, reward": 16, "IRO, one row": 1}


def test_gains_are_paired_with_best_of_16(results):
    gains = {method["name"]: method["gain_over_best_of_n"] for method in results["methods"]}
    assert gains["best of 16"]["values"] == [0, 0]
    assert gains["IRO-1, reward"]["values"] == [13, 9]
    assert gains["IRO-1, reward"]["mean"] == 11


def test_standard_error_is_of_the_mean():
    assert summary(np.array([1.0, 2.0, 3.0, 6.0]))["se"] == pytest.approx(math.sqrt(14 / 3) / 2)


def test_table_and_texts_show_every_method_and_text_as_it_is(results):
    console = Console(record=True, width=140, file=io.StringIO())
    print_results(console, results)
    shown = console.export_text()
    for expected in ["best of 16", "IRO-1, value", "+11.00 ± 2.00", "I have never [sic] seen", "a [great] film"]:
        assert expected in shown


def test_the_figure_is_a_png(results, tmp_path):
    draw(results, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
