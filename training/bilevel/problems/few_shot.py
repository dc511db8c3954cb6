"""Few-shot learning: features that all tasks share, and a head per task, fitted to few examples (arXiv:2411.14166).

x: as in ``hyper_representation``. y [tasks, h + 1, ways]: the heads. The lower level fits them to the support examples
of the tasks, the upper level evaluates them on the query examples. Tasks are fixed: new tasks need new heads.

Several agents have one y between them, as the consensus of the lower problem demands: head j is fitted to task j of
every agent. It is the head of one task only where agents have examples of the same tasks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

from training.bilevel.problem import BilevelProblem, Tree
from training.bilevel.problems.hyper_representation import RIDGE, features
from training.bilevel.problems.logistic import Rows


class Tasks(NamedTuple):
    """support: inputs [tasks, ways · shots, d], classes [tasks, ways · shots] from 0 to ways - 1; query likewise."""

    support: Rows
    query: Rows


def _loss(x: Tree, y: torch.Tensor, rows: Rows) -> torch.Tensor:
    scores = features(x, rows.inputs) @ y
    return cross_entropy(scores.flatten(0, -2), rows.classes.flatten())


def support_loss(x: Tree, y: torch.Tensor, tasks: Tasks) -> torch.Tensor:
    return _loss(x, y, tasks.support) + RIDGE / 2 * y.square().sum() / len(y)


def query_loss(x: Tree, y: torch.Tensor, tasks: Tasks) -> torch.Tensor:
    return _loss(x, y, tasks.query)


PROBLEM = BilevelProblem(query_loss, support_loss)


def draw(rows: Rows, *, tasks: int, ways: int, shots: int, queries: int, generator: torch.Generator) -> Tasks:
    """Tasks of ``ways`` classes of ``rows``, ``shots`` support and ``queries`` query examples of each class.

    Raises ValueError where ``rows`` has too few classes, or a class of too few examples.
    """
    classes, counts = rows.classes.unique(return_counts=True)
    if ways > len(classes):
        raise ValueError(f"ways: {ways}, and there are {len(classes)} classes")
    if shots + queries > counts.min():
        raise ValueError(f"shots + queries: {shots + queries}, and a class has {int(counts.min())} examples")
    examples = shots + queries
    places = [
        torch.stack([_of_class(rows, label, examples, generator) for label in _sample(classes, ways, generator)])
        for _ in range(tasks)
    ]
    inputs = rows.inputs[torch.stack(places)]  # [tasks, ways, shots + queries, d]
    labels = torch.arange(ways)[None, :, None].expand(tasks, ways, examples)
    parts = zip(inputs.split([shots, queries], dim=2), labels.split([shots, queries], dim=2), strict=True)
    return Tasks(*(Rows(part.flatten(1, 2), label.flatten(1)) for part, label in parts))


def accuracy(x: Tree, y: torch.Tensor, rows: Rows) -> float:
    return float(((features(x, rows.inputs) @ y).argmax(-1) == rows.classes).double().mean())


def _sample(values: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return values[torch.randperm(len(values), generator=generator)[:count]]


def _of_class(rows: Rows, label: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return _sample((rows.classes == label).nonzero()[:, 0], count, generator)
