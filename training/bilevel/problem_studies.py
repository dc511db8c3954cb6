"""What `iro run bilevel.problems` compares: four ready problems, each with its methods, its steps and its score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.func import grad
from torch.utils._pytree import tree_map

from training.bilevel import topology
from training.bilevel.baselines import DMaml
from training.bilevel.methods import METHODS, Decentralized, Method, Setting
from training.bilevel.problem import Tree
from training.bilevel.problems import (
    fashion_mnist,
    few_shot,
    hyper_cleaning,
    hyper_representation,
    logistic,
    policy_evaluation,
)
from training.bilevel.problems.logistic import Batch, Rows
from training.run import rng_of

DECENTRALIZED = ("D-SOBA", "ED", "EXTRA", "ATC-GT", "ED/ATC-GT", "SLDBO", "MDBO", "MA-DSBO-GT")
SERVER = ("SOBA", "EF-SOBA, top-k", "EF-SOBA, rand-k", "C-SOBA, rand-k", "CM-SOBA, rand-k")
Score = Callable[[Tree, Tree], float]  # x and y [n, ...] of one run to a number


class Prepared(NamedTuple):
    """The runs of a study, one for each seed: where they start, batches [runs, n, ...], and their scores."""

    settings: list[Setting]
    draw: Callable[[], Tree]
    scores: Sequence[Score]


class Steps(NamedTuple):
    """Of x, of y and z; the weight of the newest u; the share of coordinates that rand-k and top-k send."""

    alpha: float
    beta: float
    theta: float = 0.2
    kept: float = 0.05

    def times(self, scale: float) -> Steps:
        return self._replace(alpha=scale * self.alpha, beta=scale * self.beta)


@dataclass(frozen=True)
class Study:
    """``make`` draws all runs anew from (data, agents, seeds, steps), so that every method sees the same."""

    title: str
    score: str  # "accuracy", or "error"
    make: Callable[[Path, int, Sequence[int], Steps], Prepared]
    methods: dict[str, Method]
    steps: Steps


def _stack(trees: Sequence[Tree]) -> Tree:
    return tree_map(lambda *leaves: torch.stack(leaves), *trees)


# Policy evaluation

STATES, FEATURES, REWARD_NOISE = 20, 5, 0.2


def policy(data: Path, agents: int, seeds: Sequence[int], steps: Steps) -> Prepared:
    """Noise in the rewards that agents see at each step. Score: mean_i ‖x_i - x*‖² over ‖x*‖²."""
    W = topology.ring(agents, 0.5).double()
    seen = [policy_evaluation.draw(agents, states=STATES, size=FEATURES, seed=seed) for seed in seeds]
    best = [policy_evaluation.solution(one) for one in seen]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x, y = torch.zeros(FEATURES).double(), torch.zeros(STATES).double()

    def noisy(one: policy_evaluation.Seen, generator: torch.Generator) -> policy_evaluation.Seen:
        noise = torch.randn(one.rewards.shape, generator=generator, dtype=torch.float64)
        return one._replace(rewards=one.rewards + REWARD_NOISE * noise)

    def far(best: torch.Tensor, x: Tree, y: Tree) -> float:
        return float((x - best).square().sum(-1).mean() / best.square().sum())

    return Prepared(
        [Setting(policy_evaluation.PROBLEM, W, x, y, *steps)] * len(seeds),
        lambda: _stack([noisy(*pair) for pair in zip(seen, generators, strict=True)]),
        [partial(far, each) for each in best],
    )


# Fashion-MNIST: hyper-representation and ridges of a logistic regression

POOL, IMAGES, BATCH, HIDDEN, CLASSES = 2, 200, 25, 32, 10


@cache
def _images(data: Path) -> tuple[fashion_mnist.Images, fashion_mnist.Images]:
    train, test = (fashion_mnist.shrunk(fashion_mnist.load(data, train=train), POOL) for train in (True, False))
    return train, test


def _shared(data: Path, agents: int, seeds: Sequence[int]) -> tuple[Callable[[], Batch], Rows]:
    """Batches of all runs, and test images. Shares of classes differ between agents: Dirichlet(.3)."""
    train, test = _images(data)
    dealt = [
        hyper_cleaning.share_out(train, agents, IMAGES, corruption=0, concentration=0.3, rng=rng_of(seed, 0))
        for seed in seeds
    ]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw() -> Batch:
        found = [one.take(one.draw(BATCH, generator)) for one, generator in zip(dealt, generators, strict=True)]
        return _stack([Batch(Rows(*one.train), Rows(*one.clean)) for one in found])

    return draw, Rows(*test)


def representation(data: Path, agents: int, seeds: Sequence[int], steps: Steps) -> Prepared:
    """Score: test accuracy of the server's features and head."""
    draw, test = _shared(data, agents, seeds)
    starts = [
        hyper_representation.start(test.inputs.shape[-1], HIDDEN, CLASSES, torch.Generator().manual_seed(seed))
        for seed in seeds
    ]

    def right(x: Tree, y: Tree) -> float:
        one_x, one_y = tree_map(lambda leaf: leaf.mean(0), (x, y))
        return few_shot.accuracy(one_x, one_y, test)

    W = topology.ring(agents, 0.5)
    settings = [Setting(hyper_representation.PROBLEM, W, *start, *steps) for start in starts]
    return Prepared(settings, draw, [right] * len(seeds))


def ridges(data: Path, agents: int, seeds: Sequence[int], steps: Steps) -> Prepared:
    """Score: test accuracy of the server's weights, fitted with the learnt ridges."""
    draw, test = _shared(data, agents, seeds)
    size = test.inputs.shape[-1]
    x = torch.full((size,), -4.0)
    y = {"weights": torch.zeros(size, CLASSES), "bias": torch.zeros(CLASSES)}

    def right(x: Tree, y: Tree) -> float:
        found = logistic.logits(tree_map(lambda leaf: leaf.mean(0), y), test.inputs)
        return float((found.argmax(-1) == test.classes).double().mean())

    setting = Setting(logistic.PROBLEM, topology.ring(agents, 0.5), x, y, *steps)
    return Prepared([setting] * len(seeds), draw, [right] * len(seeds))


# Few-shot learning

WAYS, SHOTS, QUERIES, TASKS, UNSEEN_TASKS, FEW = 3, 5, 15, 8, 40, 8  # FEW features
KNOWN, OF_AN_AGENT = 7, 4  # classes to learn from, and how many of them an agent has; the other three are to test on


def meta(data: Path, agents: int, seeds: Sequence[int], steps: Steps) -> Prepared:
    """Tasks of each agent's own four classes. Score: accuracy on tasks of three classes that no agent has, heads fitted
    to five examples a class."""
    train, test = (Rows(*each) for each in _images(data))
    per_run, settings, scores = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        sizes = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES}
        own = [_of([(i + j) % KNOWN for j in range(OF_AN_AGENT)], train) for i in range(agents)]
        per_run.append(_stack([few_shot.draw(rows, tasks=TASKS, **sizes, generator=generator) for rows in own]))
        others = _of(range(KNOWN, CLASSES), test)
        unseen = few_shot.draw(others, tasks=UNSEEN_TASKS, **sizes, generator=generator)
        x, head = hyper_representation.start(test.inputs.shape[-1], FEW, WAYS, generator)
        settings.append(Setting(few_shot.PROBLEM, topology.ring(agents, 0.5), x, head.repeat(TASKS, 1, 1), *steps))
        scores.append(partial(_with_new_heads, unseen))
    batch = _stack(per_run)
    return Prepared(settings, lambda: batch, scores)


def _of(classes: Sequence[int], rows: Rows) -> Rows:
    of = torch.isin(rows.classes, torch.tensor(list(classes)))
    return Rows(rows.inputs[of], rows.classes[of])


def _with_new_heads(unseen: few_shot.Tasks, x: Tree, y: Tree) -> float:
    """Features averaged over agents; heads by 100 steps of gradient descent on the support examples."""
    one = tree_map(lambda leaf: leaf.mean(0), x)
    heads = torch.zeros(UNSEEN_TASKS, FEW + 1, WAYS)
    for _ in range(100):
        heads = heads - UNSEEN_TASKS * 0.5 * grad(few_shot.support_loss, argnums=1)(one, heads, unseen)
    return few_shot.accuracy(one, heads, unseen.query)


@dataclass(frozen=True)
class Maml(Decentralized):
    """Decentralized MAML, which has a head for all tasks and takes one step on each: x is the features of its state."""

    make: Callable[[Setting], Any] = field(
        default=lambda at: DMaml(_of_head("support"), _of_head("query"), at.W, at.alpha, at.beta)
    )
    evaluations: int = 3
    vectors: tuple[int, int] = (1, 1)

    def start(self, setting: Setting, batch: Tree) -> Any:
        return self.make(setting).start({"x": setting.x, "head": setting.y[0]})

    def sent(self, setting: Setting) -> float:
        return super().sent(setting._replace(y=setting.y[0]))

    def upper(self, state: Any) -> Tree:
        return state["x"]

    def lower(self, state: Any) -> Tree:
        return state["head"]


def _of_head(part: str) -> Callable[[Tree, few_shot.Tasks], torch.Tensor]:
    def loss(parameters: Tree, task: few_shot.Tasks) -> torch.Tensor:
        rows = getattr(task, part)
        scores = hyper_representation.features(parameters["x"], rows.inputs) @ parameters["head"]
        return torch.nn.functional.cross_entropy(scores, rows.classes)

    return loss


def _named(*names: str) -> dict[str, Method]:
    return {name: METHODS[name] for name in names}


STUDIES = {
    "policy": Study("policy evaluation", "error", policy, _named(*DECENTRALIZED), Steps(alpha=0.5, beta=4.0)),
    "meta": Study(
        "few-shot learning",
        "accuracy",
        meta,
        _named("D-SOBA", "ED", "EXTRA", "ATC-GT", "ED/ATC-GT") | {"D-MAML": Maml()},
        Steps(alpha=0.5, beta=1.0),
    ),
    "representation": Study(
        "hyper-representation", "accuracy", representation, _named(*SERVER), Steps(alpha=1.0, beta=0.5)
    ),
    "ridges": Study(
        "ridges of a logistic regression", "accuracy", ridges, _named(*SERVER), Steps(alpha=10.0, beta=0.2)
    ),
}
