"""The README's examples run as they stand and learn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

README = Path(__file__).parents[3] / "training/federated/README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def run_example(marker: str) -> dict[str, Any]:
    """The names that the block with ``marker`` defines."""
    (block,) = [block for block in BLOCKS if marker in block]
    names: dict[str, Any] = {}
    exec(block, names)
    return names


def test_the_first_example_reaches_the_mean_of_the_centres() -> None:
    names = run_example("def train(params, clients, seeds)")
    assert (names["simulator"].params - names["centres"].mean(0)).abs().max() < 0.2


def test_a_model_and_a_loss_of_its_own_learn() -> None:
    names = run_example("loss=nn.functional.mse_loss")
    model, inputs, targets = (names[name] for name in ("model", "inputs", "targets"))
    assert nn.functional.mse_loss(model(inputs), targets) < 0.5 * targets.var()
