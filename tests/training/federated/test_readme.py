"""The README's examples run as they stand and learn."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import nn

from training.federated.experiment import METHODS

ROOT = Path(__file__).parents[3]
README = ROOT / "training/federated/README.md"
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


def test_the_steps_at_an_edge_and_the_numbers_of_steps_are_those_of_the_results() -> None:
    accuracies: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for row in json.loads((ROOT / "results/federated.fadas/two-cores.json").read_text())["tuning"]:
        accuracies[row["delays"], row["method"]][row["step"]] = row["accuracy"]
    chosen = {cell: max(tried, key=tried.__getitem__) for cell, tried in accuracies.items()}
    edges = {"smallest": min, "largest": max}
    at_edge = {
        delays: {
            f"{method} ({side})"
            for method in METHODS
            for side, end in edges.items()
            if chosen[delays, method] == end(accuracies[delays, method])
        }
        for delays in ("mild", "large")
    }
    text = " ".join(README.read_text().split())
    sentence = re.search(r"The steps of (.*?), and under mild delays those of (.*?), are at the edge", text)
    named = re.search(r"separate seed\. (.*?), try four steps each, the other rules three", text)
    assert sentence is not None and named is not None
    labels = {f"{method} ({side})" for method in METHODS for side in edges}
    always, under_mild = ({label for label in labels if label in part} for part in sentence.groups())
    assert always == at_edge["large"] and always | under_mild == at_edge["mild"]
    with_four = {method for (_, method), tried in accuracies.items() if len(tried) == 4}
    assert {len(tried) for tried in accuracies.values()} == {3, 4}
    assert set(re.split(r", (?!all places)| and ", named[1])) == with_four
