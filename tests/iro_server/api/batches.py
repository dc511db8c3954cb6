"""A batch and what comes of it, for the tests that need one."""

from __future__ import annotations

import json
from typing import Any

import openai

from tests.iro_server.api.serving import wait_for

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


def chat(number: int, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"say {number}"}]
    return {"model": "bytes", "messages": messages, "max_tokens": 4, "seed": number} | changes


def lines_of(bodies: list[dict[str, Any]], url: str = CHAT) -> list[dict[str, Any]]:
    return [{"custom_id": f"r{i}", "method": "POST", "url": url, "body": body} for i, body in enumerate(bodies)]


def uploaded(client: openai.OpenAI, lines: list[dict[str, Any]]) -> str:
    content = "\n".join(map(json.dumps, lines)).encode()
    return client.files.create(file=("requests.jsonl", content), purpose="batch").id


def new_batch(client: openai.OpenAI, lines: list[dict[str, Any]], endpoint: str = CHAT, **fields: Any) -> Any:
    id = uploaded(client, lines)
    return client.batches.create(input_file_id=id, endpoint=endpoint, completion_window="24h", **fields)


def ended_batch(client: openai.OpenAI, id: str) -> Any:
    def look() -> Any:
        batch = client.batches.retrieve(id)
        return batch if batch.status in ENDED else None

    return wait_for(look)


def answers(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    return [] if file_id is None else [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
