"""The ready problems on scikit-learn's digits: hypergradients by finite differences, and what learning brings."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.func import grad, hessian
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from training.bilevel import topology
from training.bilevel.algorithms.maml import DMaml
from training.bilevel.algorithms.sparkle import STRATEGIES, Sparkle, consensus_error
from training.bilevel.problem import BilevelProblem, Tree
from training.bilevel.problems import few_shot, hyper_cleaning, hyper_representation, logistic, policy_evaluation
from training.bilevel.problems.fashion_mnist import Images
from training.bilevel.problems.logistic import Rows

AGENTS = 4
RING = topology.ring(AGENTS, self_weight=0.5)


@cache
def digits() -> Rows:
    """1,797 digits of 4 x 4 pixels in [0, 1]."""
    pixels = torch.from_numpy(load_digits().data).view(-1, 8, 8) / 16
    small = torch.nn.functional.avg_pool2d(pixels[:, None], 2).flatten(1)
    return Rows(small, torch.from_numpy(load_digits().target))


def rows(first: int, count: int, classes: int = 10) -> Rows:
    """``count`` digits below ``classes``, from the ``first`` on."""
    of = (digits().classes < classes).nonzero()[first : first + count, 0]
    return Rows(digits().inputs[of], digits().classes[of])


def split(agents: int, count: int) -> logistic.Batch:
    """Different digits for each agent, [agents, count, ...]."""
    parts = [rows(count * i, count) for i in range(2 * agents)]
    train, validation = (Rows(*map(torch.stack, zip(*half, strict=True))) for half in (parts[::2], parts[1::2]))
    return logistic.Batch(train, validation)


def solve(problem: BilevelProblem, x: Tree, like: Tree, batch: Tree) -> Tree:
    """y*(x) by Newton's method on the flat lower problem."""
    leaves, spec = tree_flatten(like)

    def unflatten(flat: torch.Tensor) -> Tree:
        parts = flat.split([leaf.numel() for leaf in leaves])
        return tree_unflatten([part.view_as(leaf) for part, leaf in zip(parts, leaves, strict=True)], spec)

    def lower(flat: torch.Tensor) -> torch.Tensor:
        return problem.lower(x, unflatten(flat), batch)

    y = torch.zeros(sum(leaf.numel() for leaf in leaves), dtype=leaves[0].dtype)
    for _ in range(12):
        y = y - torch.linalg.solve(hessian(lower)(y), grad(lower)(y))
    return unflatten(y)


def noise(like: Tree, seed: int) -> Tree:
    generator = torch.Generator().manual_seed(seed)
    return tree_map(lambda leaf: torch.randn(leaf.shape, generator=generator, dtype=torch.float64), like)


def cleaning() -> tuple[BilevelProblem, Tree, Tree, Tree]:
    data = hyper_cleaning.share_out(
        Images(*rows(0, 90, 3)), 1, 15, corruption=0.3, concentration=10.0, rng=np.random.default_rng(0)
    )
    batch = tree_map(lambda leaf: leaf[0], data.everything())
    return hyper_cleaning.PROBLEM, *hyper_cleaning.start(data, 3), batch


def ridges() -> tuple[BilevelProblem, Tree, Tree, Tree]:
    y = {"weights": torch.zeros(16, 3).double(), "bias": torch.zeros(3).double()}
    return logistic.PROBLEM, torch.full((16,), -3.0).double(), y, logistic.Batch(rows(0, 30, 3), rows(30, 30, 3))


def evaluation() -> tuple[BilevelProblem, Tree, Tree, Tree]:
    agents = policy_evaluation.draw(1, states=8, size=3, seed=0)
    batch = policy_evaluation.Observations(*(leaf[0] for leaf in agents))
    return policy_evaluation.PROBLEM, torch.zeros(3).double(), torch.zeros(8).double(), batch


def representation() -> tuple[BilevelProblem, Tree, Tree, Tree]:
    x, y = hyper_representation.start(16, 4, 3, torch.Generator().manual_seed(0))
    batch = logistic.Batch(rows(0, 30, 3), rows(30, 30, 3))
    return hyper_representation.PROBLEM, *tree_map(torch.Tensor.double, (x, y)), batch


def tasks() -> tuple[BilevelProblem, Tree, Tree, Tree]:
    generator = torch.Generator().manual_seed(0)
    x, head = hyper_representation.start(16, 4, 2, generator)
    batch = few_shot.draw(digits(), tasks=3, ways=2, shots=4, queries=6, generator=generator)
    return few_shot.PROBLEM, *tree_map(torch.Tensor.double, (x, head.repeat(3, 1, 1))), batch


@pytest.mark.parametrize("make", [cleaning, ridges, evaluation, representation, tasks])
def test_hypergradients_are_finite_differences(make: Callable[[], tuple[BilevelProblem, Tree, Tree, Tree]]) -> None:
    problem, x, like, batch = make()
    x = tree_map(lambda leaf, by: leaf + 0.3 * by, x, noise(x, 1))
    along, step = noise(x, 2), 1e-4

    def phi(scale: float) -> float:
        moved = tree_map(lambda leaf, by: leaf + scale * by, x, along)
        return float(problem.upper(moved, solve(problem, moved, like, batch), batch))

    slope = (phi(step) - phi(-step)) / (2 * step)
    gradient = problem.hypergradient(x, solve(problem, x, like, batch), batch, iterations=300)
    products = tree_flatten(tree_map(lambda a, b: (a * b).sum(), gradient, along))[0]
    assert float(sum(products)) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def learn(problem: BilevelProblem, x: Tree, y: Tree, batch: Tree, steps: int, alpha: float, beta: float) -> Tree:
    """The mean x of agents after ``steps`` of SPARKLE by exact diffusion."""
    level = STRATEGIES["ED"](RING)
    algorithm = Sparkle(problem, level, level, alpha, beta, beta)
    state = algorithm.start(x, y, batch)
    for _ in range(steps):
        state = algorithm.step(state, batch)
    return tree_map(lambda leaf: leaf.mean(0), state.x)


def test_policy_evaluation_finds_the_least_squares_values() -> None:
    observed = policy_evaluation.draw(AGENTS, states=8, size=3, seed=0)
    best = policy_evaluation.solution(observed)
    level = STRATEGIES["ED"](RING)
    algorithm = Sparkle(policy_evaluation.PROBLEM, level, level, alpha=0.5, beta=4.0, gamma=4.0)
    state = algorithm.start(torch.zeros(3).double(), torch.zeros(8).double(), observed)
    for _ in range(800):
        state = algorithm.step(state, observed)
    assert consensus_error(state.x) < 1e-10
    assert float((state.x[0] - best).norm() / best.norm()) < 1e-2
    mean = policy_evaluation.Observations(*(leaf.mean(0) for leaf in observed))
    at_best = policy_evaluation.backup(best, mean)
    assert float(policy_evaluation.PROBLEM.hypergradient(best, at_best, mean).norm()) < 1e-12


def test_learnt_ridges_do_better_on_validation_data() -> None:
    batch = split(AGENTS, 40)
    x = torch.full((16,), -4.0).double()
    y = {"weights": torch.zeros(16, 10).double(), "bias": torch.zeros(10).double()}
    learnt = learn(logistic.PROBLEM, x, y, batch, 120, alpha=10.0, beta=1.0)
    everyone = tree_map(lambda leaf: leaf.flatten(0, 1), batch)
    before, after = (
        float(logistic.validation_loss(ridges, solve(logistic.PROBLEM, ridges, y, everyone), everyone))
        for ridges in (x, learnt)
    )
    assert after < before - 0.01


def test_a_learnt_representation_does_better_on_unseen_digits() -> None:
    batch = split(AGENTS, 40)
    x, y = hyper_representation.start(16, 4, 10, torch.Generator().manual_seed(0))
    x, y = tree_map(torch.Tensor.double, (x, y))
    learnt = learn(hyper_representation.PROBLEM, x, y, batch, 120, alpha=1.0, beta=0.5)
    everyone, unseen = tree_map(lambda leaf: leaf.flatten(0, 1), batch), rows(1000, 700)
    before, after = (
        few_shot.accuracy(features, solve(hyper_representation.PROBLEM, features, y, everyone), unseen)
        for features in (x, learnt)
    )
    assert after > before + 0.05


def test_tasks_have_their_classes_and_no_example_twice() -> None:
    tasks = few_shot.draw(digits(), tasks=5, ways=3, shots=2, queries=4, generator=torch.Generator().manual_seed(0))
    assert tasks.support.inputs.shape == (5, 6, 16) and tasks.query.inputs.shape == (5, 12, 16)
    assert tasks.support.classes[0].tolist() == [0, 0, 1, 1, 2, 2]
    for support, query in zip(tasks.support.inputs, tasks.query.inputs, strict=True):
        assert len(torch.cat([support, query]).unique(dim=0)) == 18
    labels = {tuple(row.tolist()): int(label) for row, label in zip(*digits(), strict=True)}
    classes = [labels[tuple(row.tolist())] for row in tasks.query.inputs[0]]
    assert len(set(classes[:4])) == len(set(classes[4:8])) == len(set(classes[8:])) == 1 and len(set(classes)) == 3
    with pytest.raises(ValueError, match=r"^ways: 11, and there are 10 classes$"):
        few_shot.draw(digits(), tasks=1, ways=11, shots=1, queries=1, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"^shots \+ queries: 500, and a class has 174 examples$"):
        few_shot.draw(digits(), tasks=1, ways=2, shots=1, queries=499, generator=torch.Generator())


def few_shot_batch() -> few_shot.Tasks:
    """Six three-way tasks of digits 0 to 6 for each agent."""
    generator = torch.Generator().manual_seed(0)
    tasks = [
        few_shot.draw(rows(0, 1797, 7), tasks=6, ways=3, shots=5, queries=15, generator=generator)
        for _ in range(AGENTS)
    ]
    return tree_map(lambda *leaves: torch.stack(leaves), *tasks)


def test_features_of_some_digits_help_with_others() -> None:
    """Heads of five examples per class, on digits 7 to 9, which no agent has."""
    x, head = tree_map(torch.Tensor.double, hyper_representation.start(16, 4, 3, torch.Generator().manual_seed(3)))
    learnt = learn(few_shot.PROBLEM, x, head.repeat(6, 1, 1), few_shot_batch(), 200, alpha=0.5, beta=1.0)
    of = digits().classes >= 7
    others = Rows(digits().inputs[of], digits().classes[of])
    unseen = few_shot.draw(others, tasks=20, ways=3, shots=5, queries=40, generator=torch.Generator().manual_seed(1))
    heads = [solve(few_shot.PROBLEM, features, head.repeat(20, 1, 1), unseen) for features in (x, learnt)]
    before, after = (
        few_shot.accuracy(features, y, unseen.query) for features, y in zip((x, learnt), heads, strict=True)
    )
    assert after > before + 0.02


def test_maml_lowers_the_loss_after_a_step_on_a_task() -> None:
    batch = few_shot_batch()
    x, head = tree_map(torch.Tensor.double, hyper_representation.start(16, 4, 3, torch.Generator().manual_seed(3)))

    def loss_on(parameters: Tree, part: Rows) -> torch.Tensor:
        scores = hyper_representation.features(parameters["x"], part.inputs) @ parameters["head"]
        return torch.nn.functional.cross_entropy(scores, part.classes)

    maml = DMaml(
        lambda parameters, task: loss_on(parameters, task.support),
        lambda parameters, task: loss_on(parameters, task.query),
        RING,
        alpha=0.5,
        beta=0.5,
    )
    start = state = maml.start({"x": x, "head": head})
    for _ in range(60):
        state = maml.step(state, batch)

    def loss(state: Tree) -> float:
        parameters = tree_map(lambda leaf: leaf[0], state)
        task = tree_map(lambda leaf: leaf[0, 0], batch)
        return float(loss_on(maml.adapt(parameters, task), task.query))

    assert loss(state) < loss(start) - 0.1


def test_agents_get_their_shares() -> None:
    images = Images(*digits())
    data = hyper_cleaning.share_out(
        images, AGENTS, 100, corruption=0.3, concentration=20.0, rng=np.random.default_rng(0)
    )
    images_of_agents = torch.cat([data.train.pixels, data.clean.pixels]).flatten(0, 1)
    assert len(images_of_agents.unique(dim=0)) == 800
    labels = {tuple(row.tolist()): int(label) for row, label in zip(*images, strict=True)}
    truth = torch.tensor([[labels[tuple(row.tolist())] for row in part] for part in data.train.pixels])
    assert torch.equal(truth != data.train.labels, data.corrupted)
    assert 0.24 < float(data.corrupted.double().mean()) < 0.36
    batch = data.take(data.draw(7, torch.Generator().manual_seed(0)))
    assert torch.equal(batch.train.pixels, data.train.pixels.flatten(0, 1)[batch.indices])
    with pytest.raises(ValueError, match=r"^class \d has too few images left: fewer agents, or a larger concentration"):
        hyper_cleaning.share_out(images, AGENTS, 200, corruption=0.0, concentration=0.01, rng=np.random.default_rng(0))
