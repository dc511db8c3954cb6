"""Logged episodes of a finite MDP with factored actions: collecting them, and Minari datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rl_suite.learners import draw_rows
from rl_suite.mdp import MDP

if TYPE_CHECKING:
    import minari


@dataclass(frozen=True)
class Episodes:
    """N transitions of some episodes, in order: states [N], joint actions [N], rewards [N], next states [N].

    ``ended`` [N]: the next state is terminal; ``last`` [N]: the episode's log stops here, ended or cut off;
    ``propensity`` [N]: π_b(a|s). Raises ValueError for no transition, or a propensity that is no probability above 0.
    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_states: np.ndarray
    ended: np.ndarray
    last: np.ndarray
    propensity: np.ndarray
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.states) == 0:
            raise ValueError("the dataset is empty: log at least one episode")
        if not np.all(self.propensity > 0):
            n = int(np.flatnonzero(~(self.propensity > 0))[0])
            raise ValueError(
                f"the behaviour policy has no support for transition {n} (state {self.states[n]}, action"
                f" {self.actions[n]}): its logged probability must be above 0; drop it or give the right policy"
            )
        if self.propensity.max() > 1 + 1e-6:  # rounding apart
            n = int(self.propensity.argmax())
            raise ValueError(f"transition {n} has propensity {self.propensity[n]:g}: give probabilities, at most 1")

    @property
    def episode(self) -> np.ndarray:
        """[N]: which episode each transition is of."""
        return np.concatenate([[0], self.last[:-1].cumsum()])

    @property
    def time(self) -> np.ndarray:
        """[N]: steps since the start of the episode."""
        starts = np.flatnonzero(np.concatenate([[True], self.last[:-1]]))
        return np.arange(len(self.states)) - starts[self.episode]

    def returns(self, gamma: float) -> np.ndarray:
        """[E]: Σ_t γ^t r_t of every episode."""
        return np.bincount(self.episode, self.rewards * gamma**self.time)


def collect(
    mdp: MDP, arrival: np.ndarray, behaviour: np.ndarray, episodes: int, rng: np.random.Generator, horizon: int
) -> Episodes:
    """Parallel episodes of π_b [S, A]; entering state s' gives reward ``arrival`` [S]. Truncated after ``horizon``."""
    state = draw_rows(np.tile(mdp.start, (episodes, 1)), rng)
    alive, rows = np.arange(episodes), []
    for t in range(horizon):
        action = draw_rows(behaviour[state], rng)
        next_states = draw_rows(mdp.P[state, action], rng)
        ended = mdp.terminal[next_states]
        last = ended | (t == horizon - 1)
        rows.append((alive, np.full(len(alive), t), state, action, arrival[next_states], next_states, ended, last))
        alive, state = alive[~ended], next_states[~ended]
        if len(alive) == 0:
            break
    columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
    order = np.lexsort((columns[1], columns[0]))
    s, a, r, next_states, ended, last = (column[order] for column in columns[2:])
    return Episodes(s, a, r, next_states, ended, last, behaviour[s, a], mdp.sizes)


def write_minari(data: Episodes, dataset_id: str, states: int) -> minari.MinariDataset:
    """Save as a Minari dataset: Discrete observations, MultiDiscrete actions, infos["propensity"].

    As in a log of Minari's DataCollector, the first of an episode's infos is of its reset (1.0 here).

    Raises ValueError, of Minari, for an id that exists.
    """
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    ends = np.flatnonzero(data.last) + 1
    buffers = []
    for i, (start, end) in enumerate(zip(np.concatenate([[0], ends[:-1]]), ends, strict=True)):
        part = slice(start, end)
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=np.append(data.states[part], data.next_states[end - 1]),  # type: ignore[arg-type]
                actions=np.stack(np.unravel_index(data.actions[part], data.sizes), axis=1),  # type: ignore[arg-type]
                rewards=data.rewards[part],  # type: ignore[arg-type]
                terminations=data.ended[part],  # type: ignore[arg-type]
                truncations=data.last[part] & ~data.ended[part],  # type: ignore[arg-type]
                infos={"propensity": np.append(1.0, data.propensity[part])},
            )
        )
    return minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        observation_space=spaces.Discrete(states),
        action_space=spaces.MultiDiscrete(np.array(data.sizes)),
        data_format="hdf5",
    )


def read_minari(dataset: minari.MinariDataset, behaviour: np.ndarray | None = None) -> Episodes:
    """Episodes of a Minari dataset with Discrete observations.

    infos["propensity"] of an episode of T actions: T values, or T + 1 of which the first is of the reset (Minari's
    DataCollector). ``behaviour`` [S, A] gives propensities if the dataset has none. Raises ValueError for other spaces,
    if neither is available, and for the order in which earlier versions of ``write_minari`` wrote them.
    """
    from rl_suite.factors import sizes_of

    sizes, parts, ends = sizes_of(dataset.action_space), [], []
    if type(dataset.observation_space).__name__ != "Discrete":
        raise ValueError(
            f"{dataset.observation_space}: finite MDPs need Discrete observations; number the states first"
        )
    for episode in dataset.iterate_episodes():
        s = np.asarray(episode.observations, int)
        a = np.ravel_multi_index(tuple(np.asarray(episode.actions, int).reshape(-1, len(sizes)).T), sizes)
        infos = episode.infos or {}
        if "propensity" in infos:
            logged = np.asarray(infos["propensity"], float)
            propensity = _of_actions(logged, len(a))
            if len(logged) > len(a):
                ends.append((logged[0], logged[-1]))
        elif behaviour is not None:
            propensity = behaviour[s[:-1], a]
        else:
            raise ValueError('the dataset has no infos["propensity"]: give the behaviour policy [S, A]')
        last = np.arange(len(a)) == len(a) - 1
        parts.append((s[:-1], a, np.asarray(episode.rewards, float), s[1:], episode.terminations, last, propensity))
    if not parts:
        raise ValueError("the dataset is empty: log at least one episode")
    if ends and all(end == 1 for _, end in ends) and any(begin != 1 for begin, _ in ends):
        raise ValueError(
            'infos["propensity"] ends with 1 in each episode and does not begin with it, which is how an earlier'
            " write_minari wrote it: write the dataset again"
        )
    s, a, r, next_states, ended, last, propensity = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Episodes(s, a, r, next_states, ended, last, propensity, sizes)


def _of_actions(propensities: np.ndarray, actions: int) -> np.ndarray:
    """Those of an episode's actions: all, or all but the first, which is of the reset."""
    if len(propensities) not in (actions, actions + 1):
        raise ValueError(f"{len(propensities)} propensities of {actions} actions: one each, or one of the reset before")
    return propensities[len(propensities) - actions :]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points that no other point dominates (at least as good in both coordinates, better in one)."""
    coordinates = np.asarray(points, float)
    at_least = np.all(coordinates[None, :, :] >= coordinates[:, None, :], axis=2)
    above = np.any(coordinates[None, :, :] > coordinates[:, None, :], axis=2)
    return [int(i) for i in np.flatnonzero(~np.any(at_least & above, axis=1))]
