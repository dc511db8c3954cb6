"""The comparisons of `iro run bilevel.problems`: four ready problems with their methods, step sizes and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch.func import grad
from torch.utils._pytree import tree_map

from training.bilevel import topology
from training.bilevel.algorithms.maml import DMaml
from training.bilevel.algorithms.method import BilevelMethod, ProblemSetup, neighbour_bytes
from training.bilevel.algorithms.registry import METHODS
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
Score = Callable[[Tree, Tree], float]  # of x and y [n, ...] of one run


class Prepared(NamedTuple):
    """The runs of a study, one per seed: their setups, batches [runs, n, ...] and scores."""

    setups: list[ProblemSetup]
    draw_batch: Callable[[], Tree]
    scores: Sequence[Score]


class StepSizes(NamedTuple):
    """Of x, and of y and z; the weight of the newest u; the share of the coordinates that rand-k and top-k send."""

    alpha: float
    beta: float
    theta: float = 0.2
    sent_share: float = 0.05

    def times(self, scale: float) -> StepSizes:
        return self._replace(alpha=scale * self.alpha, beta=scale * self.beta)


@dataclass(frozen=True)
class ProblemStudy:
    """``prepare`` draws all runs from (data folder, agents, seeds, steps, tuning), the same for every method.

    Where ``tuning``, to choose step sizes, scores are of training images that no agent has.
    """

    title: str
    score: Literal["accuracy", "error"]
    prepare: Callable[[Path, int, Sequence[int], StepSizes, bool], Prepared]
    methods: dict[str, BilevelMethod]
    steps: StepSizes


def _stack(trees: Sequence[Tree]) -> Tree:
    return tree_map(lambda *leaves: torch.stack(leaves), *trees)


def _mean_agent(tree: Tree) -> Tree:
    return tree_map(lambda leaf: leaf.mean(0), tree)


# Policy evaluation

STATES, FEATURES, REWARD_NOISE = 20, 5, 0.2


def policy(data: Path, agents: int, seeds: Sequence[int], steps: StepSizes, tuning: bool) -> Prepared:
    """Rewards have noise at each step. Score: mean_i ‖x_i - x*‖² over ‖x*‖², also for tuning.

    The problem of a run and its noise come from the same seed: the noise of the first batch depends on the problem.
    """
    W = topology.ring(agents, 0.5).double()
    observations = [policy_evaluation.draw(agents, states=STATES, size=FEATURES, seed=seed) for seed in seeds]
    solutions = [policy_evaluation.solution(observed) for observed in observations]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x, y = torch.zeros(FEATURES).double(), torch.zeros(STATES).double()

    def noisy(observed: policy_evaluation.Observations, generator: torch.Generator) -> policy_evaluation.Observations:
        noise = torch.randn(observed.rewards.shape, generator=generator, dtype=torch.float64)
        return observed._replace(rewards=observed.rewards + REWARD_NOISE * noise)

    def relative_error(solution: torch.Tensor, x: Tree, y: Tree) -> float:
        return float((x - solution).square().sum(-1).mean() / solution.square().sum())

    return Prepared(
        [ProblemSetup(policy_evaluation.PROBLEM, W, x, y, *steps)] * len(seeds),
        lambda: _stack([noisy(*pair) for pair in zip(observations, generators, strict=True)]),
        [partial(relative_error, solution) for solution in solutions],
    )


# Fashion-MNIST: hyper-representation and ridges of a logistic regression

POOL, IMAGES, BATCH, HIDDEN, CLASSES = 2, 200, 25, 32, 10


@cache
def _images(data: Path, tuning: bool) -> tuple[fashion_mnist.Images, fashion_mnist.Images]:
    """Images of the agents, and of the scores: test images, for tuning training images that no agent has."""
    train = fashion_mnist.shrunk(fashion_mnist.load(data, train=True), POOL)
    if tuning:
        return fashion_mnist.split_for_tuning(train)
    return train, fashion_mnist.shrunk(fashion_mnist.load(data, train=False), POOL)


def _shared(data: Path, agents: int, seeds: Sequence[int], tuning: bool) -> tuple[Callable[[], Batch], Rows]:
    """Batches of all runs, and the images of the scores. The agents' shares of classes are Dirichlet(.3)."""
    train, scored = _images(data, tuning)
    shares = [
        hyper_cleaning.share_out(train, agents, IMAGES, corruption=0, concentration=0.3, rng=rng_of(seed, 0))
        for seed in seeds
    ]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw_batch() -> Batch:
        batches = [
            share.take(share.draw(BATCH, generator)) for share, generator in zip(shares, generators, strict=True)
        ]
        return _stack([Batch(Rows(*batch.train), Rows(*batch.clean)) for batch in batches])

    return draw_batch, Rows(*scored)


def representation(data: Path, agents: int, seeds: Sequence[int], steps: StepSizes, tuning: bool) -> Prepared:
    """Score: accuracy of the server's features and head.

    The start of a run and its batches come from the same seed: the first indices depend on the start.
    """
    draw_batch, scored = _shared(data, agents, seeds, tuning)
    starts = [
        hyper_representation.start(scored.inputs.shape[-1], HIDDEN, CLASSES, torch.Generator().manual_seed(seed))
        for seed in seeds
    ]

    def accuracy(x: Tree, y: Tree) -> float:
        return few_shot.accuracy(_mean_agent(x), _mean_agent(y), scored)

    W = topology.ring(agents, 0.5)
    setups = [ProblemSetup(hyper_representation.PROBLEM, W, *start, *steps) for start in starts]
    return Prepared(setups, draw_batch, [accuracy] * len(seeds))


def ridges(data: Path, agents: int, seeds: Sequence[int], steps: StepSizes, tuning: bool) -> Prepared:
    """Score: accuracy of the server's weights, fitted with the learnt ridges."""
    draw_batch, scored = _shared(data, agents, seeds, tuning)
    size = scored.inputs.shape[-1]
    x = torch.full((size,), -4.0)
    y = {"weights": torch.zeros(size, CLASSES), "bias": torch.zeros(CLASSES)}

    def accuracy(x: Tree, y: Tree) -> float:
        logits = logistic.logits(_mean_agent(y), scored.inputs)
        return float((logits.argmax(-1) == scored.classes).double().mean())

    setup = ProblemSetup(logistic.PROBLEM, topology.ring(agents, 0.5), x, y, *steps)
    return Prepared([setup] * len(seeds), draw_batch, [accuracy] * len(seeds))


# Few-shot learning

WAYS, SHOTS, QUERIES, TASKS, UNSEEN_TASKS, FEW_SHOT_FEATURES = 3, 5, 15, 8, 40, 8
TRAINING_CLASSES, CLASSES_PER_AGENT = 7, 4  # the other three classes are for the scores


def meta(data: Path, agents: int, seeds: Sequence[int], steps: StepSizes, tuning: bool) -> Prepared:
    """Tasks of four classes per agent. Score: accuracy on tasks of three classes that no agent has, with heads fitted
    to five examples per class.

    Each agent draws its tasks, with labels in random order, and all agents share one set of heads (``few_shot``):
    head j is fitted to task j of every agent, which are different tasks. Features are learnt for heads that suit none.
    """
    train, scored = (Rows(*images) for images in _images(data, tuning))
    per_run, setups, scores = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        sizes = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES}
        agents_rows = [
            _of_classes([(i + j) % TRAINING_CLASSES for j in range(CLASSES_PER_AGENT)], train) for i in range(agents)
        ]
        tasks = [few_shot.draw(rows, tasks=TASKS, **sizes, generator=generator) for rows in agents_rows]
        per_run.append(_stack(tasks))
        unseen_rows = _of_classes(range(TRAINING_CLASSES, CLASSES), scored)
        unseen = few_shot.draw(unseen_rows, tasks=UNSEEN_TASKS, **sizes, generator=generator)
        x, head = hyper_representation.start(scored.inputs.shape[-1], FEW_SHOT_FEATURES, WAYS, generator)
        y = head.repeat(TASKS, 1, 1)
        setups.append(ProblemSetup(few_shot.PROBLEM, topology.ring(agents, 0.5), x, y, *steps))
        scores.append(partial(_accuracy_with_new_heads, unseen))
    batch = _stack(per_run)
    return Prepared(setups, lambda: batch, scores)


def _of_classes(classes: Sequence[int], rows: Rows) -> Rows:
    selected = torch.isin(rows.classes, torch.tensor(list(classes)))
    return Rows(rows.inputs[selected], rows.classes[selected])


def _accuracy_with_new_heads(unseen: few_shot.Tasks, x: Tree, y: Tree) -> float:
    """Features averaged over agents; heads by 100 steps of gradient descent on the support examples."""
    features = _mean_agent(x)
    heads = torch.zeros(UNSEEN_TASKS, FEW_SHOT_FEATURES + 1, WAYS)
    for _ in range(100):
        heads = heads - UNSEEN_TASKS * 0.5 * grad(few_shot.support_loss, argnums=1)(features, heads, unseen)
    return few_shot.accuracy(features, heads, unseen.query)


@dataclass(frozen=True)
class FewShotMaml:
    """D-MAML with one head for all tasks and one step per task: an ``Algorithm`` for the setup of ``meta``."""

    maml: DMaml

    def start(self, x: Tree, y: Tree, batch: Tree) -> Tree:
        return self.maml.start({"x": x, "head": y[0]})

    def step(self, state: Tree, batch: Tree, generator: torch.Generator) -> Tree:
        return self.maml.step(state, batch)


def _few_shot_maml(setup: ProblemSetup) -> FewShotMaml:
    return FewShotMaml(DMaml(_loss_of("support"), _loss_of("query"), setup.W, setup.alpha, setup.beta))


def _loss_of(part: str) -> Callable[[Tree, few_shot.Tasks], torch.Tensor]:
    def loss(parameters: Tree, task: few_shot.Tasks) -> torch.Tensor:
        rows = getattr(task, part)
        scores = hyper_representation.features(parameters["x"], rows.inputs) @ parameters["head"]
        return torch.nn.functional.cross_entropy(scores, rows.classes)

    return loss


def _maml_bytes(setup: ProblemSetup) -> float:
    return neighbour_bytes(1, 1)(setup._replace(y=setup.y[0]))


D_MAML = BilevelMethod(
    build=_few_shot_maml,
    evaluations=3,
    bytes_sent=_maml_bytes,
    variables=lambda state: (state["x"], state["head"]),
)


def _named(*names: str) -> dict[str, BilevelMethod]:
    return {name: METHODS[name] for name in names}


STUDIES = {
    "policy": ProblemStudy("policy evaluation", "error", policy, _named(*DECENTRALIZED), StepSizes(0.5, 4.0)),
    "meta": ProblemStudy(
        "few-shot learning",
        "accuracy",
        meta,
        _named("D-SOBA", "ED", "EXTRA", "ATC-GT", "ED/ATC-GT") | {"D-MAML": D_MAML},
        StepSizes(0.5, 1.0),
    ),
    "representation": ProblemStudy(
        "hyper-representation", "accuracy", representation, _named(*SERVER), StepSizes(1.0, 0.5)
    ),
    "ridges": ProblemStudy(
        "ridges of a logistic regression", "accuracy", ridges, _named(*SERVER), StepSizes(10.0, 0.2)
    ),
}
