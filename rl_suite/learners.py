"""Model-based learners: a transition law per joint action, or additive effects of block actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rl_suite.factors import Blocks, block_actions, block_sizes, one_hot
from rl_suite.mdp import MDP

Log = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # states, joint actions, rewards, next states: [N] each
RIDGE = 1e-3  # values of unvisited pairs shrink to 0


def sample(mdp: MDP, behaviour: np.ndarray, n: int, rng: np.random.Generator) -> Log:
    """``n`` transitions from non-terminal states drawn evenly, actions from π_b [S, A], expected rewards."""
    states = rng.choice(np.flatnonzero(~mdp.terminal), n)
    actions = draw_rows(behaviour[states], rng)
    return states, actions, mdp.R[states, actions], draw_rows(mdp.P[states, actions], rng)


def draw_rows(laws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One index a row of [N, M] probabilities."""
    below = laws.cumsum(axis=1)
    return (below < rng.random((len(laws), 1)) * below[:, -1:]).sum(axis=1)


class Model:
    """P and R additive over ``blocks`` in each state: least squares with a ridge, one transition at a time.

    With all factors in one block this is the joint model of counts. With several, regression on all blocks adjusts each
    block's effect for the others under any behaviour policy (back-door).
    """

    def __init__(self, states: int, sizes: Sequence[int], blocks: Blocks, gamma: float) -> None:
        self.design = one_hot(sizes, blocks)  # [A, C]
        self.columns = block_actions(sizes, blocks)  # [A, B]
        self.gamma = gamma
        actions, effects = self.design.shape
        # The number of times that (s, a_b) was taken, for each block b.
        self.visit_counts = [np.zeros((states, n), int) for n in block_sizes(sizes, blocks)]
        self.law = np.zeros((states, actions, states + 1))  # P(· | s, a), and R in the last place
        self.rewards = (np.inf, -np.inf)
        self._joint = len(blocks) == 1
        self._effects = np.zeros((states, effects, states + 1))
        self._inverse = np.empty((states, 0, 0)) if self._joint else np.tile(np.eye(effects) / RIDGE, (states, 1, 1))
        self._stale: set[int] = set()

    def add(self, s: int, a: int, r: float, next_state: int) -> None:
        """Recursive least squares (Sherman–Morrison): the batch solution, in O(C²) a transition."""
        for counts, block_action in zip(self.visit_counts, self.columns[a], strict=True):
            counts[s, block_action] += 1
        self.rewards = (min(self.rewards[0], r), max(self.rewards[1], r))
        outcome = np.zeros(self.law.shape[2])
        outcome[next_state], outcome[-1] = 1, r
        if self._joint:
            self.law[s, a] += (outcome - self.law[s, a]) / (self.visit_counts[0][s, a] + RIDGE)
            return
        x = self.design[a]
        gain = self._inverse[s] @ x
        gain /= 1 + x @ gain
        self._inverse[s] -= np.outer(gain, x @ self._inverse[s])
        self._effects[s] += np.outer(gain, outcome - x @ self._effects[s])
        self._stale.add(s)

    def fit(self, log: Log) -> None:
        """Replace the model by the fit to ``log``. Raises ValueError if the log is empty."""
        s, a, r, next_states = log
        if len(s) == 0:
            raise ValueError("the dataset is empty: a model needs at least one transition")
        states, _, outcomes = self.law.shape
        outcome = np.zeros(self.law.shape)
        np.add.at(outcome, (s, a, next_states), 1.0)
        np.add.at(outcome, (s, a, np.full(len(s), outcomes - 1)), r)
        counts = outcome[:, :, :states].sum(axis=2)
        self.rewards = (float(r.min()), float(r.max()))
        if self._joint:
            self.law = outcome / (counts + RIDGE)[:, :, None]
            return
        gram = np.einsum("ac,sad->scd", self.design, counts[:, :, None] * self.design)
        gram += RIDGE * np.eye(self.design.shape[1])
        self._effects = np.linalg.solve(gram, np.einsum("ac,sat->sct", self.design, outcome))
        self.law = self.design @ self._effects

    def q(self, value: np.ndarray, sweeps: int, optimistic: np.ndarray | None = None) -> np.ndarray:
        """Q [S, A] after ``sweeps`` of value iteration from V [S], which is updated in place.

        ``optimistic`` [S, A] bool: pairs that get the largest possible return. Values are clipped to the range of
        returns, because an additive P need not be a distribution.
        """
        for s in self._stale:
            self.law[s] = self.design @ self._effects[s]
        self._stale.clear()
        P, R = self.law[:, :, :-1], self.law[:, :, -1]
        low, high = (bound / (1 - self.gamma) for bound in (min(self.rewards[0], 0), max(self.rewards[1], 0)))
        for _ in range(sweeps + 1):
            q = R + self.gamma * P @ value
            if optimistic is not None:
                q = np.where(optimistic, high, q)
            value[:] = np.clip(q.max(axis=1), low, high)
        return q

    def unknown(self, visits: int) -> np.ndarray:
        """[S, A] bool: some block's action was taken fewer than ``visits`` times in this state."""
        return np.any(
            [
                counts[:, block_action] < visits
                for counts, block_action in zip(self.visit_counts, self.columns.T, strict=True)
            ],
            axis=0,
        )


def learned_q(
    log: Log, states: int, sizes: Sequence[int], blocks: Blocks, gamma: float, sweeps: int = 400
) -> np.ndarray:
    """Q [S, A] of the model fitted to ``log``. Raises ValueError for an empty log."""
    model = Model(states, sizes, blocks, gamma)
    model.fit(log)
    return model.q(np.zeros(states), sweeps)


def samples_needed(
    mdp: MDP, blocks: Blocks, good: Callable[[np.ndarray], bool], rng: np.random.Generator, most: int
) -> int:
    """The fewest transitions of uniform actions, on a grid of steps of 2^¼, whose learned Q [S, A] is ``good``.

    Gives ``most`` if that many do not suffice.
    """
    states, actions = mdp.R.shape
    s, a, r, next_states = sample(mdp, np.full((states, actions), 1 / actions), most, rng)
    for n in grid(most):
        if good(learned_q((s[:n], a[:n], r[:n], next_states[:n]), states, mdp.sizes, blocks, mdp.gamma)):
            return n
    return most


def steps_needed(
    mdp: MDP,
    blocks: Blocks,
    good: Callable[[np.ndarray], bool],
    rng: np.random.Generator,
    most: int,
    visits: int = 0,
    epsilon: float = 0.1,
) -> int:
    """``samples_needed`` for a learner that acts in the MDP.

    RMax (Brafman & Tennenholtz 2002) with ``visits`` > 0: a pair has the largest return until each of its block actions
    was taken that often in its state; it replans when a count reaches ``visits``. Else Dyna (Sutton 1990): ε-greedy,
    three planning sweeps from the last values after every step.
    """
    states, actions = mdp.R.shape
    model = Model(states, mdp.sizes, blocks, mdp.gamma)
    below, checks = mdp.P.cumsum(axis=2), set(grid(most))
    value = np.full(states, mdp.R.max() / (1 - mdp.gamma) if visits else 0.0)
    q = rng.random((states, actions))
    s = int(rng.choice(states, p=mdp.start))
    for step in range(1, most + 1):
        a = int(q[s].argmax())
        if not visits and rng.random() < epsilon:
            a = int(rng.integers(actions))
        next_state = min(int(below[s, a].searchsorted(rng.random())), states - 1)
        model.add(s, a, float(mdp.R[s, a]), next_state)
        if not visits:
            q = model.q(value, sweeps=2)
        elif step in checks or any(
            counts[s, block_action] == visits
            for counts, block_action in zip(model.visit_counts, model.columns[a], strict=True)
        ):
            q = model.q(value, sweeps=60, optimistic=model.unknown(visits))
            q = q + 1e-9 * rng.random(q.shape)  # breaks ties among unknown pairs at random
        s = next_state
        if step in checks and good(model.q(np.zeros(states), sweeps=200)):
            return step
    return most


def grid(most: int) -> list[int]:
    return sorted({int(2 ** (quarter / 4)) for quarter in range(12, int(4 * np.log2(most)) + 1)})
