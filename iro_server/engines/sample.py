"""Drawing the next token: exact inverse-CDF sampling without a cumulative sum over the whole vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from iro_server.engines.base import Sampling

BLOCK = 256


def truncate(logits_MV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Logits with everything outside top-k and the top-p nucleus at -inf (a copy)."""
    keep = logits_MV
    if 0 < sampling.top_k < logits_MV.shape[-1]:
        kth = torch.topk(logits_MV, sampling.top_k, dim=-1).values[:, -1:]
        keep = keep.masked_fill(keep < kth, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, index = torch.sort(keep, dim=-1, descending=True)
        probs = torch.softmax(ordered, dim=-1)
        outside = torch.cumsum(probs, dim=-1) - probs >= sampling.top_p
        keep = keep.masked_fill(torch.zeros_like(outside).scatter(-1, index, outside), -torch.inf)
    return keep


def draw(logits_MV: torch.Tensor, uniforms_MK: torch.Tensor) -> torch.Tensor:
    """K draws from softmax(logits) for each of M rows, by inverting the distribution function.

    Two levels: sums of blocks of 256 tokens, then within one block, so that only one exponential and one sum pass over
    the vocabulary. uniforms_MK in [0, 1). Returns token ids [M, K], int64.
    """
    vocabulary = logits_MV.shape[-1]
    p = torch.exp(logits_MV - logits_MV.amax(dim=-1, keepdim=True))
    p = F.pad(p, (0, -vocabulary % BLOCK)).view(p.shape[0], -1, BLOCK)
    upto = p.sum(dim=-1).double().cumsum(dim=-1)
    target = uniforms_MK.double() * upto[:, -1:]
    block = torch.searchsorted(upto, target, right=True).clamp_max(upto.shape[-1] - 1)
    before = torch.where(block > 0, upto.gather(1, (block - 1).clamp_min(0)), 0.0)
    inside = p.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).double()
    within = inside.cumsum(dim=-1)
    # Rounding may leave the target a hair past the block's own sum: hold it below, lest an impossible token be drawn.
    rest = torch.minimum((target - before).unsqueeze(-1), within[..., -1:] * (1 - 1e-12))
    return block * BLOCK + torch.searchsorted(within, rest.contiguous(), right=True).squeeze(-1)


def steered_tokens(
    logits_MV: torch.Tensor, addition_MV: torch.Tensor, sampling: Sampling, uniforms_MK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``next_tokens``, of q = softmax(logits + addition), ``logits`` tempered: tokens [M, K], their
    log-probabilities under the frozen model, log q/pi_0, and KL(q || pi_0) [M]. Temperature 0 takes the likeliest token
    of q at temperature 1."""
    tilted_MV = logits_MV + addition_MV
    tokens = _draw(tilted_MV, sampling, uniforms_MK)
    kl_M, log_sum_M, tilted_log_sum_M = divergence(logits_MV, addition_MV, tilted_MV)
    logprobs = (logits_MV.gather(1, tokens) - log_sum_M[:, None]).float()
    return tokens, logprobs, (tilted_MV.gather(1, tokens) - tilted_log_sum_M[:, None]).float() - logprobs, kl_M


def divergence(
    logits_MV: torch.Tensor, addition_MV: torch.Tensor, tilted_MV: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """KL(q || pi_0) in nats, E_q[A] - log Z, and the logarithms of the sums of exp(logits) and of exp(tilted), their
    sum with the addition: each [M] float64, since the first may be a small difference of large sums."""
    weights_MV, tilted_log_sum_M = _exponentials(tilted_MV)
    log_sum_M = _exponentials(logits_MV)[1]
    total_M = weights_MV.sum(-1, dtype=torch.float64)
    expected_M = weights_MV.mul_(addition_MV).sum(-1, dtype=torch.float64) / total_M
    return (expected_M - tilted_log_sum_M + log_sum_M).clamp(min=0), log_sum_M, tilted_log_sum_M


def _exponentials(logits_MV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """exp(logits - their largest) [M, V], and the logarithm of the sum of exp(logits) [M], float64."""
    largest_M1 = logits_MV.amax(-1, keepdim=True)
    weights_MV = (logits_MV - largest_M1).exp_()
    return weights_MV, largest_M1[:, 0].double() + weights_MV.sum(-1, dtype=torch.float64).log()


def next_tokens(
    logits_MV: torch.Tensor, sampling: Sampling, uniforms_MK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [M, K] and their log-probabilities [M, K] under the untruncated, tempered distribution.

    Temperature 0 takes the most likely token and reports its log-probability at temperature 1.
    """
    logits_MV = tempered(logits_MV, sampling)
    tokens = _draw(logits_MV, sampling, uniforms_MK)
    return tokens, log_probability(logits_MV, tokens)


def tempered(logits_MV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """At the sampling's temperature; at 0 as at 1."""
    return logits_MV if sampling.temperature in (0.0, 1.0) else logits_MV / sampling.temperature


def log_probability(logits_MV: torch.Tensor, tokens_MK: torch.Tensor) -> torch.Tensor:
    """[M, K]."""
    return logits_MV.gather(1, tokens_MK) - torch.logsumexp(logits_MV, dim=-1, keepdim=True)


def _draw(logits_MV: torch.Tensor, sampling: Sampling, uniforms_MK: torch.Tensor) -> torch.Tensor:
    if sampling.likeliest:
        return logits_MV.topk(uniforms_MK.shape[1], dim=-1).indices
    if sampling.temperature == 0.0:
        return logits_MV.argmax(dim=-1, keepdim=True).expand(-1, uniforms_MK.shape[1])
    return draw(truncate(logits_MV, sampling), uniforms_MK)
