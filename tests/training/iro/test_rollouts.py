"""What a shard of rollouts says of its finals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from iro_server.decoding.base import Final, SearchParams
from iro_server.engines.base import Sampling
from tests.toy import ToyEngine
from training.iro.data import Prompt
from training.iro.rollouts import Batch, drift, roll_out


def test_nats_of_a_search_are_the_mean_of_its_finals() -> None:
    finals = [
        Final([1, 2], [-1.0, -2.0], 0.0, "stop", token_kl=[1.0, 2.0]),
        Final([1], [-4.0], 0.0, "stop", token_kl=[5.0]),
    ]
    assert drift(finals) == {"tokens": 3.0, "logprobs": [-3.0, -4.0], "kl": 4.0}


class RecordingEngine(ToyEngine):
    """Notes the schema of each prompt's session, and samples without it."""

    def __init__(self) -> None:
        super().__init__()
        self.schemas: dict[tuple[int, ...], str | None] = {}

    async def open(self, prompt_ids: Any, sampling: Sampling, *args: Any, **kwargs: Any) -> Any:
        self.schemas[tuple(prompt_ids)] = sampling.schema
        return await super().open(prompt_ids, replace(sampling, schema=None), *args, **kwargs)


def test_a_conversation_with_tools_is_not_held_to_the_schema_of_its_batch() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    messages = [{"role": "user", "content": "hi"}]
    items: list[dict[str, Any]] = [
        {"messages": messages},
        {"messages": messages, "tools": tools},
        {"messages": messages, "tools": []},
        {"prompt": "The lamp"},
    ]
    prompts = [Prompt(index, (1, index), item) for index, item in enumerate(items)]
    engine = RecordingEngine()
    roll_out(engine, Batch(prompts, [0] * 4, Sampling(schema="{}"), SearchParams(num_successors=2), max_tokens=3))
    assert engine.schemas == {(1, 0): "{}", (1, 1): None, (1, 2): "{}", (1, 3): "{}"}
