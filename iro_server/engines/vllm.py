"""The frozen model on one or more vLLM servers, by token ids over ``POST /v1/completions``.

A beam is its token ids, from the prompt on: each round sends every live beam as a prompt for its continuations, and
vLLM batches them with everybody else's. What it has read before lies in its prefix cache, so that a round re-reads
little but the last chunk. Nothing is tokenised twice.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from transformers import AutoConfig

from iro_server import JsonObject
from iro_server.engines.adapter_holds import Adapter
from iro_server.engines.base import Sampling, Steering
from iro_server.engines.endpoints import Endpoints, EngineUnavailable
from iro_server.engines.remote import RemoteEngine
from iro_server.engines.replica import GENERATE
from iro_server.engines.unused_tokens import unused_tokens
from iro_server.engines.vllm_adapters import AdapterFolder
from iro_server.engines.vllm_protocol import MOST_NUMBERS, generate_request, request
from iro_server.engines.vllm_session import VLLMSession
from iro_server.engines.vllm_steering import SteeredPrompt
from value_heads.features import HEAD_STATE
from value_heads.prompt_features import TokenGroups
from value_heads.reserved_tokens import ReservedTokens
from value_heads.tilt import Tilt, TiltPart

log = logging.getLogger(__name__)


BIASED_PARTS: frozenset[TiltPart] = frozenset({"bias", "words", "sharpness"})
"""Of a tilt, that ``logit_bias`` and a temperature apply."""
ADAPTED_PARTS: frozenset[TiltPart] = BIASED_PARTS | {"states"}  # that an adapter applies too
HIGHEST_TEMPERATURE = 2.0  # that vLLM takes


class VLLMEngine(RemoteEngine):
    """Engine over vLLM. Log-probabilities are those at temperature 1, whatever the sampling's, before biases, penalties
    and a schema's mask. Where a tilt has an adapter they are the adapted model's."""

    removal_delay: ClassVar[float] = 1.0  # seconds that a server takes to drop the request of a session that is closed
    marking_interval: ClassVar[float] = 3600.0  # seconds after which adapters are marked as in use again

    def __init__(self, model_dir: Path, endpoints: Endpoints, name: str | None = None) -> None:
        self._adapters = AdapterFolder(Path(model_dir), endpoints.adapters, dispose=self._dispose)
        self.vocabulary: int = AutoConfig.from_pretrained(model_dir).get_text_config(decoder=True).vocab_size
        self.neutral: Adapter | None = None
        self._maintenance: asyncio.Task[None] | None = None
        self._groups: TokenGroups | None = None
        self._preparing = threading.Lock()
        super().__init__(model_dir, endpoints, name)
        self._info = replace(self._info, steers=ADAPTED_PARTS if self.neutral else BIASED_PARTS)

    def _dispose(self, adapter: Adapter) -> None:
        """Unload an adapter that no session or variant of a tilt holds, then remove its folder."""
        if self._loop.is_closed():
            self._adapters.holds.remove(adapter)
        else:
            self.submit(self._unload_and_remove(adapter))

    async def _unload_and_remove(self, adapter: Adapter) -> None:
        await asyncio.sleep(self.removal_delay)
        await self.replicas.unload(adapter.name)
        await asyncio.to_thread(self._adapters.holds.remove, adapter)

    async def _maintain_adapters(self) -> None:
        while True:
            await asyncio.to_thread(self._adapters.holds.mark_all_used)
            try:
                await asyncio.to_thread(self._adapters.remove_old)
            except OSError as error:
                log.warning("adapters that nobody uses are not removed: %s", error)
            await asyncio.sleep(self.marking_interval)

    def probe_url(self, base: str) -> str:
        return f"{base.removesuffix('/v1')}/health"

    def check_served(self, model: JsonObject) -> None:
        if model.get("parent") and self._adapters.folder is not None:
            message = f"{model['id']!r} is a LoRA adapter of {model['parent']!r}, beside which no tilt has an adapter"
            raise ValueError(f"{message}: unset IRO_ENGINE_ADAPTERS, or serve the merged model")

    async def try_out(self) -> None:
        prompt = [self.info.eos_ids[0] if self.info.eos_ids else 0]
        body = request(self.model, prompt, 1, 1, Sampling(temperature=0.0), seed=0)

        def has_ids(payload: JsonObject) -> bool:
            return "token_ids" in payload["choices"][0]

        if not (await self.replicas.complete(body, has_ids))[0]:
            raise ValueError('the endpoint gives no token ids: for one that is not vLLM, use the engine kind "text"')
        self.neutral = await self._neutral_adapter(body)
        if self._adapters.folder is not None:
            self._maintenance = asyncio.create_task(self._maintain_adapters())
        self._info = replace(self._info, head_values=await self._num_head_values(body))

    async def _neutral_adapter(self, body: JsonObject) -> Adapter | None:
        """What a request without an adapter of its own names, where the servers take adapters.

        On a CPU, vLLM 0.32 answers a request without any by the adapter in its last slot, whosever that is.
        """
        if self._adapters.folder is None:
            return None
        try:
            adapter = await asyncio.to_thread(self._adapters.neutral)
            await self.replicas.complete(body | {"model": adapter.name}, lambda payload: payload, adapter=adapter)
        except (EngineUnavailable, OSError) as error:
            log.warning("no tilt can be applied on these servers: %s", error)
            return None
        return adapter

    async def _num_head_values(self, body: JsonObject) -> int:
        """Numbers of the model's state that a request may read; none where a server lacks the route for it."""
        adapters = self._adapters
        if self.neutral is None:
            return 0
        adapters.unused = unused_tokens(self.tokenizer, self.vocabulary, self.info.eos_ids)[: MOST_NUMBERS + 1]
        if len(adapters.unused) < 2:
            return 0
        reference, *ids = adapters.unused
        trial = generate_request(body, ReservedTokens(reference, tuple(ids), 1.0))
        return min(len(ids), self.info.hidden_size) if await self.replicas.take(GENERATE, trial) else 0

    async def open(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        layers: Sequence[int] = (),
        steering: Steering | None = None,
        head_rows: torch.Tensor | None = None,
    ) -> VLLMSession:
        """As ``Engine.open``. ValueError for layers past 0: vLLM reports no hidden states but numbers of HEAD_STATE."""
        self.check(prompt_ids, sampling, layers, steering)
        self._check_head_rows(sampling, layers, head_rows)
        session = VLLMSession(self, self.vocabulary, list(prompt_ids), sampling, layers)
        session.adapter = self.neutral
        if steering is not None or head_rows is not None:
            await asyncio.to_thread(self._prepare, session, steering, head_rows)
        return session

    def _check_head_rows(self, sampling: Sampling, layers: Sequence[int], head_rows: torch.Tensor | None) -> None:
        if (HEAD_STATE in layers) != (head_rows is not None):
            raise ValueError(f"{self.info.name} is served over HTTP, with numbers of the output head's state alone")
        if head_rows is None:
            return
        if len(head_rows) > self.info.head_values:
            most, count = self.info.head_values, len(head_rows)
            raise ValueError(f"{self.info.name} is served where {most} numbers of a state can be read, not {count}")
        if sampling.alternatives:
            raise ValueError("the likeliest tokens are not reported where values read the output head's state")
        if stops := set(sampling.stop_ids).intersection(self._adapters.unused):
            raise ValueError(f"{sorted(stops)} cannot end a row: values read the model's state through these tokens")

    def _prepare(self, session: VLLMSession, steering: Steering | None, head_rows: torch.Tensor | None) -> None:
        """The session's adapter, and what it adds to a row's logits beside that."""
        tilt, strength = (steering.tilt, steering.strength) if steering else (None, 0.0)
        if tilt is not None and tilt.sharpness:
            temperature = self._tilted_temperature(tilt, strength, session.sampling.temperature)
            session.sampling = replace(session.sampling, temperature=temperature)
            strength *= tilt.temperature(strength)
        with self._preparing:
            static = self._adapters.of(tilt, strength, head_rows)
            if static.adapter:
                session.hold(static.adapter, self._adapters.holds)
            if tilt is not None and self._groups is None:
                self._groups = TokenGroups.of_tokenizer(self.tokenizer, len(tilt.bias))
        if tilt is not None and self._groups is not None:
            session.steered = SteeredPrompt(tilt, strength, static, self._groups, session.prefixes[0])
        session.reserved = static.reserved
        if static.reserved:
            session.path = GENERATE

    def _tilted_temperature(self, tilt: Tilt, strength: float, temperature: float) -> float:
        """The sampling's temperature with the tilt's sharpness. ValueError for one that vLLM does not take."""
        factor = 1 + strength * tilt.sharpness
        if factor <= 0:
            raise ValueError(f"this mix leaves {factor:.3g} of the frozen model's logits, which no temperature does")
        tilted = temperature * tilt.temperature(strength)
        if tilted > max(HIGHEST_TEMPERATURE, temperature):
            raise ValueError(f"this mix needs temperature {tilted:.3g}, vLLM takes 0 to {HIGHEST_TEMPERATURE:g}")
        return tilted
