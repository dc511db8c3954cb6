"""The quadratics over processes: ``torchrun --nproc-per-node 4 -m training.bilevel.launch out=DIR [key=value ...]``.

On several hosts, run the same command with torchrun's ``--nnodes`` and ``--rdzv-endpoint``. ``key=value`` sets a field
of ``LaunchConfig``. The same command resumes an interrupted run, and more ``steps`` extend a finished one.
DIR/result.json, on the first host, holds the recorded x of all agents and the bytes that each process sent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch.utils._pytree import tree_map

from training.bilevel import topology
from training.bilevel.algorithms.method import Algorithm
from training.bilevel.algorithms.soba import EFSoba
from training.bilevel.algorithms.sparkle import STRATEGIES, Sparkle
from training.bilevel.distributed.compressors import RandK
from training.bilevel.distributed.network import STACKED, Network
from training.bilevel.distributed.processes import ProcessCheckpoints, Processes, ProcessLost, tcp_bytes
from training.bilevel.problem import Tree
from training.bilevel.problems import quadratic
from training.bilevel.problems.quadratic import PROBLEM, Quadratic
from training.run import JobConfig

MIXINGS = {
    "ring": lambda n: topology.ring(n, 0.5),
    "exponential": topology.exponential,
    "full": topology.fully_connected,
}


class LaunchConfig(JobConfig):
    """``lower`` and ``upper``: SPARKLE's strategies. ``k``: of EF-SOBA's rand-k. ``noise``: see ``quadratic.noisy``.

    ``record_every``: steps between the records of x. ``timeout``: seconds of silence after which a process is lost.
    """

    movable = frozenset({"steps", "checkpoint_every", "timeout"})

    algorithm: Literal["sparkle", "ef-soba"] = "sparkle"
    lower: str = "ED"
    upper: str = "ED"
    topology: Literal["ring", "exponential", "full"] = "ring"
    k: int = Field(1, ge=1)
    agents: int = Field(8, ge=1)
    x_size: int = Field(3, ge=1)
    y_size: int = Field(4, ge=1)
    heterogeneity: float = Field(1.0, allow_inf_nan=False)
    noise: float = Field(0.0, allow_inf_nan=False)
    steps: int = Field(400, ge=1)
    record_every: int = Field(10, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    timeout: float = Field(300.0, gt=0, allow_inf_nan=False)


class Terminated(Exception):
    """SIGTERM arrived."""


class Solver(NamedTuple):
    """An algorithm bound to its problem; only the state varies."""

    start: Tree
    step: Callable[[Tree, torch.Generator], Tree]


class ProcessResult(TypedDict):
    """x of the agents of a process [records, held, x_size] (EF-SOBA: [records, x_size]), and its TCP bytes."""

    x: list[list[list[float]]]
    sent: int
    received: int


def mixing_of(config: LaunchConfig) -> torch.Tensor:
    return MIXINGS[config.topology](config.agents)


def solver_of(config: LaunchConfig, W: torch.Tensor, network: Network = STACKED) -> Solver:
    """Raises ValueError for an unknown strategy, and if a message of EF-SOBA has fewer than k coordinates."""
    for name in (config.lower, config.upper):
        if name not in STRATEGIES:
            raise ValueError(f"no strategy {name}: take one of {', '.join(STRATEGIES)}")
    agents = quadratic.draw(
        config.agents,
        x_size=config.x_size,
        y_size=config.y_size,
        heterogeneity=config.heterogeneity,
        seed=config.seed,
    )
    held = list(network.held(config.agents))
    algorithm = _algorithm(config, W, network)

    def batch(generator: torch.Generator) -> Quadratic:
        return Quadratic(*(leaf[held] for leaf in quadratic.noisy(agents, config.noise, generator)))

    start = algorithm.start(torch.zeros_like(agents.e[0]), torch.zeros_like(agents.c[0]), batch(torch.Generator()))
    return Solver(start, lambda state, generator: algorithm.step(state, batch(generator), generator))


def _algorithm(config: LaunchConfig, W: torch.Tensor, network: Network) -> Algorithm:
    steps = {"alpha": 0.1, "beta": 0.2, "gamma": 0.2, "theta": 0.5}
    if config.algorithm == "sparkle":
        return Sparkle(PROBLEM, STRATEGIES[config.lower](W), STRATEGIES[config.upper](W), **steps, network=network)
    coordinates = min(config.x_size, config.y_size)
    if config.k > coordinates:
        raise ValueError(f"k: must be between 1 and the {coordinates} coordinates of a message, not {config.k}")
    return EFSoba(PROBLEM, RandK(config.k), RandK(config.k), **steps, network=network)


class Progress(NamedTuple):
    """The contents of a checkpoint: the solver's state, its generator's, and the recorded x [records, ...]."""

    state: Tree
    generator: torch.Tensor
    records: torch.Tensor


def begin(config: LaunchConfig, solver: Solver) -> Progress:
    generator = torch.Generator().manual_seed(config.seed)
    return Progress(solver.start, generator.get_state(), torch.stack([solver.start.x]))


def advance(config: LaunchConfig, solver: Solver, progress: Progress, first: int, last: int) -> Progress:
    """Steps ``first`` + 1 to ``last``."""
    generator = torch.Generator()
    generator.set_state(progress.generator)
    state, records = progress.state, [progress.records]
    for step in range(first + 1, last + 1):
        state = solver.step(state, generator)
        if step % config.record_every == 0:
            records.append(state.x[None])
    return Progress(tree_map(torch.Tensor.clone, state), generator.get_state(), torch.cat(records))


def run(config: LaunchConfig, out: Path) -> None:
    """This process's part, from the last common checkpoint to the end; process 0 writes result.json.

    Raises ValueError for a config that has no solver, which leaves the folder unclaimed; and if the folder holds a run
    of another config, or a checkpoint after the last of ``steps``.
    """
    _check_folder(config, out)
    W = mixing_of(config)
    network = Processes(config.agents, [W], config.timeout)
    solver, checkpoints = solver_of(config, W, network), ProcessCheckpoints(out, network)
    _claim_folder(config, out)
    progress = begin(config, solver)
    first, progress = checkpoints.last(progress) or (0, progress)
    if first > config.steps:
        raise ValueError(f"steps: {out} has a checkpoint of step {first}; take as many or more, or another folder")
    if network.rank == 0:
        print(f"{network.size} processes, {config.agents} agents: from step {first} to {config.steps}", flush=True)
    began, before, done = time.monotonic(), tcp_bytes(), first
    while done < config.steps:
        goal = min(config.steps, done - done % config.checkpoint_every + config.checkpoint_every)
        progress, done = advance(config, solver, progress, done, goal), goal
        checkpoints.save(done, progress)
    seconds, after = time.monotonic() - began, tcp_bytes()
    result: ProcessResult = {
        "x": progress.records.tolist(),
        "sent": after[0] - before[0],
        "received": after[1] - before[1],
    }
    parts = network.gather(result)
    if network.rank == 0:
        (out / "result.json").write_text(json.dumps(_result(config, parts, done - first, seconds)) + "\n")
    network.close()


def _result(config: LaunchConfig, parts: list[ProcessResult], steps: int, seconds: float) -> dict[str, object]:
    """x [records, n, x_size] (EF-SOBA: [records, x_size]), steps of this start, bytes of each process in them."""
    all_agents = np.concatenate([part["x"] for part in parts], axis=1).tolist()
    return {
        "config": config.model_dump(),
        "x": all_agents if config.algorithm == "sparkle" else parts[0]["x"],
        "steps": steps,
        "seconds": seconds,
        "sent": [part["sent"] for part in parts],
        "received": [part["received"] for part in parts],
    }


def _check_folder(config: LaunchConfig, out: Path) -> None:
    """Raises ValueError if the folder holds a run of another config."""
    path = out / "config.json"
    if path.exists() and json.loads(path.read_text()) != _fixed(config):
        raise ValueError(f"{out} holds another run; choose another folder")


def _claim_folder(config: LaunchConfig, out: Path) -> None:
    """Raises ValueError if the folder cannot be written."""
    partial = out / f"config.json.{os.getpid()}"  # every process writes the same, and may read while another writes
    try:
        out.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(_fixed(config)))
        os.replace(partial, out / "config.json")
    except OSError as error:
        raise ValueError(f"out: {error}; choose a folder to write to") from None


def _fixed(config: LaunchConfig) -> dict[str, object]:
    """The fields that a resumed run may not change."""
    return config.model_dump(exclude=set(config.movable))


def main(arguments: list[str]) -> int:
    try:
        settings = _settings(arguments)
        out = Path(settings.pop("out", "runs/bilevel.launch"))
        config = LaunchConfig.model_validate(settings)
        run(config, out)
    except ProcessLost as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return 3
    except Terminated:
        print("Error: terminated: start the same command again to go on from the last checkpoint", file=sys.stderr)
        return 143
    except ValidationError as error:
        for problem in error.errors():
            print(f"Error: {'.'.join(map(str, problem['loc']))}: {problem['msg']}", file=sys.stderr, flush=True)
        return 2
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _settings(arguments: list[str]) -> dict[str, str]:
    """Raises ValueError for an argument without "="."""
    for argument in arguments:
        if "=" not in argument:
            raise ValueError(f"{argument}: give settings as key=value, such as steps=1000")
    return dict(argument.split("=", 1) for argument in arguments)


def _stop(number: int, frame: object) -> None:
    raise Terminated


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # torchrun sends it to the other processes when one has ended
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Gloo's threads may still hold Python objects, and abort a process that finalises its interpreter.
    os._exit(status)
