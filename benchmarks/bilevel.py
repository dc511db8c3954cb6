"""Speed of SPARKLE's stacked engine, and bytes on the wire of its processes: ``python -m benchmarks.bilevel --json``.

Iterations per second for n agents on a ring, ED at both levels: all agents stacked, and a Python loop over agents that
read their two neighbours, by plain ``torch.autograd``. Two problems: quadratics of 20 coordinates per level, where
overhead dominates, and a softmax regression of 784 inputs on batches of 32, where arithmetic dominates. ``--wire``
starts torchrun with 2 processes and 8 workers of 1,000 coordinates, and reads the bytes that they send from the kernel.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from benchmarks.record import command_line, finish
from iro_server import JsonObject
from training.bilevel import topology
from training.bilevel.algorithms.sparkle import STRATEGIES, Sparkle
from training.bilevel.problem import BilevelProblem, Tree
from training.bilevel.problems import quadratic

SIZES = (4, 8, 16, 32, 64)
ALPHA, BETA, THETA = 0.01, 0.01, 0.5
Advance = Callable[[], object]


def softmax_regression(agents: int) -> tuple[BilevelProblem, Tree, Tree, Tree]:
    """Problem, x [10], y [784, 10], batch."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(agents, 32, 784, generator=generator)
    batch = {"images": images, "labels": torch.randint(10, (agents, 32), generator=generator)}

    def lower(x: Tree, y: Tree, batch: Tree) -> torch.Tensor:
        return cross_entropy(batch["images"] @ y, batch["labels"]) + (x.exp() * y.square().mean(0)).sum()

    def upper(x: Tree, y: Tree, batch: Tree) -> torch.Tensor:
        return cross_entropy(batch["images"] @ y, batch["labels"])

    return BilevelProblem(upper, lower), torch.zeros(10), torch.zeros(784, 10), batch


def quadratics(agents: int) -> tuple[BilevelProblem, Tree, Tree, Tree]:
    batch = quadratic.draw(agents, x_size=20, y_size=20, heterogeneity=1.0, seed=0)
    return quadratic.PROBLEM, torch.zeros_like(batch.e[0]), torch.zeros_like(batch.c[0]), batch


PROBLEMS = {"quadratic": quadratics, "softmax": softmax_regression}


def stacked(problem: BilevelProblem, x: Tree, y: Tree, batch: Tree, W: torch.Tensor) -> Advance:
    level = STRATEGIES["ED"](W)
    sparkle = Sparkle(problem, level, level, alpha=ALPHA, beta=BETA, gamma=BETA, theta=THETA)
    state = sparkle.start(x, y, batch)

    def advance() -> torch.Tensor:
        nonlocal state
        state = sparkle.step(state, batch)
        return state.x

    return advance


def looped(problem: BilevelProblem, x: Tree, y: Tree, batch: Tree, W: torch.Tensor) -> Advance:
    """The same iterates, one agent after another."""
    n = len(W)
    neighbours = [[(j, float(W[i, j])) for j in torch.nonzero(W[i]).flatten().tolist()] for i in range(n)]
    batches = [torch.utils._pytree.tree_map(lambda leaf, i=i: leaf[i], batch) for i in range(n)]
    s: list[list[torch.Tensor]] = [[leaf.clone() for _ in range(n)] for leaf in (x, y, y)]
    q = [[torch.zeros_like(leaf) for _ in range(n)] for leaf in (x, y, y)]
    r = [torch.zeros_like(x) for _ in range(n)]

    def directions(i: int) -> list[torch.Tensor]:
        x, y = s[0][i].requires_grad_(), s[1][i].requires_grad_()
        upper_x, upper_y = torch.autograd.grad(
            problem.upper(x, y, batches[i]), (x, y), allow_unused=True, materialize_grads=True
        )
        (v,) = torch.autograd.grad(problem.lower(x, y, batches[i]), y, create_graph=True)
        cross, hessian = torch.autograd.grad(v, (x, y), s[2][i])
        return [upper_x - cross, v.detach(), hessian - upper_y]

    def mixed(rows: list[torch.Tensor]) -> list[torch.Tensor]:
        return [sum((w * rows[j] for j, w in neighbours[i]), start=torch.zeros_like(rows[i])) for i in range(n)]

    def advance() -> torch.Tensor:
        nonlocal r
        moves = [list(column) for column in zip(*(directions(i) for i in range(n)), strict=True)]
        r = [(1 - THETA) * old + THETA * new for old, new in zip(r, moves[0], strict=True)]
        moves[0] = r
        for level, step in enumerate((ALPHA, BETA, BETA)):
            ahead = mixed([a.detach() - step * b for a, b in zip(s[level], moves[level], strict=True)])
            s[level] = [a - b for a, b in zip(ahead, q[level], strict=True)]
            q[level] = [a + b - c for a, b, c in zip(q[level], s[level], mixed(s[level]), strict=True)]
        return torch.stack(s[0])

    return advance


def rate(advance: Advance, seconds: float) -> float:
    """Iterations per second."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        advance()
        count += 1
    return count / (time.perf_counter() - began)


def speed(seconds: float, repeats: int) -> list[JsonObject]:
    """Medians over repeats, both engines in turn."""
    rows = []
    for name, make in PROBLEMS.items():
        for n in SIZES:
            W = topology.ring(n, 0.5)
            engines = [engine(*make(n), W) for engine in (stacked, looped)]
            ours, theirs = engines[0](), engines[1]()
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
            rounds = [[rate(engine, seconds) for engine in engines] for _ in range(repeats)]
            a, b = (statistics.median(column) for column in zip(*rounds, strict=True))
            rows.append({"problem": name, "agents": n, "stacked": a, "looped": b, "ratio": a / b})
            print(f"{name}, n = {n}: {a:.0f} iterations/s stacked, {b:.1f} looped: {a / b:.1f}", file=sys.stderr)
    return rows


def wire(ks: tuple[int, ...] = (1000, 100, 10)) -> dict[str, float]:
    """Bytes per worker and step (8 workers on 2 processes) by k of rand-k on float64, by the Linux kernel."""
    bytes_per_step = {}
    for k in ks:
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            command += ["-m", "training.bilevel.launch", f"out={out}", "algorithm=ef-soba", f"k={k}", "steps=50"]
            command += ["x_size=1000", "y_size=1000"]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
            result = json.loads((Path(out) / "result.json").read_text())
        bytes_per_step[str(k)] = result["sent"][1] / result["steps"] / 4  # the other process is the server
        print(f"rand-{k} of 1000: {bytes_per_step[str(k)]:.0f} bytes a worker and step", file=sys.stderr)
    return bytes_per_step


def main() -> None:
    parser = command_line("bilevel", __doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--wire", action="store_true", help="also count the bytes of real processes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: JsonObject = {"speed": speed(args.seconds, args.repeats)}
    if args.wire:
        result["bytes"] = wire()
    finish(args, result, report)


def report(result: JsonObject) -> None:
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
