"""Server rules against closed forms, PyTorch's own AMSGrad, and what the edge rejects."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.federated.rules import (
    CA2FL,
    RULES,
    Adaptive,
    FedAsync,
    FedAvg,
    FedBuff,
    Layout,
    Rule,
    Update,
    make_rule,
    rejection,
)

P = 3
vectors = st.lists(st.floats(-10, 10, width=32), min_size=P, max_size=P).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def updates(*deltas: Sequence[float], staleness: int = 0) -> list[Update]:
    start = torch.zeros(len(deltas[0]), dtype=torch.float64)
    return [Update(i, torch.tensor(d, dtype=torch.float64), start, staleness) for i, d in enumerate(deltas)]


def run(rule: Rule, params: Tensor, *buffers: list[Update]) -> Tensor:
    state = rule.init(params)
    for buffer in buffers:
        state, params = rule.step(state, params, buffer)
    return params


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_made_from_its_name_a_step_and_the_number_of_clients(name: str) -> None:
    """A larger step moves the model further in the direction of the first Δ."""
    buffer = updates([1.0, 2.0, -1.0])
    near, far = (run(make_rule(name, step, clients=4), torch.zeros(P).double(), buffer) for step in (0.1, 0.2))
    torch.testing.assert_close(far, 2 * near)
    assert (near.sign() == buffer[0].delta.sign()).all()


def test_a_rule_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no rule fedyogi; there are fadas, fadas-min"):
        make_rule("fedyogi", 0.1, clients=4)


@pytest.mark.parametrize("amsgrad", [True, False])
@given(rounds=st.lists(st.lists(vectors, min_size=1, max_size=3), min_size=1, max_size=6))
def test_fadas_with_bias_correction_is_torchs_amsgrad_on_minus_the_mean_delta(
    amsgrad: bool, rounds: list[list[Tensor]]
) -> None:
    theirs = torch.ones(P, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.99), eps=1e-8, amsgrad=amsgrad)
    buffers = []
    for deltas in rounds:
        theirs.grad = -torch.stack(deltas).mean(0)
        adam.step()
        buffers.append([Update(i, delta, torch.zeros(P)) for i, delta in enumerate(deltas)])
    ours = run(Adaptive(lr=0.1, amsgrad=amsgrad), torch.ones(P, dtype=torch.float64), *buffers)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-9, atol=1e-9)


def test_two_rounds_of_fadas_as_the_paper_writes_it() -> None:
    rule = Adaptive(lr=0.1, betas=(0.5, 0.75), eps=0.0, bias_correction=False)
    # Δ = 4, then 2: m = 2, 2; v = 4, 4; v̂ = 4, 4: each round moves by 0.1 · 2/2.
    moved = run(rule, torch.zeros(1, dtype=torch.float64), updates([3.0], [5.0]), updates([2.0]))
    assert moved.item() == pytest.approx(0.2)
    # Δ = 4, then 0: m = 2, 1; v = 4, 3, but v̂ stays 4.
    assert run(rule, torch.zeros(1, dtype=torch.float64), updates([4.0]), updates([0.0])).item() == pytest.approx(0.15)
    adam = Adaptive(lr=0.1, betas=(0.5, 0.75), eps=0.0, bias_correction=False, amsgrad=False)
    moved = run(adam, torch.zeros(1, dtype=torch.float64), updates([4.0]), updates([0.0]))
    assert moved.item() == pytest.approx(0.1 + 0.1 / math.sqrt(3))


@given(st.lists(vectors, min_size=1, max_size=8))
def test_without_bias_correction_no_round_moves_further_than_adams_bound(deltas: list[Tensor]) -> None:
    beta1, beta2 = 0.9, 0.99
    rule = Adaptive(lr=1.0, betas=(beta1, beta2), bias_correction=False)
    bound = (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2))  # Cauchy-Schwarz on m and v
    params = torch.zeros(P, dtype=torch.float64)
    state = rule.init(params)
    for delta in deltas:
        state, after = rule.step(state, params, [Update(0, delta, params)])
        assert (after - params).abs().max() <= bound * (1 + 1e-9)
        params = after


@pytest.mark.parametrize(
    ("delay", "lr", "staleness", "expected"),
    [
        ("none", 2.0, 9, 2.0),
        ("min", 2.0, 1, 2.0),  # not above τ_c = 1
        ("min", 2.0, 4, 0.25),
        ("min", 0.1, 4, 0.1),  # 1/4 does not bind
        ("divide", 2.0, 1, 2.0),
        ("divide", 2.0, 4, 0.5),
        ("divide", 0.1, 4, 0.025),
    ],
)
def test_the_step_under_delay_and_its_log_line(
    delay: str, lr: float, staleness: int, expected: float, caplog: pytest.LogCaptureFixture
) -> None:
    rule = Adaptive(lr=lr, delay=delay, eps=0.0)  # type: ignore[arg-type]
    params = torch.zeros(1, dtype=torch.float64)
    buffer = updates([1.0]) + updates([3.0], staleness=staleness)  # the oldest counts
    with caplog.at_level(logging.INFO, logger="training.federated.rules"):
        state, moved = rule.step(rule.init(params), params, buffer)
    assert moved.item() == pytest.approx(expected)  # round 1, corrected: m/√v̂ = 1
    assert state["bound"] == len(caplog.records) == (expected < lr)


def test_fedbuff_fedavg_and_fedasync() -> None:
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    buffer = updates([2.0, 0.0], [4.0, 8.0])
    assert run(FedBuff(lr=0.5), x, buffer).tolist() == [2.5, 4.0]
    weighted = [Update(0, buffer[0].delta, x, examples=3), Update(1, buffer[1].delta, x, examples=1)]
    assert run(FedAvg(), x, weighted).tolist() == [3.5, 4.0]
    assert run(FedAsync(mix=0.25), x, buffer[:1]).tolist() == [0.75 * 1 + 0.25 * 2, 0.75 * 2]
    buffer = [Update(0, torch.ones(2, dtype=torch.float64), x, staleness=3)]
    assert run(FedAsync(mix=0.5, power=0.5), x, buffer).tolist() == [1.25, 2.25]  # a_τ = 0.5/√4, towards x + 1


def test_ca2fl_by_hand() -> None:
    rule, x = CA2FL(clients=4, lr=1.0), torch.zeros(1, dtype=torch.float64)
    state, x = rule.step(rule.init(x), x, updates([4.0], [8.0]))
    assert x.item() == 6  # nothing cached: FedBuff
    assert state["h"].flatten().tolist() == [4, 8, 0, 0]
    state, x = rule.step(state, x, updates([6.0]))
    assert x.item() == 6 + 3 + (6 - 4)  # h̄ = 12/4
    assert state["h"].flatten().tolist() == [6, 8, 0, 0]


@given(st.lists(vectors, min_size=4, max_size=4))
def test_ca2fl_of_clients_that_repeat_themselves_is_full_participation(deltas: list[Tensor]) -> None:
    rule, x = CA2FL(clients=4), torch.zeros(P, dtype=torch.float64)
    everyone = [Update(i, delta, x) for i, delta in enumerate(deltas)]
    state, x = rule.step(rule.init(x), x, everyone)
    _, after = rule.step(state, x, everyone[:2])  # two stand for all four
    torch.testing.assert_close(after - x, torch.stack(deltas).mean(0))


@pytest.mark.parametrize("name", RULES)
@given(deltas=st.lists(vectors, min_size=2, max_size=4))
def test_no_rule_changes_what_it_is_given(name: str, deltas: list[Tensor]) -> None:
    rule = RULES[name](clients=4) if name == "ca2fl" else RULES[name]()
    params = torch.ones(P, dtype=torch.float64)
    buffer = [Update(i, delta, params, staleness=2 * i) for i, delta in enumerate(deltas)]
    state, moved = rule.step(rule.init(params), params, buffer)
    before = {key: torch.as_tensor(value).clone() for key, value in state.items()}
    sent, was = [delta.clone() for delta in deltas], moved.clone()
    later = [Update(i, delta + 1, params) for i, delta in enumerate(deltas)]
    first, second = rule.step(state, moved, later), rule.step(state, moved, later)
    assert torch.equal(first[1], second[1])
    assert torch.equal(moved, was) and torch.equal(params, torch.ones_like(params))
    assert all(torch.equal(torch.as_tensor(state[key]), value) for key, value in before.items())
    assert all(torch.equal(delta, copy) for delta, copy in zip(deltas, sent, strict=True))


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (Update(0, torch.ones(3), torch.zeros(3)), None),
        (Update(0, torch.ones(4), torch.zeros(3)), "the update has shape (4,), the model (3,)"),
        (Update(0, torch.ones(3).double(), torch.zeros(3)), "the update is torch.float64, the model torch.float32"),
        (Update(0, torch.tensor([1, math.nan, math.inf]), torch.zeros(3)), "2 of 3 values are not finite"),
        (Update(0, [1.0, 2.0, 3.0], torch.zeros(3)), "the update is a list, not a tensor"),  # type: ignore[arg-type]
        (Update(0, torch.ones(3), torch.zeros(3), examples=0), "0 examples: at least 1 is needed"),
        (Update(0, torch.ones(3), torch.zeros(3), staleness=7), "7 rounds old, more than 5"),
    ],
)
def test_what_the_edge_rejects_and_why(update: Update, reason: str | None) -> None:
    assert rejection(update, torch.zeros(3), max_staleness=5) == reason


def test_a_state_dict_to_a_vector_and_back() -> None:
    tensors = torch.nn.Linear(3, 2).state_dict()
    layout = Layout.of(tensors)
    vector = layout.pack(dict(reversed(tensors.items())))  # the layout's order, not the sender's
    assert vector.shape == (8,)
    back = layout.unpack(vector)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(ValueError, match=r"tensor 'bias': shape \(3,\) was sent, shape \(2,\) is needed"):
        layout.pack(tensors | {"bias": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"tensor 'bias': nothing was sent"):
        layout.pack({"weight": tensors["weight"]})
    with pytest.raises(ValueError, match=r"tensor 'extra': shape \(1,\) was sent, nothing is needed"):
        layout.pack(tensors | {"extra": torch.zeros(1)})
