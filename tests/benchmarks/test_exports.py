"""The benchmark of exported tilts: what each column draws from."""

from __future__ import annotations

import torch

from benchmarks.exports import ADAPTER, ENTRIES_ALONE, FROZEN, WHOLE, by_export, entries_alone, summary
from iro_server import JsonObject
from tests.value_heads.test_tilt import GROUPS, STOP, VOCABULARY, WIDTH, head, random_tilt
from value_heads.tilt import BoundTilt, sharpened, zero_tilt
from value_heads.tilt_export import bias_at_mean_state, exported_part


def test_entries_alone_draw_as_a_server_that_adds_them_and_samples_at_the_tilts_temperature() -> None:
    """All entries of a small vocabulary, of a tilt that has nothing else: the tilt itself."""
    plain = exported_part(random_tilt(5, 0))
    gates = torch.zeros_like(plain.gates)
    gates[..., -1] = plain.gates[..., -1]
    tilt = sharpened(type(plain)(**vars(plain) | {"gates": gates}), 1.0)
    alone = entries_alone(tilt, zero_tilt(VOCABULARY, WIDTH, (), (STOP,)))
    assert alone.temperature() == tilt.temperature() == 0.5
    assert torch.allclose(alone.bias, bias_at_mean_state(tilt), atol=1e-6)
    state = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1))
    drawn = [
        (
            state @ head().T + (bound := BoundTilt(steering, head(), GROUPS)).additions(state, [bound.start([1])])
        ).softmax(-1)
        for steering in (tilt, alone)
    ]
    assert torch.allclose(*drawn, atol=1e-5)


def test_tasks_without_a_tilt_have_no_row() -> None:
    def line(task: str, export: str, reward: float) -> JsonObject:
        about = {"task": task, "seed": 0, "export": export, "parts": ["bias"], "temperature": 1.0, "kl": 0.0}
        return about | {"perplexity": 1.0, "rewards": [reward, reward + 0.2]}

    rows = [line("brevity", name, 0.1 * i) for i, name in enumerate((FROZEN, WHOLE, ADAPTER, ENTRIES_ALONE))]
    cells = summary([*rows, line("arithmetic", FROZEN, 0.5)])
    assert cells[0]["less_frozen"] is None and abs(cells[2]["less_frozen"]["mean"] - 0.2) < 1e-9
    shown = by_export({"cells": cells})
    assert "brevity" in shown and "arithmetic" not in shown
