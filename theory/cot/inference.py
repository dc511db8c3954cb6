"""Chain-of-thought and in-context inference on testing patterns, for all prompt lengths at once.

A column's logit does not depend on other columns, so that one set of prompts of the largest length contains every
shorter one as a prefix. Decoding is greedy: v_k = argmin_{u∈Y} ½‖F − u‖², the largest F·u among orthonormal patterns.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from theory.cot.data import Chain
from theory.lab import check_lengths


@dataclass(frozen=True)
class Prompts:
    """N prompts of l examples: noisy states [N, l, K+1, d] (x, y_1 … y_K), the query's pattern [N], and
    ``states`` [N, l, K+1], the pattern indices without noise."""

    noisy: Tensor
    states: Tensor
    query: Tensor


def draw_prompts(
    generator: torch.Generator, chain: Chain, patterns: Tensor, alpha: float, length: int, count: int, noise: float
) -> Prompts:
    """Prompts whose examples start from the query's pattern with probability α', else uniformly from another.

    Their steps are drawn from A_1 … A_K. A state is its pattern [M', d] plus a random vector of norm ``noise``.
    """
    pattern_count, d = patterns.shape
    query = torch.randint(pattern_count, (count, 1), generator=generator)
    other_patterns = (query + torch.randint(1, pattern_count, (count, length), generator=generator)) % pattern_count
    relevant = torch.rand((count, length), generator=generator) < alpha
    states = [torch.where(relevant, query, other_patterns)]
    for A in chain.matrices:
        bounds = torch.as_tensor(A, dtype=torch.float32).cumsum(-1)[states[-1]]  # [N, l, M']
        uniform = torch.rand((count, length, 1), generator=generator)
        states.append((uniform > bounds[..., :-1]).sum(-1))
    index = torch.stack(states, dim=2)
    direction = torch.randn((*index.shape, d), generator=generator)
    noisy = patterns[index] + noise * torch.nn.functional.normalize(direction, dim=-1)
    return Prompts(noisy, index, query[:, 0])


def _prefix_outputs(logits: Tensor, outputs: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """F·u [N, len(lengths), C, M'] of the prefixes, sums of e^(logit − top) (y·u) over examples and steps, and top.

    logits [N, l, K, C] for each of C queries, outputs y·u [N, l, K, M']; top [N, len(lengths), C] is a prefix's largest
    logit, so that no sum underflows. Softmax's denominator does not move argmax.
    """
    check_lengths(lengths)
    top = torch.full_like(logits[:, 0, 0], -torch.inf)
    total, totals, tops = torch.zeros(()), [], []
    for begin, end in itertools.pairwise([0, *lengths]):
        examples = logits[:, begin:end].flatten(1, 2)
        before, top = top, torch.maximum(top, examples.amax(1))
        weights = (examples - top[:, None]).exp()
        total = total * (before - top).exp()[..., None] + weights.mT @ outputs[:, begin:end].flatten(1, 2)
        totals.append(total)
        tops.append(top)
    return torch.stack(totals, dim=1), torch.stack(tops, dim=1)


def cot_errors(product: Tensor, prompts: Prompts, chain: Chain, patterns: Tensor, M: int, lengths: list[int]) -> Tensor:
    """Chain-of-thought error at each of increasing ``lengths`` of one model, ``product`` = W_KᵀW_Q [2d, 2d].

    Earlier steps of the query's chain are columns too, as in training.
    """
    d = patterns.shape[1]
    steps = len(chain.matrices)
    codes = torch.eye(2 * d)[M : M + steps]
    pairs = torch.cat([prompts.noisy[:, :, :-1], prompts.noisy[:, :, 1:]], dim=-1)  # [N, l, K, 2d]
    outputs = prompts.noisy[:, :, 1:] @ patterns.T
    padded = torch.nn.functional.pad(patterns, (0, d))  # a query's y half is zero
    state = prompts.query[:, None].expand(-1, len(lengths))
    past: list[tuple[Tensor, Tensor]] = []  # (x, y) pattern indices [N, lengths] of the query's chain so far
    for k in range(steps):
        keys = (padded + codes[k]) @ product.T  # [M', 2d]: W_KᵀW_Q p̃_query of each pattern the query may have
        logits = pairs @ keys.T + codes @ keys.T  # [N, l, K, M']
        if k == 0:  # the query is the same at all lengths
            logits = logits.gather(3, prompts.query[:, None, None, None].expand(*logits.shape[:3], 1))
            scores, top = (part[:, :, 0] for part in _prefix_outputs(logits, outputs, lengths))
        else:
            scores, top = _prefix_outputs(logits, outputs, lengths)
            scores = scores.gather(2, state[..., None, None].expand(-1, -1, 1, len(patterns)))[:, :, 0]
            top = top.gather(2, state[..., None])[:, :, 0]
        next_state = _with_past_columns(scores, top, past, keys[state], patterns, codes).argmax(-1)
        past.append((state, next_state))
        state = next_state
    correct = torch.as_tensor(chain.correct[:, -1])[prompts.query]
    return (state != correct[:, None]).float().mean(0)


def _with_past_columns(
    scores: Tensor, top: Tensor, past: list[tuple[Tensor, Tensor]], keys: Tensor, patterns: Tensor, codes: Tensor
) -> Tensor:
    """F·u up to a factor [N, lengths, M']: `_prefix_outputs` and the query's earlier columns. keys [N, lengths, 2d]."""
    for j, (x, y) in enumerate(past):
        column = torch.cat([patterns[x], patterns[y]], dim=-1) + codes[j]
        logit = (column * keys).sum(-1)
        before, top = top, torch.maximum(top, logit)
        read = torch.nn.functional.one_hot(y, len(patterns))
        scores = scores * (before - top).exp()[..., None] + (logit - top).exp()[..., None] * read
    return scores


def icl_errors(product: Tensor, prompts: Prompts, chain: Chain, patterns: Tensor, M: int, lengths: list[int]) -> Tensor:
    """In-context error at each prompt length: examples are [x, 0 … 0; y_K, 0 … 0], one step, the same target."""
    d = patterns.shape[1]
    steps = len(chain.matrices)
    codes = torch.eye(2 * d)[M : M + steps]
    pairs = torch.cat([prompts.noisy[:, :, 0], prompts.noisy[:, :, -1]], dim=-1) + codes[0]
    keys = ((torch.nn.functional.pad(patterns, (0, d)) + codes[0]) @ product.T)[prompts.query]  # [N, 2d]
    logits = torch.einsum("nld,nd->nl", pairs, keys)[..., None]
    outputs = (prompts.noisy[:, :, -1] @ patterns.T)[:, :, None]
    predicted = _prefix_outputs(logits[..., None], outputs, lengths)[0][:, :, 0].argmax(-1)
    correct = torch.as_tensor(chain.correct[:, -1])[prompts.query]
    return (predicted != correct[:, None]).float().mean(0)


def attention_shares(product: Tensor, prompts: Prompts, patterns: Tensor, M: int) -> dict[str, float]:
    """At the first step, the mean attention on columns of the same step and pattern, the same step, and other steps."""
    d = patterns.shape[1]
    steps = prompts.states.shape[2] - 1
    codes = torch.eye(2 * d)[M : M + steps]
    pairs = torch.cat([prompts.noisy[:, :, :-1], prompts.noisy[:, :, 1:]], dim=-1) + codes
    keys = ((torch.nn.functional.pad(patterns, (0, d)) + codes[0]) @ product.T)[prompts.query]
    weights = torch.einsum("nlkd,nd->nlk", pairs, keys).flatten(1).softmax(1).reshape(pairs.shape[:3])
    same = prompts.states[:, :, 0] == prompts.query[:, None]
    first = weights[:, :, 0]
    return {
        "same_step_same_pattern": float((first * same).sum(1).mean()),
        "same_step_other_pattern": float((first * ~same).sum(1).mean()),
        "other_step": float(weights[:, :, 1:].sum((1, 2)).mean()),
    }
