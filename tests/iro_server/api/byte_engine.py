"""An engine over bytes that says a given script, a "z" in place of a byte now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from iro_server.engines.base import Chunk, EngineHealth, ModelInfo, Sampling, Steering

SCRIPT = "héllo wörld 😀, and good night"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'developer' %}{{ raise_exception('no developers here') }}{% endif %}"
    "{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=TEMPLATE)


class ByteEngine:
    """Temperature 0 says the script; else each byte is "z" with probability ``noise``. Hidden layer 0: [is "z", 1]."""

    def __init__(self, script: str = SCRIPT, noise: float = 0.5, seconds_per_token: float = 0.0) -> None:
        self.tokenizer = byte_tokenizer()
        self.script = [*self.tokenizer(script)["input_ids"], self.tokenizer.eos_token_id]
        self.z = self.tokenizer("z")["input_ids"][0]
        self.noise, self.seconds_per_token = noise, seconds_per_token
        self.info = ModelInfo("bytes", "model-hash", "template-hash", (self.tokenizer.eos_token_id,), 0, 2, 512)
        self.opened = self.open_sessions = 0
        self.sampling: Sampling | None = None  # of the session opened last

    async def open(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        layers: Sequence[int] = (),
        steering: Steering | None = None,
    ) -> ByteSession:
        self.opened += 1
        self.open_sessions += 1
        self.sampling = sampling
        return ByteSession(self, sampling, layers)

    def lockstep(self, sessions: int) -> AbstractContextManager[None]:
        return nullcontext()  # its rows share nothing

    def health(self) -> EngineHealth:
        return EngineHealth()

    def close(self) -> None:
        pass


class ByteSession:
    def __init__(self, engine: ByteEngine, sampling: Sampling, layers: Sequence[int]) -> None:
        self.engine, self.sampling, self.layers = engine, sampling, layers
        self.generator = torch.Generator()
        self.generator.manual_seed(sampling.seed) if sampling.seed is not None else self.generator.seed()
        self.said = [0]

    async def extend(self, parents: Sequence[int], num_successors: int, length: int) -> Chunk:
        await asyncio.sleep(self.engine.seconds_per_token * length)
        said = torch.tensor([self.said[p] for p in parents for _ in range(num_successors)])
        script = torch.tensor(self.engine.script)
        noise = self.engine.noise if self.sampling.temperature else 0.0
        draws = torch.rand(length, len(said), generator=self.generator).T
        tokens = script[(said[:, None] + torch.arange(length)).clamp_max(len(script) - 1)]
        end = tokens == self.engine.info.eos_ids[0]
        is_z = (draws < noise) & ~end
        tokens = tokens.masked_fill(is_z, self.engine.z)
        stopped = end.any(dim=1)
        lengths = torch.where(stopped, end.int().argmax(dim=1) + 1, length)
        self.said = (said + lengths).tolist()
        logprobs = torch.where(is_z, noise, 1 - noise).log()
        hidden = torch.stack([(tokens == self.engine.z).float(), torch.ones(tokens.shape)], dim=-1)
        return Chunk(tokens, logprobs, lengths, stopped, {i: hidden for i in self.layers})

    def close(self) -> None:
        self.engine.open_sessions -= 1
