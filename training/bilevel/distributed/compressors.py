"""Lossy compression of messages (arXiv:2405.18858): an operator C on vectors [n, d], one row per agent.

An unbiased C has E C(v) = v and E‖C(v) - v‖² ≤ omega(d) ‖v‖². The sender transmits the fields of ``encode``, in the
numbers of bits of ``layout``; the receiver computes C(v) from them by ``decode``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Field(NamedTuple):
    """``size`` numbers of ``bits`` bits: unchanged floats, or integers from 0."""

    size: int
    bits: int
    floats: bool = False


class Compressor(ABC):
    """``seeds`` [n], int64: one per row; a receiver with the seed of a row draws the same numbers as its sender."""

    @property
    @abstractmethod
    def unbiased(self) -> bool: ...

    @abstractmethod
    def omega(self, d: int) -> float: ...

    @abstractmethod
    def layout(self, d: int, float_bits: int = 32) -> list[Field]:
        """The fields of one row's message, where a float takes ``float_bits``."""

    @abstractmethod
    def encode(self, vectors: torch.Tensor, seeds: torch.Tensor) -> list[torch.Tensor]:
        """The fields [n, size] of vectors [n, d]. Raises ValueError if d is less than the coordinates to send."""

    @abstractmethod
    def decode(
        self, fields: Sequence[torch.Tensor], d: int, dtype: torch.dtype, seeds: torch.Tensor
    ) -> torch.Tensor: ...

    def __call__(self, vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seeds = draw_seeds(len(vectors), generator)
        return self.decode(self.encode(vectors, seeds), vectors.shape[-1], vectors.dtype, seeds)

    def bits(self, d: int, float_bits: int = 32) -> int:
        """Bits of one row's message; a network pads each field to a whole byte."""
        return sum(field.size * field.bits for field in self.layout(d, float_bits))


@dataclass(frozen=True)
class Identity(Compressor):
    """No compression."""

    unbiased = True

    def omega(self, d: int) -> float:
        return 0.0

    def layout(self, d: int, float_bits: int = 32) -> list[Field]:
        return [Field(d, float_bits, floats=True)]

    def encode(self, vectors: torch.Tensor, seeds: torch.Tensor) -> list[torch.Tensor]:
        return [vectors]

    def decode(self, fields: Sequence[torch.Tensor], d: int, dtype: torch.dtype, seeds: torch.Tensor) -> torch.Tensor:
        return fields[0]


@dataclass(frozen=True)
class RandK(Compressor):
    """k random coordinates of each row, scaled by d/k. ``shared_seed``: the receiver draws the same indices."""

    k: int
    shared_seed: bool = False
    unbiased = True

    def omega(self, d: int) -> float:
        return d / self.k - 1

    def layout(self, d: int, float_bits: int = 32) -> list[Field]:
        return _sparse_layout(self.k, d, float_bits)[: 1 if self.shared_seed else 2]

    def encode(self, vectors: torch.Tensor, seeds: torch.Tensor) -> list[torch.Tensor]:
        _check_size(self.k, vectors.shape[-1])
        indices = self._draw(vectors.shape[-1], seeds)
        values = vectors.gather(-1, indices)
        return [values] if self.shared_seed else [values, indices]

    def decode(self, fields: Sequence[torch.Tensor], d: int, dtype: torch.dtype, seeds: torch.Tensor) -> torch.Tensor:
        indices = self._draw(d, seeds) if self.shared_seed else fields[1]
        return _scatter(fields[0], indices, d) * (d / self.k)

    def _draw(self, d: int, seeds: torch.Tensor) -> torch.Tensor:
        return uniform(seeds, d).topk(self.k).indices


@dataclass(frozen=True)
class QSGD(Compressor):
    """Rounds each |v_j| / ‖v‖ at random to one of the two nearest multiples of 1/levels. No entropy coding."""

    levels: int
    unbiased = True

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"levels: must be at least 1, not {self.levels}")

    def omega(self, d: int) -> float:
        """A bound: min(d/s², √d/s)."""
        return min(d / self.levels**2, math.sqrt(d) / self.levels)

    def layout(self, d: int, float_bits: int = 32) -> list[Field]:
        """The norm; for each coordinate a sign and a level."""
        return [Field(1, float_bits, floats=True), Field(d, 1 + self._level_bits)]

    def encode(self, vectors: torch.Tensor, seeds: torch.Tensor) -> list[torch.Tensor]:
        norms = vectors.norm(dim=-1, keepdim=True)
        scaled = torch.where(norms > 0, vectors.abs() / norms, 0) * self.levels
        lower = scaled.floor()
        level = lower + (uniform(seeds, vectors.shape[-1]) < scaled - lower)
        return [norms, level.long().clamp(max=self.levels) + ((vectors < 0).long() << self._level_bits)]

    def decode(self, fields: Sequence[torch.Tensor], d: int, dtype: torch.dtype, seeds: torch.Tensor) -> torch.Tensor:
        norms, codes = fields
        level = (codes & ((1 << self._level_bits) - 1)).to(dtype)
        return norms * torch.where(codes >> self._level_bits == 1, -level, level) / self.levels

    @property
    def _level_bits(self) -> int:
        return self.levels.bit_length()


@dataclass(frozen=True)
class Natural(Compressor):
    """Rounds each coordinate at random to one of the two nearest powers of 2: the sign and the exponent of a float."""

    unbiased = True

    def omega(self, d: int) -> float:
        return 1 / 8

    def layout(self, d: int, float_bits: int = 32) -> list[Field]:
        return [Field(d, 12 if float_bits == 64 else 9)]

    def encode(self, vectors: torch.Tensor, seeds: torch.Tensor) -> list[torch.Tensor]:
        integers, mantissa_bits, exponents = _float_format(vectors.dtype)
        bits = vectors.view(integers).long()
        fraction = (bits & ((1 << mantissa_bits) - 1)) / 2.0**mantissa_bits
        exponent = (bits >> mantissa_bits) & (exponents - 1)
        up = (uniform(seeds, vectors.shape[-1]) < fraction) & (exponent < exponents - 2)  # the last stands for infinity
        return [exponent + up + exponents * (bits < 0)]

    def decode(self, fields: Sequence[torch.Tensor], d: int, dtype: torch.dtype, seeds: torch.Tensor) -> torch.Tensor:
        integers, mantissa_bits, _ = _float_format(dtype)
        return (fields[0] << mantissa_bits).to(integers).view(dtype)


@dataclass(frozen=True)
class TopK(Compressor):
    """The k largest coordinates by magnitude, unscaled. Biased: ‖C(v) - v‖² ≤ (1 - k/d) ‖v‖²."""

    k: int
    unbiased = False

    def omega(self, d: int) -> float:
        return 1 - self.k / d

    def layout(self, d: int, float_bits: int = 32) -> list[Field]:
        return _sparse_layout(self.k, d, float_bits)

    def encode(self, vectors: torch.Tensor, seeds: torch.Tensor) -> list[torch.Tensor]:
        _check_size(self.k, vectors.shape[-1])
        indices = vectors.abs().topk(self.k).indices
        return [vectors.gather(-1, indices), indices]

    def decode(self, fields: Sequence[torch.Tensor], d: int, dtype: torch.dtype, seeds: torch.Tensor) -> torch.Tensor:
        return _scatter(fields[0], fields[1], d)


@dataclass(frozen=True)
class MultiStep(Compressor):
    """MSC: ``inner`` compresses the residual, ``rounds`` times. v⁰ = 0, vʳ⁺¹ = vʳ + δ C(v - vʳ).

    An unbiased C with variance ω has δ = 1/(1 + ω), and vᴿ is divided by 1 - qᴿ, q = ω/(1 + ω), which makes it unbiased
    with variance qᴿ/(1 - qᴿ). A biased C has δ = 1, and its factor shrinks the residual in each round. The scaling is a
    reconstruction.
    """

    inner: Compressor
    rounds: int

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds: must be at least 1, not {self.rounds}")

    @property
    def unbiased(self) -> bool:
        return self.inner.unbiased

    def omega(self, d: int) -> float:
        residual = self._residual_factor(d)
        return residual / (1 - residual) if self.unbiased else residual

    def layout(self, d: int, float_bits: int = 32) -> list[Field]:
        return self.inner.layout(d, float_bits) * self.rounds

    def encode(self, vectors: torch.Tensor, seeds: torch.Tensor) -> list[torch.Tensor]:
        d, message, residual = vectors.shape[-1], [], vectors
        for seed in self._seeds(seeds):
            fields = self.inner.encode(residual, seed)
            residual = residual - self._delta(d) * self.inner.decode(fields, d, vectors.dtype, seed)
            message += fields
        return message

    def decode(self, fields: Sequence[torch.Tensor], d: int, dtype: torch.dtype, seeds: torch.Tensor) -> torch.Tensor:
        size = len(fields) // self.rounds
        parts = [
            self.inner.decode(fields[r * size : (r + 1) * size], d, dtype, seed)
            for r, seed in enumerate(self._seeds(seeds))
        ]
        return self._delta(d) / (1 - self._residual_factor(d) if self.unbiased else 1) * torch.stack(parts).sum(0)

    def _delta(self, d: int) -> float:
        return 1 / (1 + self.inner.omega(d)) if self.unbiased else 1.0

    def _residual_factor(self, d: int) -> float:
        omega = self.inner.omega(d)
        return float((omega / (1 + omega) if self.unbiased else omega) ** self.rounds)

    def _seeds(self, seeds: torch.Tensor) -> Iterator[torch.Tensor]:
        return (seeds + r for r in range(self.rounds))


def draw_seeds(rows: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(2**63 - 1, (rows,), generator=generator)


def uniform(seeds: torch.Tensor, d: int) -> torch.Tensor:
    """[n, d] in [0, 1), float64: each row is a function of its seed, by the SplitMix64 generator.

    One process draws all rows at once and several processes draw their rows separately, with the same result. Torch's
    generators offer either, but not both.
    """
    state = seeds[:, None] + _signed(0x9E3779B97F4A7C15) * torch.arange(1, d + 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ _shifted(state, shift)) * _signed(factor)
    return _shifted(state ^ _shifted(state, 31), 11).double() * 2.0**-53


def index_bits(d: int) -> int:
    """⌈log₂ d⌉: bits of an index among d coordinates."""
    return (d - 1).bit_length()


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _shifted(words: torch.Tensor, by: int) -> torch.Tensor:
    return (words >> by) & ((1 << (64 - by)) - 1)  # >> alone would repeat the sign


def _check_size(k: int, d: int) -> None:
    if not 1 <= k <= d:
        raise ValueError(f"k: must be between 1 and the {d} coordinates of a message, not {k}")


def _sparse_layout(k: int, d: int, float_bits: int) -> list[Field]:
    return [Field(k, float_bits, floats=True), Field(k, index_bits(d))]


def _scatter(values: torch.Tensor, indices: torch.Tensor, d: int) -> torch.Tensor:
    return values.new_zeros(len(values), d).scatter(-1, indices, values)


def _float_format(dtype: torch.dtype) -> tuple[torch.dtype, int, int]:
    """The integer type of a float's size, the bits of its mantissa, and the number of its exponents."""
    if dtype == torch.float64:
        return torch.int64, 52, 2048
    if dtype == torch.float32:
        return torch.int32, 23, 256
    raise ValueError(f"natural compression takes float32 or float64, not {dtype}")
