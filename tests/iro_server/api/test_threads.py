"""One project's requests that hold threads for long, beside the others'."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from anyio.to_thread import current_default_thread_limiter

from iro_server.api import chat, files
from iro_server.api.app import create_app
from iro_server.api.prompt_length import check_length
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import new_key, serving, settings_for, upload, wait_for


async def test_probes_and_keys_do_not_wait_for_the_threads_of_requests(tmp_path):
    settings = settings_for(tmp_path)
    new_key(settings, "tenant")
    app = create_app(settings, ByteEngine())
    limiter = current_default_thread_limiter()
    holders = [object() for _ in range(int(limiter.total_tokens))]
    for holder in holders:
        limiter.acquire_on_behalf_of_nowait(holder)
    try:
        async with (
            asyncio.timeout(30),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http,
        ):
            assert (await http.get("/v1/health/ready")).status_code == 200
            assert (await http.get("/v1/health")).status_code == 200
            assert (await http.get("/v1/models", headers={"authorization": "Bearer wrong"})).status_code == 401
    finally:
        for holder in holders:
            limiter.release_on_behalf_of(holder)


def test_projects_take_turns_to_have_files_stored(tmp_path, monkeypatch):
    settings = settings_for(tmp_path)
    keys = [new_key(settings, name) for name in ("many", "other")]
    stored, release, running = files.stored, threading.Event(), []

    def slow(context, *args):
        running.append(context.caller.project)
        if context.caller.project == "many":
            release.wait(60)
        return stored(context, *args)

    monkeypatch.setattr(files, "stored", slow)
    with serving(settings, ByteEngine()) as client, ThreadPoolExecutor(10) as threads:
        many, other = (client.with_options(api_key=key) for key in keys)
        uploads = [threads.submit(upload, many) for _ in range(10)]
        wait_for(lambda: len(running) == 2, seconds=60)
        assert upload(other)
        assert running == ["many", "many", "other"]
        release.set()
        assert len({each.result() for each in uploads}) == 10


@pytest.mark.parametrize("part", ["content", "tools"])
def test_a_chat_that_is_much_too_long_is_refused_before_all_of_it_is_tokenised(tmp_path, monkeypatch, part):
    monkeypatch.setattr(chat, "chat_prompt_ids", lambda *_: pytest.fail("the whole prompt was tokenised"))
    text = "word " * 600_000
    message = {"role": "user", "content": text if part == "content" else "hi"}
    function = {"name": "f", "description": text, "parameters": {"type": "object", "properties": {}}}
    body = {"tools": [{"type": "function", "function": function}]} if part == "tools" else {}
    with serving(settings_for(tmp_path), ByteEngine()) as client, pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="bytes", messages=[message], max_tokens=4, **body)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


class Words:
    """A tokenizer of words, which counts the characters that it is given."""

    characters = 0

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        self.characters += len(text)
        return {"input_ids": [0] * len(text.split())}


def test_of_a_long_prompt_only_as_much_is_tokenised_as_shows_its_length():
    tokenizer = Words()
    with pytest.raises(Exception, match="maximum context length is 1000 tokens"):
        check_length(["a " * 1_000_000, "b"], tokenizer, 1000, "messages")
    assert tokenizer.characters < 200_000
    check_length(["word" * 2500 + " a" * 900] * 2, tokenizer, 1000, "messages")  # long words, 1802 in all


def test_a_prompt_of_usual_length_is_not_looked_at():
    tokenizer = Words()
    check_length(["a " * 4000], tokenizer, 1000, "messages")
    assert not tokenizer.characters
