"""dm_control tasks as Gymnasium environments, discretised Box actions, and a vector environment of point masses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

os.environ.setdefault("MUJOCO_GL", "disable")  # no rendering
Info = dict[str, Any]


class DMControl(gym.Env[np.ndarray, np.ndarray]):
    """A task of dm_control's suite: float32 observations in one vector, Box actions, cut off at its time limit.

    Raises ValueError for a task that the suite lacks.
    """

    metadata: Info = {"render_modes": []}  # noqa: RUF012

    def __init__(self, domain: str, task: str) -> None:
        suite = _suite()
        if (domain, task) not in suite.ALL_TASKS:
            raise ValueError(f"dm_control has no {domain}-{task}: choose one of its suite, such as point_mass-easy")
        self._env = suite.load(domain, task, task_kwargs={"random": 0})
        size = sum(int(np.prod(spec.shape)) for spec in self._env.observation_spec().values())
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        action = self._env.action_spec()
        self.action_space = spaces.Box(action.minimum.astype(np.float32), action.maximum.astype(np.float32))

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        super().reset(seed=seed)
        if seed is not None:
            self._env.task.random.seed(int(self.np_random.integers(2**32)))
        return self._flat(self._env.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        after = self._env.step(action)
        ended = after.last()
        return (
            self._flat(after.observation),
            float(after.reward),
            ended and after.discount == 0,
            ended and after.discount > 0,
            {},
        )

    @staticmethod
    def _flat(parts: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.ravel(part) for part in parts.values()]).astype(np.float32)


class Bins(gym.ActionWrapper[np.ndarray, np.ndarray, np.ndarray]):
    """Discretises each dimension of a Box action space into ``bins`` values, evenly from its low to its high.

    Raises ValueError for another action space, an unbounded one, or fewer than two bins.
    """

    def __init__(self, env: gym.Env[np.ndarray, np.ndarray], bins: int) -> None:
        super().__init__(env)
        box = env.action_space
        if not isinstance(box, spaces.Box):
            raise ValueError(f"{type(box).__name__} action space: only a Box can be put into bins")
        if not (np.isfinite(box.low).all() and np.isfinite(box.high).all()):
            raise ValueError(
                f"{box}: an unbounded action has no bins; clip it first (gymnasium.wrappers.RescaleAction)"
            )
        if bins < 2:
            raise ValueError(f"{bins} bins: at least two are needed, the lowest action and the highest")
        self._levels = np.linspace(box.low.reshape(-1), box.high.reshape(-1), bins, dtype=box.dtype)  # [bins, K]
        self._shape = box.shape
        self.action_space = spaces.MultiDiscrete([bins] * self._levels.shape[1])

    def action(self, action: np.ndarray) -> np.ndarray:
        return self._levels[action, np.arange(len(action))].reshape(self._shape)


DENSE_MARGIN = 0.3  # metres, about from the target to the walls
POINT_MASSES = {"point_mass-easy": None, "point_mass-dense": DENSE_MARGIN}


class PointMasses(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """``count`` copies of dm_control's point_mass-easy on MuJoCo directly, actions in bins.

    Physics and time limit are bit-identical to dm_control's and rewards equal to rounding, without its Python overhead
    per step. Reports ``final_obs`` in infos (autoreset in the same step). ``state_dict`` holds the complete state for
    resumption. ``margin``: the distance beyond the target, in metres, at which the reward has fallen to 0.1;
    dm_control's is the target's radius, a sparse reward.
    """

    metadata: Info = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, count: int, bins: int, time_limit: int = 1000, margin: float | None = None) -> None:
        import mujoco

        suite = _suite()
        self._mujoco = mujoco
        self._model = suite.load("point_mass", "easy").physics.model._model
        self._data = [mujoco.MjData(self._model) for _ in range(count)]
        self.num_envs, self.time_limit = count, time_limit
        low, high = self._model.actuator_ctrlrange.T
        self._levels = np.linspace(low, high, bins)
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.single_action_space = spaces.MultiDiscrete([bins] * len(low))
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, count)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, count)
        self._mass, self._target = (self._model.geom(name).id for name in ("pointmass", "target"))
        self._radius = float(self._model.geom_size[self._target, 0])
        self._margin = self._radius if margin is None else margin
        self._elapsed = np.zeros(count, int)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None
    ) -> tuple[np.ndarray, Info]:
        if seed is not None and not isinstance(seed, int):
            raise ValueError("point masses share one random stream: give one seed, an int")
        super().reset(seed=seed)
        self._restart(np.arange(self.num_envs))
        return self._observations(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Info]:
        controls = self._levels[actions, np.arange(2)]
        step2, step1, model = self._mujoco.mj_step2, self._mujoco.mj_step1, self._model
        for data, control in zip(self._data, controls, strict=True):
            data.ctrl[:] = control
            step2(model, data)  # dm_control's order: the rest of the last step, then the first half of the next
            step1(model, data)
        self._elapsed += 1
        observations, rewards = self._observations(), self._rewards(controls)
        cut, info = self._elapsed >= self.time_limit, {}
        if cut.any():
            final = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(cut):
                final[i] = observations[i].copy()
            info = {"final_obs": final, "_final_obs": cut.copy()}
            self._restart(np.flatnonzero(cut))
            observations = self._observations()
        return observations, rewards, np.zeros(self.num_envs, bool), cut, info

    def _restart(self, env_indices: np.ndarray) -> None:
        """Reset to uniform positions within the joints' limits, at rest."""
        low, high = self._model.jnt_range.T
        for i in env_indices:
            self._mujoco.mj_resetData(self._model, self._data[i])
            self._data[i].qpos[:] = self.np_random.uniform(low, high)
            self._mujoco.mj_forward(self._model, self._data[i])
        self._elapsed[env_indices] = 0

    def _observations(self) -> np.ndarray:
        return np.array([(*d.qpos, *d.qvel) for d in self._data], np.float32)

    def _rewards(self, controls: np.ndarray) -> np.ndarray:
        """1 within the target, a Gaussian tail to 0.1 at the margin; times 0.8 to 1 for small controls."""
        to_target = np.array([d.geom_xpos[self._target] - d.geom_xpos[self._mass] for d in self._data])
        beyond = (np.sqrt((to_target**2).sum(axis=1)) - self._radius) / self._margin
        near = np.where(beyond <= 0, 1.0, np.exp(-0.5 * (np.maximum(beyond, 0) * np.sqrt(-2 * np.log(0.1))) ** 2))
        small = np.maximum(1 - controls**2, 0).mean(axis=1)
        return near * (small + 4) / 5

    def state_dict(self) -> dict[str, Any]:
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        states = np.empty((self.num_envs, self._mujoco.mj_stateSize(self._model, kind)))
        for data, row in zip(self._data, states, strict=True):
            self._mujoco.mj_getState(self._model, data, row, kind)
        return {
            "physics": states.tolist(),
            "elapsed": self._elapsed.tolist(),
            "rng": self.np_random.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for data, row in zip(self._data, state["physics"], strict=True):
            self._mujoco.mj_setState(self._model, data, np.array(row), self._mujoco.mjtState.mjSTATE_INTEGRATION)
            self._mujoco.mj_step1(self._model, data)
        self._elapsed = np.array(state["elapsed"])
        self.np_random.bit_generator.state = state["rng"]


def make_vector(task: str, count: int, bins: int) -> gym.vector.VectorEnv[Any, Any, Any]:
    """``count`` environments of a dm_control task, "domain-task", with actions in bins.

    "point_mass-dense" is point_mass-easy with a reward that reaches everywhere (``DENSE_MARGIN``).
    """
    if task in POINT_MASSES:
        return PointMasses(count, bins, margin=POINT_MASSES[task])
    domain, _, name = task.partition("-")
    return gym.vector.SyncVectorEnv(
        [lambda: Bins(DMControl(domain, name), bins)] * count, autoreset_mode=AutoresetMode.SAME_STEP
    )


def _suite() -> Any:
    try:
        from dm_control import suite
    except ImportError as error:
        raise ValueError("dm_control is not installed: pip install 'iro-align[rl]'") from error
    return suite
