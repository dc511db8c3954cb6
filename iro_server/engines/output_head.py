"""The output head of a model directory, without the rest of the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from iro_server.engines.embedding import read_embedding
from iro_server.engines.weights import read_tensor, tensor_names

AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Fields of configurations that change logits once the head has computed them."""


@dataclass(frozen=True, eq=False)
class OutputHead:
    """``name``: of its module in the model. ``weight_VD``: float32, the head's row of each token. ``state_length``: the
    length of the states that it reads, roughly: that of the last norm's weights."""

    name: str
    weight_VD: Tensor
    state_length: float


def read_output_head(model_dir: Path) -> OutputHead:
    """ValueError where the logits are not the head's own product with its rows."""
    config = AutoConfig.from_pretrained(model_dir)
    text_config = config.get_text_config(decoder=True)
    if changes := [name for name in AFTER_HEAD if getattr(text_config, name, None) not in (None, 1.0)]:
        raise ValueError(f"{model_dir}: the model changes its logits after the output head ({', '.join(changes)})")
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    stored = any(tensor.endswith(f"{name}.weight") for tensor in tensor_names(model_dir))
    weight = read_tensor(model_dir, f"{name}.weight") if stored else read_embedding(model_dir).weight
    return OutputHead(name, weight.detach().float(), _state_length(model, model_dir, weight.shape[1]))


def _state_length(model: Any, model_dir: Path, width: int) -> float:
    """That of a norm without weights where no other's are here."""
    files = tensor_names(model_dir)
    norms = final_norms(model, width)
    stored = [name for name in norms if name in files and (model_dir / files[name]).exists()]
    return float(read_tensor(model_dir, stored[-1]).float().norm()) if stored else width**0.5


def final_norms(model: Any, width: int) -> dict[str, Tensor]:
    """Weights of norms outside the model's layers, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.shape == (width,) and name.endswith("norm.weight") and ".layers." not in name
    }
