"""A judge that ranks: an endpoint of chat completions that orders the answers it is shown by a rule."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from itertools import groupby
from typing import Any

from tests.iro_server.graders.test_model import Server

Rule = Callable[[str], float]
PROMPT_TOKENS, ANSWER_TOKENS = 40, 10


def answers_in(body: dict[str, Any]) -> dict[str, str]:
    """The answers in a request, by their number."""
    text = body["messages"][-1]["content"]
    text = text[text.index(" as a JSON object by number:") :]
    answers: dict[str, str] = json.JSONDecoder().raw_decode(text, text.index("{"))[0]
    return answers


def ranking_by(rule: Rule) -> Callable[[dict[str, Any]], str]:
    """A judge's answer: the highest first, equals together."""

    def rank(body: dict[str, Any]) -> str:
        answers = answers_in(body)
        ordered = sorted(answers, key=lambda number: -rule(answers[number]))
        tiers = [list(map(int, tier)) for _, tier in groupby(ordered, key=lambda number: rule(answers[number]))]
        return json.dumps({"ranking": [tier if len(tier) > 1 else tier[0] for tier in tiers]})

    return rank


@contextmanager
def judge(answer: Callable[[dict[str, Any]], str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The endpoint's base URL, and the bodies of its requests."""
    requests: list[dict[str, Any]] = []
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with turn:
                requests.append(body)
            usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": ANSWER_TOKENS}
            usage["total_tokens"] = PROMPT_TOKENS + ANSWER_TOKENS
            message = {"role": "assistant", "content": answer(body)}
            content = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": usage}
            raw = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
