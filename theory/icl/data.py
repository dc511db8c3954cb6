"""In-context classification data: x = μ_j + κν_k, a task (a, b), labels ±q (arXiv:2402.15607).

Coordinates: a column is [x; y] in R^(d + d_y). The M1 in-domain-relevant (IDR) patterns μ are β times the axes
0 … M1−1, the M2 irrelevant (IDI) ones ν β times the axes M1 … M1+M2−1, and q is the first axis of the y part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from theory.patterns import orthonormal_combinations


@dataclass(frozen=True)
class Data:
    """M1, M2, dimensions, β, the range of κ ~ U(−kappa, kappa)."""

    M1: int = 6
    M2: int = 24
    d: int = 30
    d_y: int = 10
    beta: float = 3.0
    kappa: float = 0.5

    def __post_init__(self) -> None:
        if self.d < self.M1 + self.M2:
            raise ValueError(
                f"d={self.d} is smaller than the {self.M1} + {self.M2} patterns, which must be orthogonal: "
                f"give d >= {self.M1 + self.M2}"
            )
        if self.M1 < 3:
            raise ValueError(f"M1={self.M1} leaves no pattern beside a task's two: give M1 >= 3")

    @property
    def width(self) -> int:
        return self.d + self.d_y


@dataclass(frozen=True)
class Batch:
    """Prompts by index, the query last: relevant and irrelevant pattern, κ, label ±1, each [..., l+1].

    ``live`` [..., l] bool: the example exists.
    """

    relevant: Tensor
    irrelevant: Tensor
    kappa: Tensor
    label: Tensor
    live: Tensor


def tasks(M1: int, count: int) -> tuple[Tensor, Tensor]:
    """Training tasks [count, 2] and unseen ones [M1(M1−1) − count, 2]: ordered pairs (a, b).

    They come in rounds b = a + 1, a + 2, … (mod M1): if ``count`` is a multiple of M1, every pattern is equally often
    positive and negative, as the theory requires.
    """
    if not M1 <= count < M1 * (M1 - 1):
        raise ValueError(f"{count} training tasks of {M1 * (M1 - 1)}: give at least M1={M1} and leave some unseen")
    pairs = torch.tensor([[a, (a + gap) % M1] for gap in range(1, M1) for a in range(M1)])
    return pairs[:count], pairs[count:]


def draw(
    generator: torch.Generator,
    data: Data,
    pairs: Tensor,
    lengths: Tensor,
    alphas: Tensor,
    batch: int,
    relevant: int = 0,
) -> Batch:
    """Prompts [R, batch, l+1] for R runs, of tasks drawn from ``pairs`` [T, 2]. ``lengths`` [R], ``alphas`` [R].

    An example has μ_a (label 1) or μ_b (label −1) with probability α/2 each; else another of the ``relevant`` patterns
    (M1 by default) and a random label. The query has μ_a or μ_b.
    """
    patterns = relevant or data.M1
    shape = (len(lengths), batch, int(lengths.max()) + 1)
    pattern_table, label_table = (table.flatten() for table in _examples(pairs, patterns))
    kinds = 2 * patterns - 2
    task = torch.randint(len(pairs), shape[:2], generator=generator)
    alpha = alphas[:, None, None]
    # One uniform number chooses an example: below α one of the task's two, above it one of the others.
    part = torch.rand(shape, generator=generator)
    part[..., -1] *= alphas[:, None]
    kinds_per_unit = (kinds - 2) / (1 - alpha).clamp_min(1e-9)
    other_kind = torch.addcmul(2 - alpha * kinds_per_unit, part, kinds_per_unit)
    kind = torch.where(part < alpha, (part * (2 / alpha)).clamp_max_(1.5), other_kind.clamp_(2, kinds - 0.5)).long()
    kind = kind.add_(kinds * task[..., None]).flatten()
    part = torch.rand(shape, generator=generator) * data.M2  # the integer part is the pattern, the remainder κ
    irrelevant = part.long().clamp_max_(data.M2 - 1)
    return Batch(
        relevant=pattern_table.index_select(0, kind).view(shape),
        irrelevant=irrelevant,
        kappa=part.sub_(irrelevant).sub_(0.5).mul_(2 * data.kappa),
        label=label_table.index_select(0, kind).view(shape),
        live=(torch.arange(shape[2] - 1) < lengths[:, None, None]).expand(-1, batch, -1),
    )


def _examples(pairs: Tensor, patterns: int) -> tuple[Tensor, Tensor]:
    """The patterns and labels of every kind of example of each task [T, 2P−2]: (a, +1), (b, −1), then the others."""
    every = torch.arange(patterns).expand(len(pairs), -1)
    others = every[(every[..., None] != pairs[:, None]).all(-1)].view(len(pairs), -1, 1)
    shown = torch.cat([pairs, others.expand(-1, -1, 2).flatten(1)], dim=1)
    return shown, (1.0 - 2.0 * (torch.arange(2 * patterns - 2) % 2)).repeat(len(pairs), 1)


@dataclass(frozen=True)
class Domain:
    """The patterns a prompt's indices stand for: relevant [P, d] and irrelevant [M2, d]."""

    relevant: Tensor
    irrelevant: Tensor

    def tokens(self, batch: Batch, data: Data) -> Tensor:
        """Columns [..., l+1, d + d_y]; the query's y part is zero."""
        x = self.relevant[batch.relevant] + batch.kappa[..., None] * self.irrelevant[batch.irrelevant]
        y = torch.zeros(*x.shape[:-1], data.d_y)
        y[..., :-1, 0] = batch.label[..., :-1]
        return torch.cat([x, y], dim=-1)


def in_domain(data: Data) -> Domain:
    eye = data.beta * torch.eye(data.d)
    return Domain(eye[: data.M1], eye[data.M1 : data.M1 + data.M2])


def out_of_domain(rng: np.random.Generator, data: Data, count: int, coefficient_sum: float, kind: str) -> Domain:
    """``count`` out-of-domain-relevant (ODR) patterns, combinations of the IDR ones with coefficients summing to S_1.

    ``kind`` "orthonormal": of norm β, orthogonal to each other. "mean": S_1 (μ_i + μ_j)/2 of disjoint pairs, whose norm
    grows with S_1. The irrelevant ones are a random orthonormal basis of the IDI span.
    """
    if kind == "orthonormal":
        coefficients = orthonormal_combinations(rng, data.M1, count, coefficient_sum)
    elif 2 * count <= data.M1:
        pairs = rng.permutation(data.M1)[: 2 * count].reshape(count, 2)
        coefficients = coefficient_sum / 2 * np.eye(data.M1)[pairs].sum(axis=1)
    else:
        raise ValueError(f"{count} patterns of disjoint pairs need M1 >= {2 * count}, not {data.M1}")
    rotation, _ = np.linalg.qr(rng.standard_normal((data.M2, data.M2)))
    relevant, irrelevant = torch.zeros(count, data.d), torch.zeros(data.M2, data.d)
    relevant[:, : data.M1] = torch.as_tensor(data.beta * coefficients)
    irrelevant[:, data.M1 : data.M1 + data.M2] = torch.as_tensor(data.beta * rotation)
    return Domain(relevant, irrelevant)
