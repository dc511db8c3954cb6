"""A compressor's fields as bytes: floats unchanged, integers in the fewest bits that hold them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from training.bilevel.distributed.compressors import Field


def pack(fields: Sequence[torch.Tensor], layout: Sequence[Field]) -> np.ndarray:
    """uint8 [n, bytes] of fields [n, size]; each field fills a whole number of bytes."""
    return np.concatenate([_to_bytes(values.numpy(), field) for values, field in zip(fields, layout, strict=True)], 1)


def unpack(buffer: np.ndarray, layout: Sequence[Field], dtype: torch.dtype) -> list[torch.Tensor]:
    """The fields [n, size] of a buffer [n, bytes]; float fields have ``dtype``."""
    ends = np.cumsum([packed_bytes([field]) for field in layout])[:-1]
    parts = np.split(buffer, ends, axis=1)
    return [_from_bytes(part, field, dtype) for part, field in zip(parts, layout, strict=True)]


def packed_bytes(layout: Sequence[Field]) -> int:
    return sum((field.size * field.bits + 7) // 8 for field in layout)


def _to_bytes(values: np.ndarray, field: Field) -> np.ndarray:
    if field.floats:
        return np.ascontiguousarray(values).view(np.uint8)
    bits = values[..., None] >> np.arange(field.bits)[::-1] & 1
    return np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)


def _from_bytes(part: np.ndarray, field: Field, dtype: torch.dtype) -> torch.Tensor:
    if field.floats:
        return torch.from_numpy(np.ascontiguousarray(part)).view(dtype)
    bits = np.unpackbits(part, axis=1, count=field.size * field.bits).reshape(len(part), field.size, field.bits)
    return torch.from_numpy(bits.astype(np.int64) @ (1 << np.arange(field.bits, dtype=np.int64)[::-1]))
