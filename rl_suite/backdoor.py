"""Weights that make a logged transition one of do(a_b): the other blocks act independently of a_b."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 10.0  # of a weight; a larger one would rule the gradient of its batch


def backdoor_weights(log_reference: Tensor, log_propensity: Tensor) -> Tensor:
    """[N, B]: for block b, Π_{c≠b} q_c(a_c|s) / μ_c(a_c|s), at most ``LIMIT``.

    ``log_reference`` [N, B]: log q_c of the logged block actions, any policy whose blocks are independent given s;
    ``log_propensity`` [N, B]: log μ_c, that of the policy that took them. A log of several policies is confounded:
    which of them acted decides both a_b and the other blocks. Under the weights the other blocks follow q whichever
    acted, so that the weighted mean at a_b is the effect of do(a_b). How close q is to the log affects the variance
    alone. Source: Pearl's back-door adjustment by inverse propensities; a reconstruction for arXiv:2504.21326.
    """
    log_ratio = log_reference - log_propensity
    this_block = torch.eye(log_ratio.shape[1], dtype=torch.bool)
    return log_ratio[:, None, :].masked_fill(this_block, 0).sum(dim=2).exp().clamp(max=LIMIT)
