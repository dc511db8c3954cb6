"""An engine over vLLM that notices a silent server soon, and searches by it."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager

from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.engines.vllm import VLLMEngine
from tests.iro_server.engines.fake_endpoint import END

PROMPT = [72, 105, 33]
SAMPLING = Sampling(temperature=0.7, top_p=0.9, top_k=5, seed=11, stop_ids=(END,), salt="whose")
PARAMS = SearchParams(beam_width=2, num_successors=3, chunk_length=4)


class Quick(VLLMEngine):
    probe_every, silence = 0.05, 0.3


async def rounds(engine, *parents, seed: int = 11, prompt=PROMPT):
    session = await engine.open(prompt, Sampling(seed=seed, stop_ids=(END,)))
    return [await session.extend(each, 2, 5) for each in parents]


def search(engine, seed: int = 11, max_tokens: int = 16):
    sampling = Sampling(seed=seed, stop_ids=(END,))
    return asyncio.run(guided_search(engine, PROMPT, PARAMS, sampling, max_tokens))


def texts(result) -> list[list[int]]:
    return [final.tokens for final in result.finals]


@contextmanager
def within(seconds: float):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds
