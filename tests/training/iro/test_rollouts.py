"""What a shard of rollouts says of its finals."""

from __future__ import annotations

from iro_server.decoding.base import Final
from training.iro.rollouts import drift


def test_nats_of_a_search_are_the_mean_of_its_finals() -> None:
    finals = [
        Final([1, 2], [-1.0, -2.0], 0.0, "stop", token_kl=[1.0, 2.0]),
        Final([1], [-4.0], 0.0, "stop", token_kl=[5.0]),
    ]
    assert drift(finals) == {"tokens": 3.0, "logprobs": [-3.0, -4.0], "kl": 4.0}
