"""A completions endpoint over bytes that can be told to misbehave, and a model directory to go with it."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from tests.iro_server.api.byte_engine import byte_tokenizer

END = 256  # byte_tokenizer's end-of-sequence token


def write_byte_model(folder: Path, max_length: int = 512, vocabulary: int = 257) -> Path:
    """``vocabulary``: tokens past 256 are unused."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=max_length,
        eos_token_id=END,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def tokens_of(prompt: Any, seed: int, count: int) -> list[int]:
    """Row tokens that depend on prompt and seed alone; now and then the end."""
    tokens: list[int] = []
    while len(tokens) < count and END not in tokens:
        draw = hashlib.sha256(json.dumps([prompt, seed, tokens]).encode()).digest()
        tokens.append(END if draw[0] < 16 else 64 + draw[1] % 26)
    return tokens


class FakeEndpoint:
    """``mode``: "ok", "drop" (the connection), "hang" (probes too), "garbled"
    (an answer that cannot be decoded, probes too), a status to answer with, or what to answer instead
    of the truth. It sets in after so many requests, for so many. ``bodies``: of the requests so far. ``generates``:
    whether it has the route that reports log-probabilities of chosen tokens; each is -20 less its place in the list.
    ``respond``: from a request's body to a status or an answer, in place of ``mode``. ``adapter_requests``: routes and
    names. ``generate_errors``: what the route of ``generates`` answers first, with status 404. ``cut``: events after
    which a stream breaks off. ``events``: sent in streams so far."""

    def __init__(self, *, model: str = "bytes", ids: bool = True, generates: bool = False, loads: bool = True) -> None:
        self.model, self.ids, self.generates, self.loads = model, ids, generates, loads
        self.max_length = 256
        self.mode: Any = "ok"
        self.after = self.times = 0
        self.respond: Any = None
        self.bodies: list[dict[str, Any]] = []
        self.generate_errors: list[dict[str, Any]] = []
        self.adapter_requests: list[tuple[str, str]] = []
        self.keys: list[str | None] = []
        self.released = threading.Event()
        self.cut: int | None = None
        self.events, self.seconds_per_event, self.characters_per_event = 0, 0.0, 1
        self.held_after: int | None = None  # events of a stream; those after them wait for ``heard``
        self.heard = threading.Event()
        handler = type("Handler", (_Handler,), {"fake": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def turn(self, mode: Any, after: int = 0, times: int = 10**9) -> None:
        self.mode, self.after, self.times = mode, after, times

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        tokenizer = byte_tokenizer()
        choices = []
        seed = body["seed"] if "seed" in body else random.getrandbits(31)
        is_batch = isinstance(body["prompt"], list) and isinstance(body["prompt"][0], list)
        prompts = body["prompt"] if is_batch else [body["prompt"]]
        for index in range(body["n"] * len(prompts)):  # the rows of a prompt follow each other, as vLLM's do
            tokens = tokens_of(prompts[index // body["n"]], seed + index, body["max_tokens"])
            ended = tokens[-1] == END
            choice = {
                "index": index,
                "text": tokenizer.decode(tokens, skip_special_tokens=True),
                "finish_reason": "stop" if ended else "length",
                "logprobs": {"token_logprobs": [-0.5] * len(tokens)},
            }
            choices.append(choice | ({"token_ids": tokens} if self.ids else {}))
        usage = {"prompt_tokens": len(body["prompt"]), "prompt_tokens_details": {"cached_tokens": 3}}
        return {"choices": choices[::-1], "usage": usage}

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        sampling = body["sampling_params"]
        answer = self.complete({"prompt": body["token_ids"], **sampling})
        for choice in answer["choices"]:
            chosen = [
                {"token_id": token, "logprob": -20.0 - place}
                for place, token in enumerate(dict.fromkeys(sampling["logprob_token_ids"]))
            ]
            choice["logprobs"] = {
                "content": [
                    {
                        "token_id": token,
                        "logprob": -0.5,
                        "top_logprobs": [{"token_id": token, "logprob": -0.5}, *chosen],
                    }
                    for token in choice["token_ids"]
                ]
            }
        return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeEndpoint

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        mode = self._mode()
        if mode == "hang":
            self.fake.released.wait()
        elif mode == "garbled":
            self._answer(200, b"no gzip", {"Content-Encoding": "gzip"})
        elif self.path == "/v1/models":
            self._answer(200, {"data": [{"id": self.fake.model, "max_model_len": self.fake.max_length}]})
        else:
            self._answer(200 if mode == "ok" else 500, {})

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        mode = self._mode()
        fake.times -= mode != "ok"
        fake.after = max(0, fake.after - 1)
        fake.keys.append(self.headers["Authorization"])
        if self.path.endswith("_lora_adapter"):
            fake.adapter_requests.append((self.path.rpartition("/")[2], body["lora_name"]))
            self._answer(200 if fake.loads else 404, {} if fake.loads else {"error": {"message": "no such route"}})
            return
        fake.bodies.append(body)
        if "sampling_params" in body and fake.generate_errors:
            self._answer(404, fake.generate_errors.pop(0))
            return
        if "sampling_params" in body:
            self._answer(200, fake.generate(body)) if fake.generates else self._answer(
                403, {"error": {"message": "no"}}
            )
            return
        if fake.respond:
            reply = fake.respond(body)
            self._answer(*((reply, {"error": {"message": "told to"}}) if isinstance(reply, int) else (200, reply)))
        elif body["n"] > 1 and body["temperature"] == 0:
            self._answer(400, {"error": {"message": f"n must be 1 when using greedy sampling, got {body['n']}."}})
        elif mode == "ok":
            self._stream(fake.complete(body)) if body.get("stream") else self._answer(200, fake.complete(body))
        elif mode == "drop":
            self.close_connection = True
        elif mode == "garbled":
            self._answer(200, b"no gzip", {"Content-Encoding": "gzip"})
        elif mode == "hang":
            fake.released.wait()
        elif isinstance(mode, int):
            self._answer(mode, {"error": {"message": "told to"}})
        else:
            self._answer(200, mode(fake.complete(body)) if callable(mode) else mode)

    def _stream(self, answer: dict[str, Any]) -> None:
        """The one row of the answer, a token an event or so many characters, then the usage."""
        (choice,) = answer["choices"]
        if "token_ids" in choice:
            logprobs = choice["logprobs"]["token_logprobs"]
            changes = [
                {"token_ids": [token], "logprobs": {"token_logprobs": [logprob]}}
                for token, logprob in zip(choice["token_ids"], logprobs, strict=True)
            ]
        else:
            pieces = wrap(choice["text"], self.fake.characters_per_event)
            changes: list[dict[str, Any]] = [{"text": piece, "finish_reason": None} for piece in pieces]
            changes.append({"text": "", "finish_reason": choice["finish_reason"]})
        events: list[dict[str, Any]] = [{"choices": [choice | change]} for change in changes]
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        with suppress(ConnectionError):  # who hears enough leaves
            for event in [*events, {"choices": [], "usage": answer["usage"]}][: self.fake.cut]:
                if self.fake.events == self.fake.held_after:
                    self.fake.heard.wait(30)
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.fake.events += 1
                time.sleep(self.fake.seconds_per_event)
            if self.fake.cut is None:
                self.wfile.write(b"data: [DONE]\n\n")

    def _mode(self) -> Any:
        """ "ok" before and after the requests that are to fail."""
        return "ok" if self.fake.after or not self.fake.times else self.fake.mode

    def _answer(self, status: int, body: Any, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def endpoints(*fakes: FakeEndpoint):
    try:
        yield fakes
    finally:
        for fake in fakes:
            fake.close()
