"""Forward passes of the frozen model over a flat batch: transformers' own, with our attention (`attention.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from iro_server.engines.cache import CacheSpec
from iro_server.engines.sample import next_tokens
from iro_server.engines.scheduler import Run
from iro_server.engines.sequences import SequenceGroup


class ModelRunner:
    """Draws next tokens and reads runs of tokens. Neither leaves a trace where it raises: both can be tried again."""

    def __init__(self, model: Any) -> None:
        self.model = model
        fuse_norms(model)
        self._tap = HiddenTap(model)

    @property
    def cache_spec(self) -> CacheSpec:
        config, weight = self.model.config, self.model.get_input_embeddings().weight
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return CacheSpec(config.num_hidden_layers, config.num_key_value_heads, head_size, weight.dtype, weight.device)

    @property
    def attention_span(self) -> float:
        """The position at which a token's attention costs as much as its products with the decoder's weights: 2 P
        operations for P weights, 4 D layers for each position before it, D being heads times head size."""
        config, spec = self.model.config, self.cache_spec
        embeddings = self.model.get_input_embeddings().weight.numel()
        weights = sum(weight.numel() for weight in self.model.base_model.parameters()) - embeddings
        return max(1.0, weights / (2 * spec.num_layers * config.num_attention_heads * spec.head_size))

    def draw(self, groups: Sequence[SequenceGroup]) -> None:
        """Every row's next token: one draw for all groups that sample alike. Groups that have drawn are left alone."""
        groups = [group for group in groups if group.segments is None]
        if not groups:
            return
        states = torch.cat([group.states for group in groups if group.states is not None])
        logits = self.model.get_output_embeddings()(states).float()
        alike: dict[tuple[Any, ...], list[tuple[SequenceGroup, torch.Tensor]]] = {}
        start = 0
        for group in groups:
            beams, successors = group.uniforms.shape
            sampling = group.sampling.temperature, group.sampling.top_p, group.sampling.top_k, successors
            alike.setdefault(sampling, []).append((group, logits[start : start + beams]))
            start += beams
        for batch in alike.values():
            sizes = [len(part) for _, part in batch]
            uniforms = torch.cat([group.uniforms for group, _ in batch]).to(logits.device)
            drawn = next_tokens(torch.cat([part for _, part in batch]), batch[0][0].sampling, uniforms)
            for (group, _), tokens, logprobs in zip(batch, *(part.split(sizes) for part in drawn), strict=True):
                group.take(tokens, logprobs)

    def read(self, runs: Sequence[Run]) -> list[tuple[torch.Tensor, dict[int, torch.Tensor]]]:
        """Of each run the final hidden states [count, D], and those of its layers."""
        with self._tap.reading({layer for run in runs for layer in run.layers}) as hidden:
            out = self.model.base_model(
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


def fuse_norms(model: torch.nn.Module) -> None:
    """Compute RMS norms by torch's fused function: the same numbers in one operation instead of six."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = _fused_norm(module)  # type: ignore[method-assign]


def _fused_norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    weight, eps = module.weight, float(module.variance_epsilon)
    return lambda x: F.rms_norm(x, weight.shape, weight, eps)


class HiddenTap:
    """Reads chosen layers' hidden states out of a forward pass."""

    def __init__(self, model: Any) -> None:
        self._wanted: set[int] = set()
        self._hidden: dict[int, torch.Tensor] = {}
        decoder = model.base_model
        for index, module in enumerate([decoder.embed_tokens, *decoder.layers]):
            module.register_forward_hook(partial(self._read, index))

    def _read(self, index: int, _module: Any, _args: Any, out: torch.Tensor) -> None:
        if index in self._wanted:
            self._hidden[index] = out[0]

    def reading(self, layers: set[int]) -> HiddenTap:
        self._wanted, self._hidden = layers, {}
        return self

    def __enter__(self) -> dict[int, torch.Tensor]:
        return self._hidden

    def __exit__(self, *_: object) -> None:
        self._wanted, self._hidden = set(), {}
