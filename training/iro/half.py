"""Half-precision storage that cannot overflow: float16 and one power of two for the whole tensor."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 2.0**15  # float16 ends at 65,504


class Half(NamedTuple):
    """The tensor ``stored * scale``. What is not finite stays so."""

    stored: Tensor  # float16
    scale: float

    @classmethod
    def of(cls, values: Tensor) -> Half:
        """Relative rounding error of at most 2^-11 for entries above 1e-9 times the largest. Exact powers: no other."""
        finite = values[values.isfinite()].abs()
        largest = float(finite.max()) if len(finite) else 0.0
        scale = 2.0 ** max(0, math.ceil(math.log2(largest / LARGEST))) if largest > LARGEST else 1.0
        return cls((values / scale).half().cpu(), scale)

    def float(self) -> Tensor:
        return self.stored.to(torch.float32) * self.scale
