"""An MLP head by gradient descent on rows in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch

from value_heads.features import FeatureSpec
from value_heads.fit import HeadFit, Rows, Select, best_setting, feature_statistics, score
from value_heads.heads import MLPHead

EPOCHS, LEARNING_RATE = 30, 1e-3


def fit_mlp(
    spec: FeatureSpec,
    train: Sequence[Rows],
    heldout: Sequence[Rows],
    *,
    hidden: Sequence[int] = (64,),
    dropout: float = 0.1,
    learning_rate: float = LEARNING_RATE,
    weight_decay: float = 1e-2,
    epochs: int = EPOCHS,
    patience: int = 3,
    batch_size: int = 1024,
    select: Select = "correlation",
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> HeadFit:
    """Weighted squared error by AdamW; keeps the best epoch, stops ``patience`` epochs after it by held-out score.

    ``on_batch`` is called before each batch, and may raise to stop the fit.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, std = feature_statistics(train)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = MLPHead(spec, mean, std, hidden, dropout)
        optimiser = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
        scores: dict[float, float] = {}
        best = head
        for epoch in range(1, epochs + 1):
            head.train()
            for index in torch.randperm(len(train), generator=generator).tolist():
                batch = train[index]
                for pick in torch.randperm(len(batch.targets), generator=generator).split(batch_size):
                    on_batch()
                    error = (head(batch.features[pick].float()) - batch.targets[pick]) ** 2
                    optimiser.zero_grad()
                    (error @ batch.weights[pick] / batch.weights[pick].sum()).backward()
                    optimiser.step()
            scores[epoch] = score(head.eval(), heldout, select, torch.nn.functional.mse_loss)
            chosen = best_setting(scores, select)
            if chosen == epoch:
                best = copy.deepcopy(head)
            elif epoch - chosen >= patience:
                break
    return HeadFit(best.eval(), chosen, scores)
