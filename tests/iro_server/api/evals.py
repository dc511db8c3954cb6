"""An eval and its runs, for the tests that need some."""

from __future__ import annotations

from typing import Any

import openai

from tests.iro_server.api.serving import wait_for

ITEM_SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
CUSTOM = {"type": "custom", "item_schema": ITEM_SCHEMA, "include_sample_schema": True}
SAYS_Z = {
    "type": "string_check",
    "name": "says z",
    "input": "{{sample.output_text}}",
    "reference": "z",
    "operation": "like",
}
CLOSE = {"type": "text_similarity", "name": "close", "input": "{{sample.output_text}}", "reference": "héllo {{item.q}}"}
CLOSE |= {"evaluation_metric": "fuzzy_match", "pass_threshold": 0.4}
COUNT = "def grade(sample, item):\n    return len(item['q']) / sample['output_text'].count('z')\n"
COUNTED = {"type": "python", "name": "counted", "source": COUNT, "pass_threshold": 1}
CRITERIA = [SAYS_Z, CLOSE, COUNTED]
TEMPLATE = {"type": "template", "template": [{"role": "user", "content": "say {{item.q}}"}]}


def new_eval(client: openai.OpenAI, criteria: list[dict[str, Any]] = CRITERIA, **fields: Any) -> str:
    return client.evals.create(name="letters", data_source_config=CUSTOM, testing_criteria=criteria, **fields).id


def contents(items: int) -> dict[str, Any]:
    return {"type": "file_content", "content": [{"item": {"q": "ab" * (i % 7)}} for i in range(items)]}


def sampled(items: int, model: str = "bytes", **params: Any) -> dict[str, Any]:
    source = {"type": "completions", "model": model, "source": contents(items), "input_messages": TEMPLATE}
    return source | {"sampling_params": {"max_completion_tokens": 6, "seed": 1} | params}


def ended_run(client: openai.OpenAI, eval_id: str, run_id: str) -> Any:
    def look() -> Any:
        run = client.evals.runs.retrieve(run_id, eval_id=eval_id)
        return run if run.status in ("completed", "failed", "canceled") else None

    return wait_for(look)


def run_eval(client: openai.OpenAI, eval_id: str, data_source: dict[str, Any]) -> Any:
    run = client.evals.runs.create(eval_id, name="run", data_source=data_source)
    return ended_run(client, eval_id, run.id)


def output_items(client: openai.OpenAI, eval_id: str, run_id: str) -> list[dict[str, Any]]:
    """Without what differs from run to run: ids and times."""
    items = client.evals.runs.output_items.list(run_id, eval_id=eval_id, limit=100)
    names = ("datasource_item", "datasource_item_id", "results", "sample", "status")
    return [{name: item.to_dict()[name] for name in names} for item in items]
