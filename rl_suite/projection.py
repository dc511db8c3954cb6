"""Action decomposition (arXiv:2504.21326): projected MDPs under do(a_b), and the bias of the sum of their Q.

The paper has no public code; this is a reconstruction. Fix the policy ρ of the other blocks. Setting block b to a_b has
the effect Q(s, do(a_b)) = Σ_{a_-b} ρ(a_-b | s) Q(s, a). For ρ a product over blocks,
Σ_b Q(s, do(a_b)) − (B − 1) Q(s, ρ) equals Q exactly if Q(s, ·) has no interaction between blocks; otherwise it is the
best additive approximation under ρ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rl_suite.factors import Blocks, block_actions, block_sizes, check_blocks, one_hot
from rl_suite.mdp import MDP, expected_return, greedy, optimal_q


def others(policy: np.ndarray, sizes: Sequence[int], blocks: Blocks, b: int) -> np.ndarray:
    """[S, A_b, A]: the law of the joint action once block b is *set* to a_b, the rest as its marginal under π [S, A].

    The marginal, not the conditional on a_b, because π's correlation of other blocks with a_b is no effect of a_b.
    """
    columns = block_actions(sizes, blocks)
    n, of_block = block_sizes(sizes, blocks)[b], columns[:, b]
    rest_index = np.unique(np.delete(columns, b, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    same_rest = rest_index[:, None] == rest_index[None, :]
    marginal = policy @ same_rest  # [S, A]: the probability that the rest is as in joint action a
    return marginal[:, None, :] * (of_block == np.arange(n)[:, None])


def project(mdp: MDP, blocks: Blocks, b: int, policy: np.ndarray) -> MDP:
    """The MDP of block b alone under do(a_b), the other blocks following π."""
    law = others(policy, mdp.sizes, blocks, b)
    P, R = np.einsum("sba,sat->sbt", law, mdp.P), np.einsum("sba,sa->sb", law, mdp.R)
    return MDP(P, R, mdp.start, tuple(mdp.sizes[k] for k in blocks[b]), mdp.gamma)


def combine(projected: Sequence[np.ndarray], value: np.ndarray, sizes: Sequence[int], blocks: Blocks) -> np.ndarray:
    """Σ_b Q_b(s, a_b) − (B − 1) V(s) as [S, A], from Q_b [S, A_b] and V [S]."""
    columns = block_actions(sizes, blocks)
    return sum(q[:, columns[:, b]] for b, q in enumerate(projected)) - (len(blocks) - 1) * value[:, None]


def additive_fit(q: np.ndarray, sizes: Sequence[int], blocks: Blocks, weights: np.ndarray | None = None) -> np.ndarray:
    """The nearest Σ_b q_b(s, a_b) to Q [S, A, …] in each state, by least squares under ``weights`` (default: even)."""
    design = one_hot(sizes, blocks)
    if weights is None:
        return np.einsum("ac,sc...->sa...", design @ np.linalg.pinv(design), q)
    root = np.sqrt(weights)[:, :, None]
    projector = design @ (np.linalg.pinv(root * design) * np.swapaxes(root, 1, 2))  # [S, A, A]
    return np.einsum("sac,sc...->sa...", projector, q, optimize=True)


def backdoor(counts: np.ndarray) -> np.ndarray:
    """P(y | do(x)) [X, Y] = Σ_z P(z) P(y | x, z) from counts [Z, X, Y] (Pearl's back-door formula).

    Raises ValueError if some x never occurs with some z, because its effect there is not identified.
    """
    action_counts = counts.sum(axis=2)
    present = action_counts.sum(axis=1) > 0
    if np.any(action_counts[present] == 0):
        z, x = np.argwhere((action_counts == 0) & present[:, None])[0]
        raise ValueError(
            f"action {x} was never taken at covariate {z}: its effect there is not identified; merge or drop it"
        )
    of_z = action_counts.sum(axis=1) / action_counts.sum()
    return np.einsum("z,zxy->xy", of_z[present], counts[present] / action_counts[present][:, :, None])


def naive(counts: np.ndarray) -> np.ndarray:
    """P(y | x) [X, Y] from counts [Z, X, Y], without adjustment for z."""
    total = counts.sum(axis=0)
    return total / total.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Bias:
    """The bias of a partition on a known or estimated MDP. Interactions are maxima over (s, a), in units of Q."""

    reward: float  # of R(s, ·)
    transitions: float  # total variation between P(·|s, a) and its additive part
    q: float  # of Q*(s, ·)
    r2: float  # of the additive fit to Q*, within states
    optimal: float  # expected return of the optimal policy
    decomposed: tuple[float, float]  # the least and the greatest expected return of its greedy policies, over all ties
    unbiased: bool

    def __str__(self) -> str:
        if self.unbiased:
            return f"unbiased: Q* is additive over these blocks (largest interaction {self.q:.1e})"
        return (
            f"biased: interactions up to {self.q:.3g} in Q* (R² of the additive part {self.r2:.3f});"
            f" acting on it returns {self.decomposed[0]:.4g} to {self.decomposed[1]:.4g} as ties fall,"
            f" where {self.optimal:.4g} is optimal"
        )


def bias(
    mdp: MDP, blocks: Sequence[Sequence[int]] | None = None, mask: np.ndarray | None = None, tolerance: float = 1e-9
) -> Bias:
    """Whether ``blocks`` decompose ``mdp`` without bias, and the size of the bias.

    ``mask`` [S, A]: fit and act on these actions only. Additive R and P(·|s, ·) suffice; so do independent components
    with an additive reward, whose P is *not* additive. The criterion is the additivity of Q*. Raises ValueError if γ is
    1 and the search over the ties meets a policy that may never end.
    """
    parts = check_blocks(blocks, len(mdp.sizes))
    q = optimal_q(mdp)
    weights = None if mask is None else mask.astype(float)
    allowed = np.ones_like(q, bool) if mask is None else mask
    fit = additive_fit(q, mdp.sizes, parts, weights)
    residual = np.where(allowed, q - fit, 0)
    centred = np.where(allowed, q - np.mean(q, axis=1, where=allowed, keepdims=True), 0)
    best = np.where(allowed, fit, -np.inf)
    tied = best >= best.max(axis=1, keepdims=True) - tolerance
    additive_P = additive_fit(mdp.P, mdp.sizes, parts, weights)
    interaction = float(np.abs(residual).max())
    return Bias(
        reward=float(np.abs(np.where(allowed, mdp.R - additive_fit(mdp.R, mdp.sizes, parts, weights), 0)).max()),
        transitions=float(np.where(allowed, np.abs(mdp.P - additive_P).sum(axis=2) / 2, 0).max()),
        q=interaction,
        r2=float(1 - (residual**2).sum() / max((centred**2).sum(), 1e-300)),
        optimal=expected_return(mdp, greedy(q, mdp.admissible)),
        decomposed=(-_best_return(replace(mdp, R=-mdp.R), tied), _best_return(mdp, tied)),
        unbiased=interaction <= tolerance * max(1.0, float(np.abs(q).max())),
    )


def _best_return(mdp: MDP, mask: np.ndarray) -> float:
    """The greatest expected return of policies within ``mask`` [S, A]."""
    return expected_return(mdp, greedy(optimal_q(mdp, mask=mask), mask))
