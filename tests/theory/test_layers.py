"""The small transformer: runs trained together against one alone, masking, resuming to the bit."""

from __future__ import annotations

from typing import Any

import torch

from theory.layers import Sample, Shape, forward, start, train

SHAPE = Shape(inputs=6, outputs=2, width=16)


def sample(step: int) -> Sample:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randn((3, 8, 5, 6), generator=generator)
    return tokens, torch.ones(3, 8, 5, dtype=torch.bool), tokens[:, :, 0, :2]


def squares(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((output - target) ** 2).sum(-1).mean(-1)


def trained(saved: dict[str, Any], begin: int, end: int, draw: Any = sample) -> dict[str, Any]:
    return train(SHAPE, saved, draw, squares, begin, end, lambda *_: None, 1e-2)


def test_runs_together_are_runs_alone() -> None:
    first = {"parameters": start(SHAPE, 3, 0), "adam": {}}
    together = trained(first, 0, 5)["parameters"]
    alone = {"parameters": {name: each[1:2] for name, each in first["parameters"].items()}, "adam": {}}
    single = trained(alone, 0, 5, lambda step: tuple(each[1:2] for each in sample(step)))["parameters"]
    assert all(torch.allclose(together[name][1], single[name][0], atol=1e-5) for name in single)


def test_training_resumes_to_the_bit() -> None:
    first = {"parameters": start(SHAPE, 3, 0), "adam": {}}
    uninterrupted, parts = trained(first, 0, 6), trained(trained(first, 0, 2), 2, 6)
    assert all(
        torch.equal(uninterrupted["parameters"][name], parts["parameters"][name])
        for name in uninterrupted["parameters"]
    )


def test_columns_that_do_not_exist_are_not_seen() -> None:
    parameters = {name: each[0] for name, each in start(SHAPE, 1, 0).items()}
    tokens = torch.randn((4, 5, 6), generator=torch.Generator().manual_seed(0))
    live = torch.ones(4, 5, dtype=torch.bool)
    live[:, 1] = False
    output, attention = forward(SHAPE, parameters, tokens, live)
    changed = tokens.clone()
    changed[:, 1] = 7
    assert torch.allclose(forward(SHAPE, parameters, changed, live)[0], output, atol=1e-6)
    assert (attention[:, :, 1] == 0).all() and torch.allclose(attention.sum(-1), torch.ones(3, 4))


def test_it_learns_to_read_its_last_column() -> None:
    def last_column(step: int) -> Sample:
        tokens, live, _ = sample(step)
        return tokens, live, tokens[:, :, -1, :2]

    losses: list[torch.Tensor] = []
    first = {"parameters": start(SHAPE, 3, 0), "adam": {}}
    train(SHAPE, first, last_column, squares, 0, 200, lambda step, loss, attention: losses.append(loss), 1e-2)
    loss_curve = torch.stack(losses)
    assert (loss_curve[-20:].mean(0) < 0.6 * loss_curve[:20].mean(0)).all()
