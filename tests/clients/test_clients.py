"""Clients that nobody here wrote, as they are, against a real server of the real model: `llm`, LangChain and
eval-protocol. Skipped by name without their environment (`make .venv-clients/installed`)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from iro_server.engines.ports import free_port
from iro_server.settings import Settings
from tests.e2e.test_api_server import MODEL, server

HERE = Path(__file__).parent
BIN = HERE.parents[1] / ".venv-clients" / "bin"
QUESTION = "What is the capital of France?"
MODELS_OF_LLM = """
- model_id: iro
  model_name: {model}
  api_base: {url}
  supports_schema: true
  supports_tools: true
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """What clients read to reach a server: OpenAI's variables, and the configuration of `llm`."""
    if not (BIN / "python").exists():
        pytest.skip("the clients are not installed: make .venv-clients/installed")
    folder = tmp_path_factory.mktemp("llm")
    with server(Settings(data_dir=tmp_path_factory.mktemp("data"), port=free_port())) as (_, client):
        url = str(client.base_url)
        (folder / "extra-openai-models.yaml").write_text(MODELS_OF_LLM.format(model=MODEL, url=url))
        yield os.environ | {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none", "LLM_USER_PATH": str(folder)}


def run(environment, *command: object) -> str:
    """What a command of the clients' environment prints."""
    program, *arguments = command
    clean = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [BIN / str(program), *map(str, arguments)], env=clean, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow(37)
def test_llm_chats_goes_on_and_answers_under_a_schema(environment):
    assert "Paris" in run(environment, "llm", "-m", "iro", "-o", "temperature", "0", QUESTION)
    assert run(environment, "llm", "-c", "--no-stream", "-o", "max_tokens", "20", "And of Italy?").strip()
    stars = {"type": "object", "properties": {"stars": {"enum": [1, 2, 3]}}, "required": ["stars"]}
    schema = json.dumps(stars | {"additionalProperties": False})  # else the answer may be cut within another property
    options = ("-o", "max_tokens", "40", "--schema", schema)
    assert json.loads(run(environment, "llm", "-m", "iro", *options, "Rate the film Heat."))["stars"] in (1, 2, 3)


@pytest.mark.slow(60)
def test_langchain_chats_calls_tools_and_parses_structured_output(environment):
    got = json.loads(run(environment, "python", HERE / "langchain_chat.py", MODEL, "all-MiniLM-L6-v2"))
    assert "Paris" in got["answer"] and got["streamed"] == got["answer"] and got["tokens"] > 20
    assert got["call"]["name"] == "get_weather" and isinstance(got["call"]["args"]["city"], str) and got["after"]
    assert all(1 <= stars <= 5 for stars in got["stars"]) and got["cosine"] > 0.5


@pytest.mark.usefixtures("isolation")
@pytest.mark.slow(45)
def test_eval_protocols_grader_is_validated_and_run(environment):
    validated, ran = map(json.loads, run(environment, "python", HERE / "eval_protocol_rft.py").splitlines())
    assert validated["grader"]["type"] == "python" and "_ep_eval" in validated["grader"]["source"]
    assert 0.5 < ran["reward"] < 1 and not any(ran["metadata"]["errors"].values())
