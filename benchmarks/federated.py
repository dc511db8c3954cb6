"""How fast federated clients are trained: ``python -m benchmarks.federated --json``.

Client updates per second on Fashion-MNIST, by process time of one thread: clients in one batch against a plain PyTorch
loop over them, in alternating turns; and of simulated runs with 50 to 500 clients, half of them at work.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.record import command_line, finish
from iro_server import JsonObject
from training.federated.clients import LocalSGD
from training.federated.experiment import Trial, local_sgd, simulator
from training.federated.fashion import FashionTask
from training.workers import one_thread

TASKS = {
    "MLP of 32, batches of 20": FashionTask(hidden=32),
    "MLP of 64, batches of 20": FashionTask(),
    "MLP of 64, batches of 50": FashionTask(batch=50),
    "CNN of 8 and 16 channels, batches of 20": FashionTask(model="cnn", hidden=32),
}
TOGETHER = (5, 10, 25, 50)
AIM = 4.0
GROWTH = (50, 100, 200, 500)


def rates(works: dict[str, tuple[Callable[[], object], int]], seconds: float, turns: int = 5) -> dict[str, float]:
    """Client updates a second of each (work, its updates), the median of ``turns`` alternating turns."""
    turn_rates: dict[str, list[float]] = {name: [] for name in works}
    for work, _ in works.values():
        work()
    for _ in range(turns):
        for name, (work, count) in works.items():
            began, done = time.process_time(), 0
            while (took := time.process_time() - began) < seconds / turns:
                work()
                done += count
            turn_rates[name].append(done / took)
    return {name: statistics.median(values) for name, values in turn_rates.items()}


def against_a_loop(task: FashionTask, seconds: float) -> JsonObject:
    clients, params = local_sgd(task, task.splits()["train"], 0)
    alone = task.network()

    def batched(count: int) -> Callable[[], object]:
        return lambda: clients(params, range(count), range(count))

    works = {str(count): (batched(count), count) for count in TOGETHER}
    works["loop"] = (lambda: clients.one_by_one(params, range(5), range(5), alone), 5)
    by_work = rates(works, seconds)
    return by_work | {"over the loop": {str(count): by_work[str(count)] / by_work["loop"] for count in TOGETHER}}


def growth(count: int, updates: int) -> dict[str, float]:
    """A run of FADAS under mild delays with this many clients."""
    task = FashionTask(clients=count, concurrency=count // 2, hidden=32, alpha=1.0)  # .3 leaves one of 500 with too few
    calls: list[int] = []
    clients, params = local_sgd(task, task.splits()["train"], 0)

    class Counted(LocalSGD):
        def __call__(self, params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
            calls.append(len(clients))
            return super().__call__(params, clients, seeds)

    counted = Counted(**vars(clients))
    ours = simulator(Trial(task, "FADAS", 2e-3, "mild", 0, updates), counted, params)
    began = time.process_time()
    ours.run(updates // task.buffer_size)
    took = time.process_time() - began
    return {"per second": sum(calls) / took, "together": sum(calls) / len(calls), "trained": sum(calls)}


def main() -> None:
    parser = command_line("federated", __doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each measurement of a comparison")
    parser.add_argument("--updates", type=int, default=1000, help="client updates in a run of the growth measurement")
    args = parser.parse_args()
    with one_thread():
        result: JsonObject = {"against a loop": {}, "growth": {}, "torch": torch.__version__}
        for name, task in TASKS.items():
            result["against a loop"][name] = against_a_loop(task, args.seconds)
        for count in GROWTH:
            result["growth"][str(count)] = growth(count, args.updates)
    finish(args, result, report)


def report(result: JsonObject) -> None:
    for name, speeds in result["against a loop"].items():
        ratios = ", ".join(f"{count}: {ratio:.2f}" for count, ratio in speeds["over the loop"].items())
        print(f"{name}: loop {speeds['loop']:.0f} client updates/s; batched over it, aim {AIM:g}, by clients {ratios}")
    for count, speeds in result["growth"].items():
        print(
            f"{count} clients: {speeds['per second']:.0f} client updates/s, {speeds['together']:.1f} trained at a time"
        )


if __name__ == "__main__":
    main()
