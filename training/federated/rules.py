"""Server rules: from a buffer of client updates and the state of the rule to new parameters.

Parameters are a flat vector x [P]; `Layout` packs a state dict into one. A rule is frozen settings with two pure
functions, ``init(params) -> state`` and ``step(state, params, buffer) -> (state, params)``; neither changes its
arguments. A state is a dict of tensors and numbers, as checkpoints hold it. Δ_i = x_{t-τ,K} - x_{t-τ} is the change by
client i in K local steps; the staleness τ counts server rounds.

FADAS: Wang et al., "FADAS: Towards Federated Adaptive Asynchronous Optimization", ICML 2024 (arXiv:2407.18365).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from training.run import check_names

log = logging.getLogger(__name__)

RuleState = dict[str, Any]  # tensors and numbers


@dataclass(frozen=True)
class Update:
    """The ``delta`` [P] of one client, trained from ``start`` [P], a model ``staleness`` rounds old.

    ``examples``: the number of its training examples.
    """

    client: int
    delta: Tensor
    start: Tensor
    staleness: int = 0
    examples: int = 1


class Rule(Protocol):
    def init(self, params: Tensor) -> RuleState: ...

    def step(self, state: RuleState, params: Tensor, buffer: Sequence[Update]) -> tuple[RuleState, Tensor]: ...


@dataclass(frozen=True)
class Adaptive:
    """AMSGrad, or Adam, on the mean Δ of the buffer: FADAS, and FedAMS and FedAdam where nothing is stale.

    m = β₁m + (1-β₁)Δ; v = β₂v + (1-β₂)Δ²; v̂ = max(v̂, v), or v without ``amsgrad``; x⁺ = x + η_t m/(√v̂ + ε).
    ``delay`` selects η_t when the largest staleness of the buffer τ_max exceeds ``threshold`` τ_c: "none" η; "min"
    min(η, 1/τ_max), of the paper; "divide" η/τ_max, of the official code. ``bias_correction``: m and v̂ are divided by
    1-β₁^t and 1-β₂^t, as in the official code and unlike the paper.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    amsgrad: bool = True
    bias_correction: bool = True
    delay: Literal["none", "min", "divide"] = "none"
    threshold: int = 1

    def init(self, params: Tensor) -> RuleState:
        """``rounds`` t, ``bound`` (the number of rounds in which delay lowered the step), m, v and v̂ [P], all zero."""
        return {"rounds": 0, "bound": 0} | {name: torch.zeros_like(params) for name in ("m", "v", "v_max")}

    def rate(self, staleness: int) -> float:
        """η_t for a buffer of this largest ``staleness``, in rounds."""
        if self.delay == "none" or staleness <= self.threshold:
            return self.lr
        return min(self.lr, 1 / staleness) if self.delay == "min" else self.lr / staleness

    def step(self, state: RuleState, params: Tensor, buffer: Sequence[Update]) -> tuple[RuleState, Tensor]:
        rounds, (beta1, beta2), delta = state["rounds"] + 1, self.betas, mean_delta(buffer)
        m = beta1 * state["m"] + (1 - beta1) * delta
        v = beta2 * state["v"] + (1 - beta2) * delta.square()
        v_max = torch.maximum(state["v_max"], v) if self.amsgrad else v
        oldest = max(update.staleness for update in buffer)
        rate = self.rate(oldest)
        bound = rate < self.lr
        if bound:
            log.info("round %d: staleness %d lowers the server's step from %g to %g", rounds, oldest, self.lr, rate)
        first, second = (1 - beta1**rounds, 1 - beta2**rounds) if self.bias_correction else (1.0, 1.0)
        moved = params + (rate / first) * m / (v_max.sqrt() / math.sqrt(second) + self.eps)
        return {"rounds": rounds, "bound": state["bound"] + bound, "m": m, "v": v, "v_max": v_max}, moved


@dataclass(frozen=True)
class FedBuff:
    """x⁺ = x + η·mean Δ (Nguyen et al., AISTATS 2022, without its optional weights by staleness)."""

    lr: float = 1.0

    def init(self, params: Tensor) -> RuleState:
        return {}

    def step(self, state: RuleState, params: Tensor, buffer: Sequence[Update]) -> tuple[RuleState, Tensor]:
        return state, params + self.lr * mean_delta(buffer)


@dataclass(frozen=True)
class FedAvg:
    """x⁺ = x + η Σ(n_i/n)Δ_i, n_i the client's examples (McMahan et al., AISTATS 2017, where η = 1)."""

    lr: float = 1.0

    def init(self, params: Tensor) -> RuleState:
        return {}

    def step(self, state: RuleState, params: Tensor, buffer: Sequence[Update]) -> tuple[RuleState, Tensor]:
        examples = params.new_tensor([update.examples for update in buffer])
        return state, params + self.lr * (examples / examples.sum()) @ torch.stack([update.delta for update in buffer])


@dataclass(frozen=True)
class FedAsync:
    """x⁺ = (1-a_τ)x + a_τ x_i for each client's model x_i in turn, a_τ = a(1+τ)^-p (Xie et al., arXiv:1903.03934).

    ``power`` p: 0 is a constant a; the polynomial form of that paper has p > 0.
    """

    mix: float = 0.5
    power: float = 0.0

    def init(self, params: Tensor) -> RuleState:
        return {}

    def step(self, state: RuleState, params: Tensor, buffer: Sequence[Update]) -> tuple[RuleState, Tensor]:
        for update in buffer:
            mix = self.mix * (1 + update.staleness) ** -self.power
            params = (1 - mix) * params + mix * (update.start + update.delta)
        return state, params


@dataclass(frozen=True)
class CA2FL:
    """x⁺ = x + η(h̄ + mean over the buffer of (Δ_i - h_i)), then h_i = Δ_i (Wang et al., ICLR 2024).

    h_i is the last Δ of each of ``clients`` clients, zero before the first, and h̄ the mean of all. Where a client is in
    the buffer twice, both its differences are from the h_i before the round and its later Δ stays (reconstruction).
    """

    clients: int
    lr: float = 1.0

    def init(self, params: Tensor) -> RuleState:
        """h [clients, P]: memory grows with the number of clients."""
        return {"h": params.new_zeros(self.clients, *params.shape)}

    def step(self, state: RuleState, params: Tensor, buffer: Sequence[Update]) -> tuple[RuleState, Tensor]:
        h = state["h"]
        clients = [update.client for update in buffer]
        moved = params + self.lr * (h.mean(0) + mean_delta(buffer) - h[clients].mean(0))
        h = h.clone()
        for update in buffer:
            h[update.client] = update.delta
        return {"h": h}, moved


@dataclass(frozen=True)
class MeanOfBuffers:
    """``rule`` on the first ``parameters`` values; the rest, a model's buffers, move by the mean Δ of the buffer.

    A step of Adam on a running variance may make it negative. Reconstruction: the paper is silent about buffers.
    """

    rule: Rule
    parameters: int

    def init(self, params: Tensor) -> RuleState:
        return self.rule.init(params[: self.parameters])

    def step(self, state: RuleState, params: Tensor, buffer: Sequence[Update]) -> tuple[RuleState, Tensor]:
        count = self.parameters
        trained = [replace(update, delta=update.delta[:count], start=update.start[:count]) for update in buffer]
        state, moved = self.rule.step(state, params[:count], trained)
        return state, torch.cat([moved, params[count:] + mean_delta(buffer)[count:]])


# By name, with the official steps of FADAS (CIFAR-10) as defaults. FedAMS is FADAS with synchronous clients.
RULES: dict[str, Callable[..., Rule]] = {
    "fadas": Adaptive,
    "fadas-min": partial(Adaptive, lr=1e-3, delay="min"),
    "fadas-divide": partial(Adaptive, lr=1e-3, delay="divide"),
    "fedbuff": FedBuff,
    "fedasync": FedAsync,
    "ca2fl": CA2FL,
    "fedadam": partial(Adaptive, amsgrad=False),
    "fedams": Adaptive,
    "fedavg": FedAvg,
}


def make_rule(name: str, step: float, clients: int) -> Rule:
    """The rule ``name`` of RULES with this server step: ``mix`` of FedAsync (with power ½), ``lr`` of the others.

    Raises ValueError for a name that RULES lacks.
    """
    check_names([name], RULES, "rule")
    if name == "fedasync":
        return RULES[name](mix=step, power=0.5)
    return RULES[name](lr=step, **({"clients": clients} if name == "ca2fl" else {}))


def mean_delta(buffer: Sequence[Update]) -> Tensor:
    return torch.stack([update.delta for update in buffer]).mean(0)


def rejection(update: Update, params: Tensor, max_staleness: float = math.inf) -> str | None:
    """Why the server must reject ``update``, or None. The rules themselves check nothing."""
    delta: object = update.delta  # untrusted
    if not isinstance(delta, Tensor):
        return f"the update is a {type(delta).__name__}, not a tensor"
    if delta.shape != params.shape:
        return f"the update has shape {tuple(delta.shape)}, the model {tuple(params.shape)}"
    if delta.dtype != params.dtype:
        return f"the update is {delta.dtype}, the model {params.dtype}"
    wrong = int((~delta.isfinite()).sum())
    if wrong:
        return f"{wrong} of {delta.numel()} values are not finite"
    if update.examples < 1:
        return f"{update.examples} examples: at least 1 is needed"
    if update.staleness > max_staleness:
        return f"{update.staleness} rounds old, more than {max_staleness:g}"
    return None


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a state dict's tensors, in their order in one vector [P] of one dtype."""

    shapes: Mapping[str, torch.Size]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        return cls({name: tensor.shape for name, tensor in tensors.items()})

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """[P]. Raises ValueError for other names or shapes than the layout's."""
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        for name in sorted(self.shapes.keys() | shapes.keys()):
            if shapes.get(name) != self.shapes.get(name):
                sent, needed = (_shape(layout.get(name)) for layout in (shapes, self.shapes))
                raise ValueError(f"tensor {name!r}: {sent} was sent, {needed} is needed")
        return torch.cat([tensors[name].reshape(-1) for name in self.shapes])

    def unpack(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of ``vector`` [P] under their names and shapes."""
        parts = vector.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def _shape(shape: torch.Size | None) -> str:
    return "nothing" if shape is None else f"shape {tuple(shape)}"
