"""Drawing the next token: exact inverse-CDF sampling without a cumulative sum over the whole vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from iro_server.engines.base import Sampling

BLOCK = 256
MOST_NUMBERS = 1 << 20  # of a tensor of a CPU's: larger ones leave its caches, and are memory that the system clears


def truncate(logits_MV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Logits with everything outside top-k and the top-p nucleus at -inf: a copy, or themselves where none is."""
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


def rows_at_once(logits_MV: torch.Tensor) -> int:
    """Rows whose logits are to be steered together: ``MOST_NUMBERS`` on a CPU."""
    return max(1, MOST_NUMBERS // logits_MV.shape[1]) if logits_MV.device.type == "cpu" else len(logits_MV)


class Distribution(NamedTuple):
    """softmax(logits) in blocks of 256 tokens [M, N, 256], the last filled up with zeros. ``upto_MN``: its sums up to
    the end of each block, float64. ``log_sum_M``: the logarithm of the sum of exp(logits), float64. One fused pass over
    the vocabulary serves them all."""

    blocks_MNB: torch.Tensor
    upto_MN: torch.Tensor
    log_sum_M: torch.Tensor

    @classmethod
    def of(cls, logits_MV: torch.Tensor) -> Distribution:
        probabilities_MV = logits_MV.softmax(-1)
        missing = -logits_MV.shape[-1] % BLOCK
        padded = F.pad(probabilities_MV, (0, missing)) if missing else probabilities_MV
        blocks_MNB = padded.view(len(logits_MV), -1, BLOCK)
        upto_MN = blocks_MNB.sum(-1).double().cumsum(-1)
        most_M = probabilities_MV.amax(-1).double() / upto_MN[:, -1]  # the fused sum is rounded more than this one
        return cls(blocks_MNB, upto_MN, logits_MV.amax(-1).double() - most_M.log())

    def draw(self, uniforms_MK: torch.Tensor) -> torch.Tensor:
        """As the function ``draw``."""
        upto_MN = self.upto_MN
        target = uniforms_MK.double() * upto_MN[:, -1:]
        block = torch.searchsorted(upto_MN, target, right=True).clamp_max(upto_MN.shape[-1] - 1)
        before = torch.where(block > 0, upto_MN.gather(1, (block - 1).clamp_min(0)), 0.0)
        inside = self.blocks_MNB.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).double()
        within = inside.cumsum(dim=-1)
        # Rounding may leave the target a hair past the block's own sum: hold it below, lest an impossible token be
        # drawn.
        rest = torch.minimum((target - before).unsqueeze(-1), within[..., -1:] * (1 - 1e-12))
        return block * BLOCK + torch.searchsorted(within, rest.contiguous(), right=True).squeeze(-1)

    def expectation(self, values_MV: torch.Tensor) -> torch.Tensor:
        """Of values, [M] float64."""
        num_rows, vocabulary = values_MV.shape
        probabilities_MV = self.blocks_MNB.view(num_rows, -1)[:, :vocabulary]
        return torch.linalg.vecdot(probabilities_MV, values_MV).double() / self.upto_MN[:, -1]

    def logprobs(self, logits_MV: torch.Tensor, tokens_MK: torch.Tensor) -> torch.Tensor:
        """Of tokens, [M, K] float32, from the logits that it is of."""
        return (logits_MV.gather(1, tokens_MK) - self.log_sum_M[:, None]).float()


def draw(logits_MV: torch.Tensor, uniforms_MK: torch.Tensor) -> torch.Tensor:
    """K draws from softmax(logits) for each of M rows, by inverting the distribution function.

    Two levels: sums of blocks of 256 tokens, then within one block. uniforms_MK in [0, 1). Returns token ids [M, K],
    int64.
    """
    return Distribution.of(logits_MV).draw(uniforms_MK)


def steered_tokens(
    logits_MV: torch.Tensor, addition_MV: torch.Tensor, sampling: Sampling, uniforms_MK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``next_tokens``, of q = softmax(logits + addition), ``logits`` tempered: tokens [M, K], their
    log-probabilities under the frozen model, log q/pi_0, and KL(q || pi_0) [M]. Temperature 0 takes the likeliest token
    of q at temperature 1."""
    frozen, tilted_MV = Distribution.of(logits_MV), logits_MV + addition_MV
    tilted = Distribution.of(tilted_MV)
    tokens = _tokens(tilted_MV, tilted, sampling, uniforms_MK)
    logprobs = frozen.logprobs(logits_MV, tokens)
    log_ratios = tilted.logprobs(tilted_MV, tokens) - logprobs
    return tokens, logprobs, log_ratios, _divergence(tilted, frozen, addition_MV)


def divergence(logits_MV: torch.Tensor, addition_MV: torch.Tensor, frozen: Distribution | None = None) -> torch.Tensor:
    """KL(q || pi_0) in nats of q = softmax(logits + addition), [M] float64. ``frozen``: softmax(logits)."""
    return _divergence(Distribution.of(logits_MV + addition_MV), frozen or Distribution.of(logits_MV), addition_MV)


def _divergence(tilted: Distribution, frozen: Distribution, addition_MV: torch.Tensor) -> torch.Tensor:
    """E_q[A] - log Z."""
    return (tilted.expectation(addition_MV) - tilted.log_sum_M + frozen.log_sum_M).clamp(min=0)


def next_tokens(
    logits_MV: torch.Tensor, sampling: Sampling, uniforms_MK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [M, K] and their log-probabilities [M, K] under the untruncated, tempered distribution.

    Temperature 0 takes the most likely token and reports its log-probability at temperature 1.
    """
    logits_MV = tempered(logits_MV, sampling)
    distribution = Distribution.of(logits_MV)
    tokens = _tokens(logits_MV, distribution, sampling, uniforms_MK)
    return tokens, distribution.logprobs(logits_MV, tokens)


def tempered(logits_MV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """At the sampling's temperature; at 0 as at 1."""
    return logits_MV if sampling.temperature in (0.0, 1.0) else logits_MV / sampling.temperature


def _tokens(
    logits_MV: torch.Tensor, distribution: Distribution, sampling: Sampling, uniforms_MK: torch.Tensor
) -> torch.Tensor:
    """[M, K]. ``distribution``: of the logits."""
    if sampling.likeliest:
        return logits_MV.topk(uniforms_MK.shape[1], dim=-1).indices
    if sampling.temperature == 0.0:
        return logits_MV.argmax(dim=-1, keepdim=True).expand(-1, uniforms_MK.shape[1])
    kept_MV = truncate(logits_MV, sampling)
    return (distribution if kept_MV is logits_MV else Distribution.of(kept_MV)).draw(uniforms_MK)
