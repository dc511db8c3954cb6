"""Forward passes of the frozen model over a flat batch: transformers' own, with our attention (`attention.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from iro_server.engines.adjusted import top_alternatives
from iro_server.engines.base import Alternatives, Sampling
from iro_server.engines.cache import CacheSpec
from iro_server.engines.frozen_model import FrozenModel
from iro_server.engines.sample import next_tokens, rows_at_once, steered_tokens, tempered
from iro_server.engines.scheduler import Run
from iro_server.engines.sequences import SequenceGroup
from iro_server.engines.steering import Session, additions, blocks, within_room

Drawn = tuple[torch.Tensor, ...]


class ModelRunner:
    """Draws next tokens and reads runs of tokens. Neither leaves a trace where it raises: both can be tried again."""

    def __init__(self, frozen: FrozenModel) -> None:
        self.frozen = frozen
        self._tap = HiddenTap([frozen.embedding, *frozen.layers])

    @property
    def cache_spec(self) -> CacheSpec:
        weight = self.frozen.embedding.weight
        return CacheSpec(*self.frozen.cache_shape, weight.dtype, weight.device)

    @property
    def attention_span(self) -> float:
        """The position at which a token's attention costs as much as its products with the decoder's weights: 2 P
        operations for P weights, 4 D layers for each position before it, D being heads times head size."""
        decoder, embedding, spec = self.frozen.decoder, self.frozen.embedding, self.cache_spec
        weights = sum(weight.numel() for weight in decoder.parameters()) - embedding.weight.numel()
        return max(1.0, weights / (2 * spec.num_layers * decoder.config.num_attention_heads * spec.head_size))

    def draw(self, groups: Sequence[SequenceGroup]) -> None:
        """Every row's next token: one draw for all groups that sample alike. Groups that have drawn are left alone."""
        groups = [group for group in groups if group.segments is None]
        if not groups:
            return
        states = torch.cat([group.states for group in groups if group.states is not None])
        logits = self.frozen.logits(states)
        alike: dict[tuple[object, ...], list[tuple[SequenceGroup, torch.Tensor]]] = {}
        start = 0
        for group in groups:
            beams, successors = group.uniforms.shape
            sampling, steered = group.sampling, group.steered is not None
            key = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.likeliest, successors, steered)
            part = logits[start : start + beams]
            alike.setdefault(key, []).append((group, group.adjusted.logits(part) if group.adjusted else part))
            start += beams
        for batch in alike.values():
            sizes = [len(part) for _, part in batch]
            uniforms = torch.cat([group.uniforms for group, _ in batch]).to(logits.device)
            sample = _steered if batch[0][0].steered else _plain
            sampled = sample([group for group, _ in batch], torch.cat([part for _, part in batch]), uniforms)
            for (group, part), *drawn in zip(batch, *(tensor.split(sizes) for tensor in sampled), strict=True):
                group.take(*drawn, alternatives=_alternatives(group.sampling, part))

    def read(self, runs: Sequence[Run]) -> list[tuple[torch.Tensor, dict[int, torch.Tensor]]]:
        """Of each run the final hidden states [count, D], and those of its layers."""
        with self._tap.reading({layer for run in runs for layer in run.layers}) as hidden:
            out = self.frozen.decoder(
                input_ids=torch.cat([run.token_ids for run in runs])[None],
                position_ids=torch.cat([run.positions for run in runs])[None],
                use_cache=False,
                runs=runs,
            )
        states, outputs, start = out.last_hidden_state[0], [], 0
        for run in runs:
            span = slice(start, start + run.count)
            outputs.append((states[span], {layer: hidden[layer][span] for layer in run.layers}))
            start = span.stop
        return outputs


def _alternatives(sampling: Sampling, logits_MV: torch.Tensor) -> list[Alternatives] | None:
    return top_alternatives(tempered(logits_MV, sampling), sampling.alternatives) if sampling.alternatives else None


def _plain(groups: Sequence[SequenceGroup], logits_MV: torch.Tensor, uniforms_MK: torch.Tensor) -> Drawn:
    """Tokens and log-probabilities [M, K] of groups that sample alike."""
    return next_tokens(logits_MV, groups[0].sampling, uniforms_MK)


def _steered(groups: Sequence[SequenceGroup], logits_MV: torch.Tensor, uniforms_MK: torch.Tensor) -> Drawn:
    """Tokens, log-probabilities and log q/pi_0 [M, K], and KL(q || pi_0) [M], of groups that are steered."""
    sessions = [(group.steered, group.states) for group in groups if group.steered and group.states is not None]
    most = rows_at_once(logits_MV)
    parts = zip(blocks(sessions, most), logits_MV.split(most), uniforms_MK.split(most), strict=True)
    drawn = [_steered_block(*part, groups[0].sampling) for part in parts]
    return tuple(map(torch.cat, zip(*drawn, strict=True)))


def _steered_block(
    sessions: Sequence[Session], logits_MV: torch.Tensor, uniforms_MK: torch.Tensor, sampling: Sampling
) -> Drawn:
    base_MV = tempered(logits_MV, sampling)
    addition_MV = additions(sessions, base_MV, sampling.temperature or 1.0)
    if any(rows.steering.max_kl is not None for rows, _ in sessions):
        room_M = torch.cat([rows.room_M for rows, _ in sessions]).to(logits_MV.device)
        addition_MV = within_room(base_MV, addition_MV, room_M)
    return steered_tokens(base_MV, addition_MV, sampling, uniforms_MK)


class HiddenTap:
    """Reads chosen layers' hidden states out of a forward pass."""

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        self._wanted: set[int] = set()
        self._hidden: dict[int, torch.Tensor] = {}
        for index, module in enumerate(modules):
            module.register_forward_hook(partial(self._read, index))

    def _read(self, index: int, _module: object, _args: object, out: torch.Tensor) -> None:
        if index in self._wanted:
            self._hidden[index] = (out[0] if isinstance(out, tuple) else out)[0]

    def reading(self, layers: set[int]) -> HiddenTap:
        self._wanted, self._hidden = layers, {}
        return self

    def __enter__(self) -> dict[int, torch.Tensor]:
        return self._hidden

    def __exit__(self, *_: object) -> None:
        self._wanted, self._hidden = set(), {}
