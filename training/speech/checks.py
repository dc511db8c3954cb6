"""Claims that hold for any data, computed on a small recogniser and random frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
import torch

from training.speech.features import mel_energies
from training.speech.model import Recogniser, info_nce
from training.speech.penalty import joint_gradients


class Claim(TypedDict):
    expected: float
    got: float
    holds: bool


def small(seed: int = 0) -> tuple[Recogniser, torch.Tensor, torch.Tensor]:
    """A recogniser of 5 tokens with L_sup and L_unsup on frames of noise."""
    torch.manual_seed(seed)
    model = Recogniser("bilstm", 16, 1, tokens=5)
    lengths, target_lengths = torch.tensor([40, 32]), torch.tensor([3, 2])
    upper = model.supervised_loss(torch.randn(2, 40, 40), lengths, torch.tensor([1, 2, 3, 4, 1]), target_lengths)
    return model, upper, model.unsupervised_loss(torch.randn(3, 24, 40), torch.randn(3, 12, 40))


def _gradient(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])


def gradients(gamma: float) -> dict[str, torch.Tensor]:
    """Flat gradients of the joint step, by part of the model."""
    model, upper, lower = small()
    parts = {"theta": list(model.encoder.parameters()), "phi": list(model.ctc.parameters())}
    parts["psi"] = list(model.cpc.parameters())
    joint_gradients(upper, lower, gamma, theta=parts["theta"], phi=parts["phi"], psi=parts["psi"])
    return {name: _gradient(parameters) for name, parameters in parts.items()}


def alone(loss: int) -> dict[str, torch.Tensor]:
    """The same for one loss, by backward(): 0 is L_sup and 1 is L_unsup. Empty for parts that it does not reach."""
    model, *losses = small()
    losses[loss].backward()
    parts = {"theta": model.encoder, "phi": model.ctc, "psi": model.cpc}
    empty = torch.empty(0)
    return {
        name: _gradient(list(part.parameters())) if any(p.grad is not None for p in part.parameters()) else empty
        for name, part in parts.items()
    }


def penalty_has_a_gradient() -> Claim:
    """∇θ of the joint step at γ = 1 less ∇θ at γ = 0 is ∇θ L_unsup. It is 0 for a penalty that is added as a number."""
    part = gradients(1.0)["theta"] - gradients(0.0)["theta"]
    expected = float(alone(1)["theta"].norm())
    got = float(part.norm())
    return {"expected": expected, "got": got, "holds": got > 0 and abs(got - expected) < 1e-4 * expected}


def gamma_zero_is_supervised() -> Claim:
    joint, supervised = gradients(0.0), alone(0)
    got = max(float((joint[name] - supervised[name]).abs().max()) for name in ("theta", "phi"))
    return {"expected": 0.0, "got": got, "holds": got == 0}


def heads_get_their_own_loss() -> Claim:
    joint, upper, lower = gradients(1.0), alone(0), alone(1)
    got = max(float((joint[name] - loss[name]).abs().max()) for name, loss in (("phi", upper), ("psi", lower)))
    reached = len(upper["psi"]) + len(lower["phi"])
    return {"expected": 0.0, "got": got + reached, "holds": got == 0 and reached == 0}


def info_nce_of_equals() -> Claim:
    """If all N targets are equal, the loss is log N."""
    got = float(info_nce(torch.randn(12, 4), torch.ones(12, 4), 0.1))
    return {"expected": math.log(12), "got": got, "holds": abs(got - math.log(12)) < 1e-5}


def mel_of_a_tone() -> Claim:
    """The triangle of 40 with the highest energy at 1 kHz. Slaney's scale has 20 Hz at 0.3, 1 kHz at 15 and 4 kHz at
    35.16; in 41 equal steps 1 kHz is at 17.29, and the centre of triangle i at i + 1."""
    tone = torch.from_numpy(np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000).astype("float32"))
    got = int(mel_energies(tone, 8000).mean(dim=0).argmax())
    return {"expected": 16, "got": got, "holds": got == 16}


CLAIMS: dict[str, Callable[[], Claim]] = {
    "γ = 0 is supervised: largest difference of a gradient": gamma_zero_is_supervised,
    "the penalty's gradient, norm": penalty_has_a_gradient,
    "φ and ψ get their own loss alone: largest difference": heads_get_their_own_loss,
    "InfoNCE of equal targets is log N": info_nce_of_equals,
    "a tone of 1 kHz is in triangle": mel_of_a_tone,
}
