"""Training one iteration of a LoraBackbone: the value loss of iro.md over response tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from transformers import get_cosine_schedule_with_warmup

from value_heads.backbone import LoraBackbone
from value_heads.fit import Rows, Select, best_setting, score_predictions
from value_heads.peers import broadcast_first, peer_share, sum_over_peers

EPOCHS, LEARNING_RATE = 10, 2e-4

Criterion = Callable[..., Tensor]


class Example(NamedTuple):
    """A rollout with its terminal reward; ``group`` identifies its prompt and the policy that drew it."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    reward: float
    group: int


def fit_lora(
    backbone: LoraBackbone,
    train: Sequence[Example],
    heldout: Sequence[Example],
    *,
    loss: Literal["mse", "bce"] = "mse",
    learning_rate: float = LEARNING_RATE,
    weight_decay: float = 0.0,
    epochs: int = EPOCHS,
    patience: int = 2,
    batch_size: int = 32,
    select: Select = "correlation",
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[int, float]:
    """Add an iteration and fit it; returns epoch -> held-out score and keeps the best epoch's weights.

    Mean over response tokens of (V - reward)^2, or ("bce", rewards in [0, 1]) of the cross-entropy of sigmoid(V).
    AdamW on a cosine schedule. ``heldout``: rollouts of other prompts. No search may be scoring meanwhile.
    ``on_batch`` is called before each batch, and may raise to stop the fit. In a process group
    (``peers``) every process calls this with the same arguments and computes a share of each batch: the steps equal
    those of one process up to rounding. Raises PeerLost when a process dies.
    """
    criterion = mse_loss if loss == "mse" else binary_cross_entropy_with_logits
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        iteration = backbone.add_iteration()
    if loss == "mse":
        backbone.set_bias(iteration, sum(example.reward for example in train) / len(train))
    steps = epochs * -(-len(train) // batch_size)
    scores: dict[float, float] = {}
    best: dict[str, Tensor] = {}
    with backbone.training(iteration) as parameters:
        optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        schedule = get_cosine_schedule_with_warmup(optimiser, num_warmup_steps=steps // 20, num_training_steps=steps)
        for epoch in range(1, epochs + 1):
            examples = _shuffled(train, generator)
            for start in range(0, len(examples), batch_size):
                on_batch()
                optimiser.zero_grad()
                _accumulate(backbone, iteration, examples[start : start + batch_size], criterion, parameters)
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
                schedule.step()
            scores[epoch] = broadcast_first(_heldout_score(backbone, iteration, heldout, batch_size, select, criterion))
            chosen = best_setting(scores, select)
            if chosen == epoch:
                best = backbone.iteration_state(iteration)
            elif epoch - chosen >= patience:
                break
    backbone.load_iteration(iteration, best)
    return {int(epoch): score for epoch, score in scores.items()}


def _shuffled(examples: Sequence[Example], generator: torch.Generator) -> list[Example]:
    """Groups in random order, rollouts of a group adjacent, so that a batch reads each prompt once."""
    by_group: dict[int, list[Example]] = {}
    for example in examples:
        by_group.setdefault(example.group, []).append(example)
    groups = list(by_group.values())
    return [example for i in torch.randperm(len(groups), generator=generator).tolist() for example in groups[i]]


def _accumulate(
    backbone: LoraBackbone, iteration: int, batch: Sequence[Example], criterion: Criterion, parameters: Sequence[Tensor]
) -> None:
    """Set each parameter's gradient to that of the batch's mean loss."""
    local_examples = peer_share(batch)
    tokens = torch.tensor(float(sum(len(example.completion_ids) for example in local_examples)))
    for values, targets in _predictions(backbone, iteration, local_examples, len(batch)):
        criterion(values, targets, reduction="sum").backward()
    gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
    sum_over_peers([tokens, *gradients])
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient / float(tokens)


def _predictions(
    backbone: LoraBackbone, iteration: int, examples: Sequence[Example], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Values and rewards [N] at the batch's response tokens, example by example."""
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        completions = [example.completion_ids for example in batch]
        values_RT = backbone.response_values(iteration, [example.prompt_ids for example in batch], completions)
        pieces = [values_T[: len(row)] for values_T, row in zip(values_RT, completions, strict=True)]
        targets = [torch.full_like(piece, example.reward) for piece, example in zip(pieces, batch, strict=True)]
        yield torch.cat(pieces), torch.cat(targets)


@torch.no_grad()
def _heldout_score(
    backbone: LoraBackbone,
    iteration: int,
    heldout: Sequence[Example],
    batch_size: int,
    select: Select,
    criterion: Criterion,
) -> float:
    batches = list(_predictions(backbone, iteration, heldout, batch_size))
    values, targets = (torch.cat(column) for column in zip(*batches, strict=True))
    longest = max(len(example.completion_ids) for example in heldout)
    groups = [torch.arange(len(e.completion_ids)) + e.group * longest for e in heldout]
    rows = Rows(values[:, None], targets, torch.ones_like(targets), torch.cat(groups).to(values.device))
    return score_predictions([rows], select, criterion)
