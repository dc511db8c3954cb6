"""The README's example runs as it stands and solves its problem."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch.func import vmap

README = Path(__file__).parents[3] / "training/bilevel/README.md"


def test_the_example_ends_where_all_agents_agree_and_the_hypergradient_vanishes() -> None:
    block = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(block, names)
    state, problem, batch = (names[name] for name in ("state", "problem", "batch"))
    torch.testing.assert_close(state.x, state.x[:1].expand_as(state.x), rtol=0, atol=1e-2)
    x, y = state.x.mean(0), state.y.mean(0)
    start = torch.full((5,), -2.0)

    def hypergradient(x: torch.Tensor) -> torch.Tensor:
        """Of the mean problem at x, with the lower level solved in closed form."""
        inputs, targets = (part.flatten(0, 1) for part in batch["train"])
        design = inputs.T @ inputs / len(inputs) + torch.diag(x.exp())
        solution = torch.linalg.solve(design, inputs.T @ targets / len(inputs))
        pooled = {name: tuple(part.flatten(0, 1) for part in parts) for name, parts in batch.items()}
        return problem.hypergradient(x, solution, pooled)

    assert hypergradient(x).norm() < 0.02 * hypergradient(start).norm()
    lower = vmap(lambda agent: problem.lower(x, y, agent))(batch).mean()
    assert lower < vmap(lambda agent: problem.lower(x, torch.zeros(5), agent))(batch).mean()
