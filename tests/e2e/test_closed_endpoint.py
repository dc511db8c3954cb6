"""A model behind a chat endpoint that takes 300 entries of ``logit_bias`` and offers nothing more."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import fastapi
import httpx
import openai
import pytest
import uvicorn
from fastapi.responses import JSONResponse

from benchmarks.processes import VLLMProcess
from training.iro.data import AlignError
from training.iro.logit_bias import JOB

pytestmark = [
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not VLLMProcess.python.exists(), reason=f"no {VLLMProcess.python}: `make vllm` installs vLLM"),
]
OFFERED = {"model", "messages", "n", "seed", "max_tokens", "temperature", "logit_bias", "presence_penalty"}


def closed(upstream: str) -> fastapi.FastAPI:
    """OpenAI's chat route as documented for a hosted model: these fields, and at most 300 entries within ±100."""
    app = fastapi.FastAPI()
    client = httpx.Client(base_url=upstream, timeout=600)

    @app.post("/v1/chat/completions")
    def chat(body: Annotated[dict, fastapi.Body()]):
        bias = body.get("logit_bias", {})
        if body.keys() - OFFERED or len(bias) > 300 or any(abs(value) > 100 for value in bias.values()):
            return JSONResponse({"error": {"message": "not offered", "type": "invalid_request_error"}}, 400)
        answer = client.post("/chat/completions", json=body)
        return JSONResponse(answer.json(), answer.status_code)

    return app


@contextmanager
def running(app: fastapi.FastAPI) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(60)


@pytest.fixture(scope="module")
def url(served) -> Iterator[str]:
    with running(closed(served.url)) as address:
        yield address


@pytest.fixture
def config(url, model_dir, tmp_path):
    """The word "the" earns: one token, so that a bias can learn it from few answers."""
    starts = ("The film", "My wife and I", "At the end", "The plot", "A friend", "The music", "What a day", "It began")
    prompts = [f"Go on: {start} {end}" for start in starts for end in ("was", "and then", "with", "so", "but")]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    source = "def grade(sample, item): return sample['output_text'].lower().split().count('the')"
    return {
        "url": url,
        "model": model_dir.name,
        "tokenizer": model_dir,
        "training_file": rows,
        "grader": {"type": "python", "source": source},
        "max_tokens": 24,
        "strengths": [4.0],
    }


@pytest.mark.slow(60)
def test_the_endpoint_offers_no_more_than_a_closed_one(url, model_dir) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
    messages = [{"role": "user", "content": "Hello"}]
    for refused in ({"logit_bias": {str(token): 1 for token in range(301)}}, {"logprobs": True}):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=model_dir.name, messages=messages, max_tokens=4, **refused)


@pytest.mark.slow(150)
def test_a_bias_fitted_through_the_endpoint_raises_the_reward_there(config, tmp_path) -> None:
    result = JOB.execute(config, tmp_path / "run")
    assert result["improved"] and result["setting"]["strength"] >= 4.0
    assert result["gain"] > result["gain_error"] > 0
    request = json.loads((tmp_path / "run" / "request.json").read_text())
    assert 0 < len(request["logit_bias"]) <= 300 and request["temperature"] == result["request"]["temperature"] <= 1
    messages = [{"role": "user", "content": "Go on: The film was"}]
    client = openai.OpenAI(base_url=config["url"], api_key="none", max_retries=0, timeout=600)
    assert client.chat.completions.create(model=config["model"], messages=messages, max_tokens=4, **request).choices
    assert JOB.execute(config, tmp_path / "run") == result


@pytest.mark.slow(100)
def test_what_the_endpoint_refuses_ends_the_run_with_its_words(config, tmp_path) -> None:
    rows = config["training_file"]
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[::3]))
    with pytest.raises(AlignError, match="not offered"):
        JOB.execute(config | {"entries": 301}, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
