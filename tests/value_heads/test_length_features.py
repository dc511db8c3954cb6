"""How long a response is, as tilts read it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from iro_server.engines.prepare import prepare_model
from value_heads.length_features import KNOTS, NUM_LENGTH_FEATURES, Lengths, length_features
from value_heads.prompt_features import TokenGroups


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(prepare_model())


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        ("A volcano is a mountain that can erupt.", 8, 0),
        ("A volcano is a mountain. It can", 7, 2),
        ("Don't touch the photosynthesis experiment", 5, 5),
        ("One line\nand another one", 5, 3),
        ("Really? Yes", 2, 1),
        ("", 0, 0),
    ],
)
def test_words_are_counted_as_a_reader_would(tokenizer, text: str, words: int, sentence: int) -> None:
    groups = TokenGroups.of_tokenizer(tokenizer, len(tokenizer))
    tokens = tokenizer(text)["input_ids"]
    lengths = groups.lengths(tokens)
    assert lengths[0] == Lengths()
    assert lengths[-1][:3] == (len(tokens), words, sentence)


@given(st.integers(0, 300), st.lists(st.floats(-1, 1), min_size=len(KNOTS) - 1, max_size=len(KNOTS) - 1))
def test_a_linear_function_of_the_features_is_piecewise_linear_in_the_count(count: int, slopes: list[float]) -> None:
    """Of tokens: a weight for each interval between knots is what the function gains there."""
    weights = torch.zeros(NUM_LENGTH_FEATURES)
    weights[::3] = torch.tensor(slopes)
    value = float(length_features([Lengths(tokens=count)])[0] @ weights)
    heights = torch.cat([torch.zeros(1), torch.tensor(slopes).cumsum(0)])
    place = sum(count >= knot for knot in KNOTS) - 1
    if place == len(KNOTS) - 1:
        assert value == pytest.approx(float(heights[-1]), abs=1e-4)
    else:
        share = (count - KNOTS[place]) / (KNOTS[place + 1] - KNOTS[place])
        assert value == pytest.approx(float(heights[place] * (1 - share) + heights[place + 1] * share), abs=1e-4)
