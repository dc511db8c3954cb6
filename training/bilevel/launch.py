"""The quadratics over processes: ``torchrun --nproc-per-node 4 -m training.bilevel.launch out=DIR [key=value ...]``.

On several hosts, the same with torchrun's ``--nnodes`` and ``--rdzv-endpoint``, and a ``key=value`` for each field of
``Launch``. The same command goes on with what was interrupted. DIR/result.json, on the first host, has x of all agents
on the way, and the bytes that each process sent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch.utils._pytree import tree_map

from training.bilevel import quadratic, topology
from training.bilevel.compressors import RandK
from training.bilevel.network import STACKED, Network
from training.bilevel.problem import Tree
from training.bilevel.processes import Processes, ProcessLost, Shards, tcp_bytes
from training.bilevel.quadratic import PROBLEM, Quadratic
from training.bilevel.soba import EFSoba
from training.bilevel.sparkle import STRATEGIES, Sparkle
from training.run import JobConfig

MIXINGS = {
    "ring": lambda n: topology.ring(n, 0.5),
    "exponential": topology.exponential,
    "full": topology.fully_connected,
}


class Launch(JobConfig):
    """``lower`` and ``upper``: SPARKLE's strategies; ``k``: of EF-SOBA's rand-k. ``noise``: see ``quadratic.noisy``.

    ``record_every``: steps between the x of result.json. ``timeout``: seconds of silence until a process is given up.
    """

    movable = frozenset({"steps", "checkpoint_every", "timeout"})

    algorithm: Literal["sparkle", "ef-soba"] = "sparkle"
    lower: str = "ED"
    upper: str = "ED"
    topology: Literal["ring", "exponential", "full"] = "ring"
    k: int = 1
    agents: int = Field(8, ge=1)
    x_size: int = 3
    y_size: int = 4
    heterogeneity: float = 1.0
    noise: float = 0.0
    steps: int = Field(400, ge=1)
    record_every: int = Field(10, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    timeout: float = Field(300.0, gt=0)


class Told(Exception):
    """By SIGTERM to stop."""


class Solver(NamedTuple):
    """An algorithm on a problem, of which only the state is left to be told."""

    start: Tree
    step: Callable[[Tree, torch.Generator], Tree]


def mixing_of(config: Launch) -> torch.Tensor:
    return MIXINGS[config.topology](config.agents)


def solver_of(config: Launch, W: torch.Tensor, network: Network = STACKED) -> Solver:
    """ValueError if a strategy is unknown, or the problem has fewer than k coordinates."""
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
    x, y = torch.zeros_like(agents.e[0]), torch.zeros_like(agents.c[0])
    settings: dict[str, Any] = {"alpha": 0.1, "beta": 0.2, "gamma": 0.2, "theta": 0.5, "network": network}

    def batch(generator: torch.Generator) -> Quadratic:
        return Quadratic(*(leaf[held] for leaf in quadratic.noisy(agents, config.noise, generator)))

    if config.algorithm == "sparkle":
        sparkle = Sparkle(PROBLEM, STRATEGIES[config.lower](W), STRATEGIES[config.upper](W), **settings)
        start = sparkle.start(x, y, batch(torch.Generator()))
        return Solver(start, lambda state, generator: sparkle.step(state, batch(generator)))
    soba = EFSoba(PROBLEM, RandK(config.k), RandK(config.k), **settings)
    begun = soba.start(x, y, config.agents)
    return Solver(begun, lambda state, generator: soba.step(state, batch(generator), generator))


class Progress(NamedTuple):
    """What a checkpoint holds: the solver's state, its generator's, and x on the way [records, ...]."""

    state: Tree
    generator: torch.Tensor
    records: torch.Tensor


def begin(config: Launch, solver: Solver) -> Progress:
    generator = torch.Generator().manual_seed(config.seed)
    return Progress(solver.start, generator.get_state(), torch.stack([solver.start.x]))


def advance(config: Launch, solver: Solver, progress: Progress, first: int, last: int) -> Progress:
    """Steps ``first`` + 1 to ``last``."""
    generator = torch.Generator()
    generator.set_state(progress.generator)
    state, records = progress.state, [progress.records]
    for step in range(first + 1, last + 1):
        state = solver.step(state, generator)
        if step % config.record_every == 0:
            records.append(state.x[None])
    return Progress(tree_map(torch.Tensor.clone, state), generator.get_state(), torch.cat(records))


def run(config: Launch, out: Path) -> None:
    """This process's part, from the last common checkpoint to the end; process 0 writes result.json."""
    W = mixing_of(config)
    network = Processes(config.agents, [W], config.timeout)
    solver, shards = solver_of(config, W, network), Shards(out, network)
    progress = begin(config, solver)
    found = shards.last(progress)
    done, progress = found or (0, progress)
    if network.rank == 0:
        print(f"{network.size} processes, {config.agents} agents: from step {done} to {config.steps}", flush=True)
    began, before, first = time.monotonic(), tcp_bytes(), done
    while done < config.steps:
        goal = min(config.steps, done - done % config.checkpoint_every + config.checkpoint_every)
        progress, done = advance(config, solver, progress, done, goal), goal
        shards.save(done, progress)
    seconds, after = time.monotonic() - began, tcp_bytes()
    mine = {"x": progress.records.tolist(), "sent": after[0] - before[0], "received": after[1] - before[1]}
    parts = network.gather(mine)
    if network.rank == 0:
        (out / "result.json").write_text(json.dumps(_result(config, parts, done - first, seconds)) + "\n")
    network.close()


def _result(config: Launch, parts: list[dict[str, Any]], steps: int, seconds: float) -> dict[str, Any]:
    """x [records, n, x_size] (EF-SOBA: [records, x_size]), steps computed now, bytes of each process in them."""
    whole = np.concatenate([part["x"] for part in parts], axis=1).tolist()
    return {
        "config": config.model_dump(),
        "x": whole if config.algorithm == "sparkle" else parts[0]["x"],
        "steps": steps,
        "seconds": seconds,
        "sent": [part["sent"] for part in parts],
        "received": [part["received"] for part in parts],
    }


def _same_run(config: Launch, out: Path) -> None:
    """ValueError if the folder holds a run of another config."""
    fixed = config.model_dump(exclude=set(config.movable))
    path = out / "config.json"
    if path.exists() and json.loads(path.read_text()) != fixed:
        raise ValueError(f"{out} holds another run; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f"config.json.{os.getpid()}"  # each process writes the same, and may read while another does
    partial.write_text(json.dumps(fixed))
    os.replace(partial, path)


def main(arguments: list[str]) -> int:
    try:
        settings = dict(argument.split("=", 1) for argument in arguments)
        out = Path(settings.pop("out", "runs/bilevel.launch"))
        config = Launch.model_validate(settings)
        _same_run(config, out)
        run(config, out)
    except ProcessLost as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return 3
    except Told:
        print("Error: told to stop: start the same command again to go on from the last checkpoint", file=sys.stderr)
        return 143
    except ValidationError as error:
        for one in error.errors():
            print(f"Error: {'.'.join(map(str, one['loc']))}: {one['msg']}", file=sys.stderr, flush=True)
        return 2
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _stop(number: int, frame: object) -> None:
    raise Told


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # torchrun sends it to the others when one has died
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Gloo's threads may still hold Python objects, and abort the process that finalises its interpreter meanwhile.
    os._exit(status)
