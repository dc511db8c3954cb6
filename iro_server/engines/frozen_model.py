"""A causal language model in this process: its decoder, which reads a flat batch, and its output head.

The flat batch holds the tokens of many requests side by side. Only attention keeps them apart (`attention.py`), so a
decoder must otherwise treat each token by itself; `equality.py` checks at load that it does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.logging import disable_progress_bar

from iro_server.engines import attention
from iro_server.engines.memory import available_memory
from iro_server.engines.output_head import final_norms
from iro_server.engines.packed_linear import Forward, packed_forwards
from value_heads.whole_models import load_whole_model

# Lengths that bound what a token attends to, by the names configurations and layers give them.
SPANS = ("sliding_window", "attention_chunk_size")
AttentionInterface.register(attention.NAME, attention.flat_attention)


class FrozenModel:
    """The model of ``model_dir`` on ``device``, "cpu" or "cuda". ValueError where it is not a decoder that the engine
    can feed, or lacks weights.
    """

    def __init__(self, model_dir: str | Path, device: str) -> None:
        config = AutoConfig.from_pretrained(model_dir)
        if type(config) not in AutoModelForCausalLM._model_mapping:
            raise refusal(config.model_type, "transformers has no causal language model of this type")
        disable_progress_bar()  # it takes seconds, and a log has no place for a bar
        model = load_whole_model(AutoModelForCausalLM, model_dir, dtype=data_type(config, device))
        self.model = model.to(device).eval().requires_grad_(False)
        self.architecture = type(self.model).__name__
        self.decoder = find_decoder(self.model)
        self.embedding = self.decoder.get_input_embeddings()
        self.layers = self._decoder_layers()
        self.cache_shape = self._cache_shape()  # layers, key-value heads, head size
        self._reference_attention = self.decoder.config._attn_implementation
        if not self.decoder._can_set_attn_implementation():
            raise refusal(self.architecture, "its attention cannot be replaced")
        self._fused = {norm: fused for norm in self.decoder.modules() if (fused := fused_norm(norm))}
        self._packed: dict[nn.Linear, Forward] = {}
        self.products: torch.dtype = self.model.dtype
        self._head = output_head(self.model, self.decoder)
        self._use_flat_batch()

    def pack_weights(self, products: torch.dtype = torch.float32) -> None:
        """Multiply by packed copies of the weights from now on, where that is faster and memory holds them.

        ``products``: the data type of both factors, of a model in float32 on a CPU. ValueError where this CPU, or the
        memory, does not allow one that is asked for.
        """
        self._packed = packed_forwards(self.model, available_memory(self.head_weight.device), products)
        if self._packed:
            self.products = products
        self._use_flat_batch()

    def _decoder_layers(self) -> nn.ModuleList:
        count = self.decoder.config.num_hidden_layers
        lists = [part for part in self.decoder.children() if isinstance(part, nn.ModuleList) and len(part) == count]
        if len(lists) != 1:
            raise refusal(self.architecture, "its decoder is not a single list of layers")
        return lists[0]

    def _use_flat_batch(self) -> None:
        self.decoder.set_attn_implementation(attention.NAME)
        for module, forward in [*self._fused.items(), *self._packed.items()]:
            module.forward = forward  # type: ignore[method-assign]

    def _cache_shape(self) -> tuple[int, int, int]:
        config = self.decoder.config
        if getattr(config, "is_heterogeneous", False):
            raise refusal(self.architecture, "its layers' heads differ in size or number")
        if not getattr(config, "num_attention_heads", None):
            raise refusal(self.architecture, "its layers have no attention")
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return config.num_hidden_layers, kv_heads, head_size

    def exact_length(self, max_length: int) -> int:
        """``max_length``, or the tokens up to which long RoPE keeps its frequencies: past them the longest row of a
        batch would change those of all others.
        """
        parameters = getattr(self.decoder.config, "rope_parameters", None) or {}
        kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
        limits = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
        return min([max_length, *limits])

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the output head's row of each token."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def state_length(self) -> float:
        """As ``OutputHead.state_length``."""
        width = self.head_weight.shape[1]
        weights = list(final_norms(self.model, width).values())
        return float(weights[-1].float().norm()) if weights else width**0.5

    def logits(self, states_MD: Tensor) -> Tensor:
        """[M, V] float32, from the decoder's final states: the head's own scales and soft caps included."""
        return self._head(inputs_embeds=states_MD[None]).logits[0].float()

    @contextmanager
    def reference_forward(self) -> Iterator[Any]:
        """The whole model with its own attention, norms and products, as transformers runs it."""
        for module in [*self._fused, *self._packed]:
            del module.forward
        self.decoder.set_attn_implementation(self._reference_attention)
        try:
            yield self.model
        finally:
            self._use_flat_batch()

    @contextmanager
    def short_spans(self, length: int) -> Iterator[None]:
        """Windows and chunks of attention cut to ``length`` tokens, so that a short prompt shows how they work."""
        owners = [self.decoder.config, *self.decoder.modules()]
        limit = getattr(self.decoder.config, "max_position_embeddings", None) or math.inf
        before = [
            (owner, name, getattr(owner, name)) for name in SPANS for owner in owners if _is_span(owner, name, limit)
        ]
        longest = {name: max((value for _, span, value in before if span == name), default=0) for name in SPANS}
        for owner, name, value in before:  # some layers count their own token in, and have one more than others
            setattr(owner, name, max(1, value - longest[name] + length))
        try:
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)


def _is_span(owner: object, name: str, limit: float) -> bool:
    """Whether ``owner`` names a span that hides something: shorter than the longest text."""
    value = getattr(owner, name, None)
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < limit


def find_decoder(model: Any) -> Any:
    decoder = model.get_decoder()
    if decoder is not model and isinstance(decoder, PreTrainedModel):
        return decoder
    parts = [part for part in model.children() if isinstance(part, PreTrainedModel)]
    if len(parts) != 1:
        raise refusal(type(model).__name__, "it has no decoder apart from its head")
    return parts[0]


def data_type(config: PreTrainedConfig, device: str) -> torch.dtype:
    """Of the computation: float32 on a CPU, where few operations but products are faster in bfloat16; else that of the
    weights, bfloat16 where the configuration does not say.
    """
    if device == "cpu":
        return torch.float32
    dtype = config.get_text_config(decoder=True).dtype or config.dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.bfloat16


def refusal(architecture: str, why: str) -> ValueError:
    return ValueError(
        f"the embedded engine cannot run {architecture}: {why}. "
        "Serve the model on vLLM and give its address: iro serve --engine-url URL (docs/vllm.md)"
    )


def output_head(model: Any, decoder: nn.Module) -> Any:
    """A copy of ``model`` that shares its weights and takes the decoder's final states as ``inputs_embeds``."""
    head = copy.copy(model)
    stand_ins = {name: _FinalStates() for name, part in model.named_children() if decoder in part.modules()}
    head._modules = {**model._modules, **stand_ins}
    return head


class _FinalStates(nn.Module):
    """Returns the states that it gets, as a decoder does."""

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> _Output:
        return _Output(last_hidden_state=inputs_embeds)


class _Output(BaseModelOutputWithPast):
    """None for whatever else a decoder reports, such as an image's states."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def fused_norm(module: Any) -> Callable[[Tensor], Tensor] | None:
    """An RMS norm by torch's fused function: the same numbers in one operation instead of six."""
    if not (type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")):
        return None
    weight, eps = module.weight, float(module.variance_epsilon)
    return lambda x: F.rms_norm(x, weight.shape, weight, eps)
