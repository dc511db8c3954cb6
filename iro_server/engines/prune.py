"""Structured pruning: a model directory whose feed-forward layers keep a share of their neurons.

The result is an ordinary model of its own: any engine runs it, a value function's backbone may read it, and value
functions of the model it came from do not fit it. Which neurons stay is decided layer by layer, as many in each, by how
strongly they write on given texts. Magnitude of weights, after arXiv:2402.15607, ruins SmolLM2
(`benchmarks/pruning.py`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from iro_server.engines.prepare import MANIFEST, ModelError, model_hash
from iro_server.engines.weights import hash_weights
from value_heads.file_modes import give_mode_of
from value_heads.whole_models import load_whole_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

READ = 256  # tokens of each text


def prune_model(source: Path, out: Path, keep: float, texts: Sequence[str]) -> Path:
    """Write ``source`` with a share ``keep`` of each layer's neurons, those that write most on ``texts``, to the new
    directory ``out``, and return it.

    ValueError for a share outside (0, 1], no text, or a model that lacks weights; ModelError where ``out`` exists, or
    the model has no gated feed-forward layers (Llama's and its like).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not 0 < keep <= 1:
        raise ValueError(f"keep is a share of the neurons, above 0 and at most 1, not {keep}")
    if not any(text.strip() for text in texts):
        raise ValueError("no texts to tell which neurons matter: give some like those that the model will see")
    if out.exists():
        raise ModelError(f"{out} exists: choose another directory")
    digest = model_hash(source)
    model = load_whole_model(AutoModelForCausalLM, source, dtype="auto")
    published = model.dtype
    tokenizer = AutoTokenizer.from_pretrained(source)
    cut(model, keep, writing(model.float(), tokenizer, texts))
    model.to(published)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        staging = Path(folder, "model")
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        manifest = {"source": f"pruned:{digest}", "keep": keep, "sha256": hash_weights(staging)}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        give_mode_of(staging / MANIFEST, staging.glob("*.safetensors"))
        shutil.move(staging, out)
    return out


def cut(model: PreTrainedModel, keep: float, scores: Sequence[Tensor]) -> None:
    """Keep the share ``keep`` of each layer's neurons with the highest ``scores`` (one [neurons] a layer)."""
    count = max(1, round(keep * model.config.intermediate_size))
    for mlp, score in zip(feed_forward(model), scores, strict=True):
        kept_neurons = score.topk(count).indices.sort().values
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight, linear.out_features = nn.Parameter(linear.weight[kept_neurons].clone()), count
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias[kept_neurons].clone())
        down = mlp.down_proj
        down.weight, down.in_features = nn.Parameter(down.weight[:, kept_neurons].clone()), count
    model.config.intermediate_size = count


def feed_forward(model: PreTrainedModel) -> list[Any]:
    """The gated feed-forward parts of all layers; ModelError where there are none."""
    layers: list[Any] = [getattr(layer, "mlp", None) for layer in getattr(model.base_model, "layers", [])]
    if not layers or not all(hasattr(mlp, name) for mlp in layers for name in ("gate_proj", "up_proj", "down_proj")):
        raise ModelError(f"{model.config.model_type} has no gated feed-forward layers to prune")
    return layers


@torch.no_grad()
def writing(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Tensor]:
    """ "activation" of each neuron, [neurons] a layer, over the first tokens of ``texts``."""
    layers = feed_forward(model)
    squares = [torch.zeros(mlp.down_proj.in_features) for mlp in layers]

    def count(layer: int, _module: nn.Module, inputs: tuple[Tensor]) -> None:
        squares[layer] += inputs[0].square().sum((0, 1))

    hooks = [mlp.down_proj.register_forward_pre_hook(partial(count, layer)) for layer, mlp in enumerate(layers)]
    for text in texts:
        if ids := tokenizer(text)["input_ids"][:READ]:
            model.base_model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return [s.sqrt() * mlp.down_proj.weight.norm(dim=0) for s, mlp in zip(squares, layers, strict=True)]
