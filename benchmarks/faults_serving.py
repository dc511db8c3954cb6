"""Chats, completions and streams of aligned models while their server is killed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from typing import Any

import openai

from benchmarks.faults_ledger import Phase
from benchmarks.faults_results import PROMPT, SEED, Reference, say
from benchmarks.faults_server import Server

CLIENTS = 4
MAX_TOKENS = 24


class Serving:
    """Clients that ask without end. ``expected`` is what each model wrote at the same seed before any kill."""

    def __init__(self, server: Server, phase: Phase, models: list[str], seed: int) -> None:
        self.server, self.phase, self.seed = server, phase, seed
        self.models = models
        self.ways = {"completions": self.completion, "chats": self.chat, "streams": self.stream}
        self.expected = {(model, way): ask(model) for model in models for way, ask in self.ways.items()}
        self.asking = 0  # requests under way
        self.stopping = threading.Event()

    def completion(self, model: str) -> str:
        answer = self.server.client.completions.create(model=model, prompt=PROMPT, seed=SEED, max_tokens=MAX_TOKENS)
        return answer.choices[0].text

    def chat(self, model: str) -> str:
        answer = self.server.client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": PROMPT}], seed=SEED, max_tokens=MAX_TOKENS
        )
        return answer.choices[0].message.content or ""

    def stream(self, model: str) -> str:
        request: Any = {"model": model, "prompt": PROMPT, "seed": SEED, "max_tokens": MAX_TOKENS, "stream": True}
        text, finished = "", False
        for chunk in self.server.client.completions.create(**request):
            text += chunk.choices[0].text
            finished = finished or chunk.choices[0].finish_reason is not None
        if not finished:
            self.phase.fault("lost", f"a stream of {model} ended early as if it were whole: {text!r}")
        return text

    def run(self, client: int) -> None:
        rng = random.Random(f"{self.seed}-serving-{client}")
        while not self.stopping.is_set():
            model, way = rng.choice(list(self.expected))
            self.asking += 1
            try:
                got = self.ways[way](model)
            except openai.APIConnectionError:
                self.phase.note(f"{way} cut off")
                time.sleep(0.1)
                continue
            except openai.APIStatusError as error:
                self.phase.fault("lost", f"{model} is not served: {error}")
                continue
            finally:
                self.asking -= 1
            self.phase.acknowledge(way)
            if got != self.expected[model, way]:
                self.phase.fault("unequal", f"{way} of {model}: {got!r}, not {self.expected[model, way]!r}")


def kill_while_serving(
    server: Server, phase: Phase, kills: int, seed: int, references: Mapping[str, Reference]
) -> None:
    """Kill the server ``kills`` times while it answers; each time the aligned models are served as before."""
    rng = random.Random(f"{seed}-serving")
    models = [server.client.models.list().data[0].id, *(each.model for each in references.values())]
    serving = Serving(server, phase, models, seed)
    threads = [threading.Thread(target=serving.run, args=(client,), daemon=True) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(kills):
            time.sleep(rng.uniform(0.1, 3.0))
            moment = "serving" if serving.asking else "rest"
            server.kill()
            phase.killed("server", moment)
            server.start()
            server.wait()
            for reference in references.values():
                if say([server], reference.model) != reference.outcome["completion"]:
                    phase.fault("unequal", f"completion of {reference.model} after a restart")
                phase.acknowledge("models")
    finally:
        serving.stopping.set()
        for thread in threads:
            thread.join()
