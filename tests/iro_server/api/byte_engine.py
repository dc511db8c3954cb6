"""An engine over bytes that says a given script, a "z" in place of a byte now and then."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from iro_server.engines.adjusted import AdjustedRows, top_alternatives
from iro_server.engines.base import Chunk, EngineHealth, ModelInfo, Sampling, Steering
from iro_server.engines.grammars import GrammarRows, grammars_of

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

    def __init__(
        self, script: str = SCRIPT, noise: float = 0.5, seconds_per_token: float = 0.0, length: int = 512
    ) -> None:
        self.tokenizer = byte_tokenizer()
        self.script = [*self.tokenizer(script)["input_ids"], self.tokenizer.eos_token_id]
        self.z = self.tokenizer("z")["input_ids"][0]
        self.noise, self.seconds_per_token = noise, seconds_per_token
        self.info = ModelInfo("bytes", "model-hash", "template-hash", (self.tokenizer.eos_token_id,), 0, 2, length)
        self.opened = self.open_sessions = 0
        self.sampling: Sampling | None = None  # of the session opened last

    async def open(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        layers: Sequence[int] = (),
        steering: Steering | None = None,
        head_rows: torch.Tensor | None = None,
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
    cached_tokens = 0

    def __init__(self, engine: ByteEngine, sampling: Sampling, layers: Sequence[int]) -> None:
        self.engine, self.sampling, self.layers = engine, sampling, layers
        self.generator = torch.Generator()
        self.generator.manual_seed(sampling.seed) if sampling.seed is not None else self.generator.seed()
        self.said = [0]
        self.adjusted: AdjustedRows | None = None
        if sampling.adjusts or sampling.alternatives:
            grammars = grammars_of(engine.tokenizer, engine.info.eos_ids)
            matcher = grammars.start(sampling.schema) if sampling.schema else None
            self.adjusted = AdjustedRows(sampling, matcher and GrammarRows(matcher, sampling.stop_ids))

    def extend_adjusted(self, adjusted: AdjustedRows, parents: Sequence[int], successors: int, length: int) -> Chunk:
        """Token by token, as the embedded engine adjusts. Hidden states are those of ``extend``."""
        adjusted.select([parent for parent in parents for _ in range(successors)])
        said = torch.tensor([self.said[parent] for parent in parents for _ in range(successors)])
        lengths, stopped = torch.zeros(len(said), dtype=torch.int64), torch.zeros(len(said), dtype=torch.bool)
        tokens, logprobs, alternatives = [], [], []
        for _ in range(length):
            logits = adjusted.logits(self.logits(said))
            noise = -torch.empty_like(logits).exponential_(generator=self.generator).log()
            drawn = (logits + noise if self.sampling.temperature else logits).argmax(-1)
            logprobs.append(torch.log_softmax(logits, -1).gather(1, drawn[:, None])[:, 0])
            alternatives.append(top_alternatives(logits, self.sampling.alternatives))
            adjusted.take(drawn[:, None].tolist())
            tokens.append(drawn)
            lengths += ~stopped
            said += ~stopped
            stopped |= drawn == self.engine.info.eos_ids[0]
        self.said = said.tolist()
        rows = [list(row) for row in zip(*alternatives, strict=True)] if self.sampling.alternatives else None
        return self.chunk(torch.stack(tokens, 1), torch.stack(logprobs, 1), lengths, stopped, rows)

    def logits(self, said: torch.Tensor) -> torch.Tensor:
        """The script's next byte or, with probability ``noise``, "z"; any other is unlikely."""
        noise = self.engine.noise if self.sampling.temperature else 0.0
        script = torch.tensor(self.engine.script)
        logits = torch.full((len(said), len(self.engine.tokenizer)), -20.0)
        ended = said >= len(script) - 1
        if noise:
            logits[~ended, self.engine.z] = math.log(noise)
        certain = torch.where(ended, 1.0, 1 - noise).log()
        logits[torch.arange(len(said)), script[said.clamp_max(len(script) - 1)]] = certain
        return logits

    async def extend(self, parents: Sequence[int], num_successors: int, length: int, more: int = 0) -> Chunk:
        await asyncio.sleep(self.engine.seconds_per_token * length)
        if self.adjusted:
            return self.extend_adjusted(self.adjusted, parents, num_successors, length)
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
        return self.chunk(tokens, logprobs, lengths, stopped)

    def chunk(self, tokens, logprobs, lengths, stopped, alternatives=None) -> Chunk:
        hidden = torch.stack([(tokens == self.engine.z).float(), torch.ones(tokens.shape)], dim=-1)
        hidden_of_layers = {i: hidden for i in self.layers}
        return Chunk(tokens, logprobs, lengths, stopped, hidden_of_layers, alternatives=alternatives)

    def close(self) -> None:
        self.engine.open_sessions -= 1
