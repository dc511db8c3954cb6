"""Lossy messages of fewer bits (arXiv:2405.18858): an operator C on vectors [n, d], a row an agent, each on its own.

An unbiased C has E C(v) = v and E‖C(v) - v‖² ≤ omega(d) ‖v‖². ``bits(d)`` is what one row costs to send.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

FLOAT_BITS = 32


class Compressor(Protocol):
    @property
    def unbiased(self) -> bool: ...

    def __call__(self, vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor: ...

    def omega(self, d: int) -> float: ...

    def bits(self, d: int) -> int: ...


@dataclass(frozen=True)
class RandK:
    """k coordinates drawn anew for each row, scaled by d/k. ``shared_seed``: the receiver draws the same, unsent."""

    k: int
    shared_seed: bool = False
    unbiased = True

    def __call__(self, vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        _check_kept(self.k, vectors.shape[-1])
        kept = torch.rand(vectors.shape, generator=generator).topk(self.k).indices
        return _keep(vectors, kept) * (vectors.shape[-1] / self.k)

    def omega(self, d: int) -> float:
        return d / self.k - 1

    def bits(self, d: int) -> int:
        return self.k * (FLOAT_BITS + (0 if self.shared_seed else index_bits(d)))


@dataclass(frozen=True)
class QSGD:
    """Each |v_j| / ‖v‖ to one of the two nearest multiples of 1/levels, at random."""

    levels: int
    unbiased = True

    def __call__(self, vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        norms = vectors.norm(dim=-1, keepdim=True)
        scaled = torch.where(norms > 0, vectors.abs() / norms, 0) * self.levels
        lower = scaled.floor()
        up = torch.rand(vectors.shape, generator=generator, dtype=vectors.dtype) < scaled - lower
        return norms * vectors.sign() * (lower + up) / self.levels

    def omega(self, d: int) -> float:
        """A bound: min(d/s², √d/s)."""
        return min(d / self.levels**2, math.sqrt(d) / self.levels)

    def bits(self, d: int) -> int:
        """The norm, and for each coordinate a sign and a level; without entropy coding."""
        return FLOAT_BITS + d * (1 + math.ceil(math.log2(self.levels + 1)))


@dataclass(frozen=True)
class Natural:
    """Each coordinate to one of the two nearest powers of 2, at random: a float's sign and exponent alone."""

    unbiased = True

    def __call__(self, vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        mantissa, exponent = torch.frexp(vectors.abs())  # mantissa in [1/2, 1), or 0
        up = torch.rand(vectors.shape, generator=generator, dtype=vectors.dtype) < 2 * mantissa - 1
        power = torch.ldexp(torch.ones_like(vectors), exponent - 1 + up.to(exponent.dtype))
        return torch.where(mantissa > 0, vectors.sign() * power, 0)

    def omega(self, d: int) -> float:
        return 1 / 8

    def bits(self, d: int) -> int:
        return 9 * d


@dataclass(frozen=True)
class TopK:
    """The k largest coordinates by magnitude, as they are. Biased: ‖C(v) - v‖² ≤ (1 - k/d) ‖v‖²."""

    k: int
    unbiased = False

    def __call__(self, vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        _check_kept(self.k, vectors.shape[-1])
        return _keep(vectors, vectors.abs().topk(self.k).indices)

    def omega(self, d: int) -> float:
        return 1 - self.k / d

    def bits(self, d: int) -> int:
        return self.k * (FLOAT_BITS + index_bits(d))


def index_bits(d: int) -> int:
    """⌈log₂ d⌉: what names one of d coordinates."""
    return (d - 1).bit_length()


def _check_kept(k: int, d: int) -> None:
    if not 1 <= k <= d:
        raise ValueError(f"k: must be between 1 and the {d} coordinates of a message, not {k}")


def _keep(vectors: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(vectors).scatter(-1, indices, vectors.gather(-1, indices))
