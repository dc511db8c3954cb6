"""Structured magnitude pruning: a model directory whose feed-forward layers keep their largest neurons.

The result is an ordinary model of its own: any engine runs it, a value function's backbone may read it, and value
functions of the model it came from do not fit it. Which neurons are kept is decided layer by layer, as many in each.
From arXiv:2402.15607, whose neurons are rows of one matrix; the magnitude of a gated neuron is our reconstruction.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iro_server.engines.prepare import MANIFEST, ModelError, hash_weights, model_hash

Criterion = Literal["magnitude", "random"]


def prune_model(source: Path, out: Path, keep: float, criterion: Criterion = "magnitude", seed: int = 0) -> Path:
    """Write ``source`` with a share ``keep`` of each layer's neurons to the new directory ``out``, and return it.

    ``criterion`` "random" is what magnitude is to be compared with. ValueError for a share outside (0, 1]; ModelError
    where ``out`` exists, or the model has no gated feed-forward layers (Llama's and its like).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not 0 < keep <= 1:
        raise ValueError(f"keep is a share of the neurons, above 0 and at most 1, not {keep}")
    if out.exists():
        raise ModelError(f"{out} exists: choose another directory")
    digest = model_hash(source)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    prune(model, keep, criterion, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        staging = Path(folder, "model")
        model.save_pretrained(staging)
        AutoTokenizer.from_pretrained(source).save_pretrained(staging)
        made = {"source": f"pruned:{digest}", "keep": keep, "criterion": criterion, "seed": seed}
        (staging / MANIFEST).write_text(json.dumps(made | {"sha256": hash_weights(staging)}, indent=2) + "\n")
        shutil.move(staging, out)
    return out


def prune(model: Any, keep: float, criterion: Criterion = "magnitude", seed: int = 0) -> None:
    """Cut every feed-forward layer of ``model`` to a share of its neurons. Arguments and errors as ``prune_model``."""
    layers: list[Any] = [getattr(layer, "mlp", None) for layer in getattr(model.base_model, "layers", [])]
    if not layers or not all(hasattr(mlp, name) for mlp in layers for name in ("gate_proj", "up_proj", "down_proj")):
        raise ModelError(f"{model.config.model_type} has no gated feed-forward layers to prune")
    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(keep * model.config.intermediate_size))
    for mlp in layers:
        size = (
            magnitude(mlp) if criterion == "magnitude" else torch.rand(mlp.gate_proj.out_features, generator=generator)
        )
        kept = size.topk(count).indices.sort().values
        for name in ("gate_proj", "up_proj"):
            linear = getattr(mlp, name)
            linear.weight, linear.out_features = nn.Parameter(linear.weight[kept].clone()), count
        down = mlp.down_proj
        down.weight, down.in_features = nn.Parameter(down.weight[:, kept].clone()), count
    model.config.intermediate_size = count


@torch.no_grad()
def magnitude(mlp: Any) -> Tensor:
    """Of each neuron [neurons]: the Euclidean norm of all weights that it alone has."""
    squares = sum(part.square().sum(1) for part in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T))
    return squares.sqrt()  # type: ignore[union-attr]
