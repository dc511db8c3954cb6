"""Tilts whose factors have fewer ranks.

The low-rank part of a tilt, <U s + P n, R E[a]>, is a map from states and lengths to additions. The best map of a given
rank keeps the largest singular values of the product (Eckart-Young), not of one factor. Reconstruction: no paper folds
tilts. Axes in tensor names: V vocabulary, D width, r rank, k the lower rank, I inputs of the map.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from value_heads.tilt import Tilt, token_products


class Truncation(NamedTuple):
    """The best map of rank k to tokens_Vr inputs_rI is tokens_Vr of_tokens_kr.T of_inputs_kr inputs_rI.

    ``missing``: Frobenius norm of the difference; ``size``: of the map.
    """

    of_inputs_kr: Tensor
    of_tokens_kr: Tensor
    missing: float
    size: float


def truncation(inputs_rI: Tensor, tokens_Vr: Tensor, rank: int) -> Truncation:
    """``tokens_Vr``: centred, since a constant added to all tokens changes no distribution."""
    inputs_rr = torch.linalg.qr(inputs_rI.T, mode="r").R
    tokens_rr = torch.linalg.qr(tokens_Vr, mode="r").R
    left_rr, sizes_r, right_rr = torch.linalg.svd(tokens_rr @ inputs_rr.T, full_matrices=False)
    size = float(sizes_r.norm())
    kept_k = sizes_r[:rank].clamp(min=max(1e-7 * size, 1e-30))
    of_inputs_kr = (left_rr[:, :rank] / kept_k).T @ tokens_rr
    return Truncation(of_inputs_kr, right_rr[:rank] @ inputs_rr, float(sizes_r[rank:].norm()), size)


def recompressed(tilt: Tilt, head_VD: Tensor, rank: int, state_length: float) -> tuple[Tilt, float]:
    """The tilt with ``rank`` ranks at most, and the root mean square of what that leaves out, in logits: over tokens,
    and over states of ``state_length`` in all directions alike, the mean square of each length feature taken as 1.

    A fit's factors add 0 at the mean state, and do so still.
    """
    if len(tilt.state_factor) <= rank:
        return tilt, 0.0
    state_rD = tilt.state_factor[:, :-1].float()
    inputs = [state_rD * (state_length / state_rD.shape[1] ** 0.5)]
    inputs += [] if tilt.length_factor is None else [tilt.length_factor.float()]
    token_Vr = token_products(tilt, head_VD).T.cpu()
    of_inputs_kr, of_tokens_kr, missing, _ = truncation(torch.cat(inputs, 1), token_Vr - token_Vr.mean(0), rank)
    smaller = replace(
        tilt,
        state_factor=of_inputs_kr @ tilt.state_factor.float(),
        token_factor=of_tokens_kr @ tilt.token_factor.float(),
        length_factor=None if tilt.length_factor is None else of_inputs_kr @ tilt.length_factor.float(),
    )
    return smaller, missing / len(head_VD) ** 0.5
