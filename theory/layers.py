"""A small GPT-2-style transformer, trained for many runs at once by torch.func.vmap over a leading run axis.

Pre-norm blocks of multi-head attention and a GELU layer; the output is read at the last column. Columns contain their
position codes. Training uses Adam (reconstruction: the papers do not describe the training of their deeper models).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Parameters = dict[str, Tensor]
TrainingState = dict[str, Any]  # "parameters": Parameters, "adam": the optimiser's state
Sample = tuple[Tensor, Tensor, Tensor]  # tokens [R, B, L, inputs], live [R, B, L], target [R, B, …]


@dataclass(frozen=True)
class Shape:
    inputs: int
    outputs: int
    width: int = 64
    heads: int = 2
    layers: int = 3


def start(shape: Shape, runs: int, seed: int) -> Parameters:
    """GPT-2's initial weights, normal with scale 0.02, residual maps divided by √(2·layers); [R, …] each."""
    generator = torch.Generator().manual_seed(seed)
    w = shape.width

    def normal(*size: int, scale: float = 0.02) -> Tensor:
        return scale * torch.randn((runs, *size), generator=generator)

    parameters = {"embed": normal(shape.inputs, w, scale=shape.inputs**-0.5), "out": normal(w, shape.outputs)}
    for layer in range(shape.layers):
        residual = 0.02 / (2 * shape.layers) ** 0.5
        parameters |= {
            f"{layer}.qkv": normal(w, 3 * w),
            f"{layer}.merge": normal(w, w, scale=residual),
            f"{layer}.up": normal(w, 4 * w),
            f"{layer}.down": normal(4 * w, w, scale=residual),
        }
    return parameters


def forward(shape: Shape, parameters: Parameters, tokens: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """Output [B, outputs] at the last column and its attention [layers, B, L], the mean over heads, of one run.

    tokens [B, L, inputs]; live [B, L]: which columns exist. In the last layer only the last column is a query.
    """
    stream, attentions = tokens @ parameters["embed"], []
    for layer in range(shape.layers):
        is_last = layer == shape.layers - 1
        mixed, weights = _attend(shape, parameters[f"{layer}.qkv"], _norm(stream), live, is_last)
        stream = (stream[:, -1:] if is_last else stream) + mixed @ parameters[f"{layer}.merge"]
        hidden = F.gelu(_norm(stream) @ parameters[f"{layer}.up"], approximate="tanh")
        stream = stream + hidden @ parameters[f"{layer}.down"]
        attentions.append(weights[:, :, -1].mean(1))
    return _norm(stream[:, -1]) @ parameters["out"], torch.stack(attentions)


def _norm(stream: Tensor) -> Tensor:
    return F.layer_norm(stream, stream.shape[-1:])


def _attend(shape: Shape, qkv: Tensor, stream: Tensor, live: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    """Mixed values [B, L or 1, width] and weights [B, heads, L or 1, L]."""
    B, L, width = stream.shape
    q, k, v = (part.reshape(B, L, shape.heads, -1).transpose(1, 2) for part in (stream @ qkv).chunk(3, dim=-1))
    q = q[:, :, -1:] if last else q
    logits = q @ k.mT / k.shape[-1] ** 0.5
    weights = torch.where(live[:, None, None], logits, -1e9).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(B, -1, width), weights


def train(
    shape: Shape,
    state: TrainingState,
    sample: Callable[[int], Sample],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    begin: int,
    end: int,
    record: Callable[[int, Tensor, Tensor], None],
    rate: float,
) -> TrainingState:
    """The state after Adam steps begin … end−1 from ``state``.

    ``loss_of(output, target)`` gives [R]; ``record(step, loss [R], attention [R, layers, B, L])``.
    """
    trainable = {name: parameter.clone().requires_grad_() for name, parameter in state["parameters"].items()}
    adam = torch.optim.Adam(trainable.values(), lr=rate)
    if state["adam"]:
        adam.load_state_dict(state["adam"])
    forward_runs = torch.func.vmap(lambda parameters, tokens, live: forward(shape, parameters, tokens, live))
    for step in range(begin, end):
        tokens, live, target = sample(step)
        output, attention = forward_runs(trainable, tokens, live)
        loss = loss_of(output, target)
        adam.zero_grad()
        loss.sum().backward()  # runs share no parameters
        adam.step()
        record(step, loss.detach(), attention.detach())
    return {
        "parameters": {name: parameter.detach() for name, parameter in trainable.items()},
        "adam": adam.state_dict(),
    }
