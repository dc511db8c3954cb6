"""A compressor's fields as the bytes that travel: floats as they are, integers in as few bits as they need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from training.bilevel.compressors import Field


def pack(fields: Sequence[torch.Tensor], layout: Sequence[Field]) -> np.ndarray:
    """uint8 [n, bytes] of fields [n, size]; each field fills whole bytes."""
    return np.concatenate([_to_bytes(field.numpy(), one) for field, one in zip(fields, layout, strict=True)], axis=1)


def unpack(buffer: np.ndarray, layout: Sequence[Field], dtype: torch.dtype) -> list[torch.Tensor]:
    """The fields [n, size] of a buffer [n, bytes], floats of them of ``dtype``."""
    ends = np.cumsum([packed_bytes([one]) for one in layout])[:-1]
    return [_from_bytes(part, one, dtype) for part, one in zip(np.split(buffer, ends, axis=1), layout, strict=True)]


def packed_bytes(layout: Sequence[Field]) -> int:
    return sum((one.size * one.bits + 7) // 8 for one in layout)


def _to_bytes(field: np.ndarray, layout: Field) -> np.ndarray:
    if layout.floats:
        return np.ascontiguousarray(field).view(np.uint8)
    bits = field[..., None] >> np.arange(layout.bits)[::-1] & 1
    return np.packbits(bits.reshape(len(field), -1).astype(np.uint8), axis=1)


def _from_bytes(part: np.ndarray, layout: Field, dtype: torch.dtype) -> torch.Tensor:
    if layout.floats:
        return torch.from_numpy(np.ascontiguousarray(part)).view(dtype)
    bits = np.unpackbits(part, axis=1, count=layout.size * layout.bits).reshape(len(part), layout.size, layout.bits)
    return torch.from_numpy(bits.astype(np.int64) @ (1 << np.arange(layout.bits, dtype=np.int64)[::-1]))
