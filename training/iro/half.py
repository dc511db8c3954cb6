"""Half-precision storage that cannot overflow: float16, and a power of two for each vector."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EXPONENT = 15  # float16 ends at 65,504, just below 2^16


class Half(NamedTuple):
    """The vectors ``stored * scale[..., None]``. What is not finite stays so."""

    stored: Tensor  # [..., D] float16
    scale: Tensor  # [...] float32, 1 for vectors below 2^15

    @classmethod
    def of(cls, values: Tensor) -> Half:
        """Relative rounding error of at most 2^-11 for entries above 4e-9 times their vector's largest.

        The scales themselves round nothing.
        """
        largest = values.float().abs().nan_to_num(0.0, posinf=0.0).amax(-1) if values.numel() else values.sum(-1)
        exponent = (torch.frexp(largest).exponent - EXPONENT).clamp(min=0)
        scale = torch.ldexp(torch.ones_like(largest), exponent)
        return cls((values / scale[..., None]).half().cpu(), scale.cpu())

    def float(self) -> Tensor:
        return self.stored.to(torch.float32) * self.scale[..., None]
