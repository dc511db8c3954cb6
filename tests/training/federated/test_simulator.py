"""The virtual clock, on quadratic clients whose optimum is known: f_i(x) = ½ Σ_p a_ip (x_p - c_ip)²."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.federated.buffered import Event, FederatedSettings
from training.federated.delays import LARGE, Delays, Trace, official
from training.federated.rules import CA2FL, RULES, Adaptive, FedAsync, FedAvg, FedBuff, Rule
from training.federated.simulator import Simulator
from training.run import Run

N, P, STEPS, LR = 8, 3, 4, 0.1
ZERO = torch.zeros(P, dtype=torch.float64)
_rng = np.random.default_rng(0)
CURVES = torch.tensor(_rng.uniform(0.5, 2, (N, P)))
CENTRES = torch.tensor(_rng.normal(size=(N, P)))


def sgd(x: Tensor, client: int, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Δ of STEPS local steps, in a plain loop."""
    draws = torch.randn(STEPS, P, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    start = x
    for draw in draws:
        x = x - LR * (CURVES[client] * (x - CENTRES[client]) + noise * draw)
    return x - start


def exact(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
    return [(sgd(params, client), 1) for client in clients]


def noisy(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
    return [(sgd(params, client, 0.5, seed), 1) for client, seed in zip(clients, seeds, strict=True)]


EQUAL = Trace([[1.0]] * N)


def simulator(rule: Rule, delays: Delays = EQUAL, train=noisy, **options) -> Simulator:
    options = {"clients": N, "concurrency": 6, "buffer_size": 3} | options
    return Simulator(FederatedSettings(**options), rule, train, delays, ZERO)


def large(seed: int = 0) -> Delays:
    return official(N, LARGE, np.random.default_rng(seed))


def of(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event.kind == kind]


@pytest.mark.parametrize("refill", ["arrival", "round"])
@pytest.mark.parametrize("size", [3, N])
def test_equally_fast_clients_with_concurrency_m_are_synchronous_fedamsgrad_exactly(refill: str, size: int) -> None:
    ours = simulator(Adaptive(lr=0.05), train=exact, concurrency=size, buffer_size=size, refill=refill)
    events = ours.run(20)
    assert all(event.version == event.time - 1 for event in of(events, "arrive"))  # nothing is stale

    x, m, v, v_max = ZERO, *(torch.zeros_like(ZERO) for _ in range(3))
    for t in range(1, 21):
        cohort = [event.client for event in of(events, "start") if event.version == t - 1]
        assert len(set(cohort)) == size
        delta = torch.stack([sgd(x, client) for client in cohort]).mean(0)
        m = 0.9 * m + (1 - 0.9) * delta
        v = 0.99 * v + (1 - 0.99) * delta**2
        v_max = torch.maximum(v_max, v)
        x = x + (0.05 / (1 - 0.9**t)) * m / (v_max.sqrt() / math.sqrt(1 - 0.99**t) + 1e-8)
    assert torch.equal(ours.params, x)


def test_k_equals_b_equals_o_is_fedavg() -> None:
    """Concurrency = buffer = clients and a step of 1: FedBuff, FedAvg and the plain average of models are one."""
    same = {"concurrency": N, "buffer_size": N, "train": exact}
    buff, avg = simulator(FedBuff(lr=1.0), **same), simulator(FedAvg(lr=1.0), **same)
    buff.run(200), avg.run(200)
    x = ZERO
    for _ in range(200):
        x = torch.stack([x + sgd(x, client) for client in range(N)]).mean(0)
    torch.testing.assert_close(buff.params, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(avg.params, x, rtol=1e-12, atol=1e-12)
    # FedAvg's fixed point: the clients' centres weighted by how far K steps go towards each.
    pull = 1 - (1 - LR * CURVES) ** STEPS
    torch.testing.assert_close(x, (pull * CENTRES).sum(0) / pull.sum(0))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    concurrency=st.integers(1, N),
    buffer_size=st.integers(1, N),
    refill=st.sampled_from(["arrival", "round"]),
)
def test_the_same_seed_gives_the_same_events_and_they_add_up(
    seed: int, concurrency: int, buffer_size: int, refill: str
) -> None:
    options = {"seed": seed, "concurrency": concurrency, "buffer_size": min(buffer_size, concurrency), "refill": refill}
    first, second = (simulator(Adaptive(), large(), **options) for _ in range(2))
    events = first.run(5)
    assert events == second.run(5)
    assert torch.equal(first.params, second.params)

    busy: set[int | None] = set()
    arrived, times = 0, [event.time for event in events]
    updated = {0.0} | {event.time for event in of(events, "update")}
    assert refill == "arrival" or {event.time for event in of(events, "start")} == updated
    assert times == sorted(times)
    for i, event in enumerate(events):
        if i and event.time > events[i - 1].time:  # between two instants all places are taken, or wait for the round
            assert len(busy) == concurrency or (refill == "round" and events[i - 1].time not in updated)
        if event.kind == "start":
            assert event.client not in busy
            busy.add(event.client)
        elif event.kind == "arrive":
            busy.remove(event.client)
            arrived += 1
        assert len(busy) <= concurrency
        if event.kind == "update":
            assert arrived == event.version * options["buffer_size"]


def test_another_seed_gives_other_events() -> None:
    assert simulator(FedBuff(), large(), seed=1).run(3) != simulator(FedBuff(), large(), seed=2).run(3)


@pytest.mark.parametrize("name", RULES)
def test_a_run_that_was_stopped_anywhere_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    rule = CA2FL(clients=N) if name == "ca2fl" else RULES[name]()
    delays = Trace(np.random.default_rng(1).uniform(1, 8, (N, 5)).tolist())
    batches: list[list[int]] = []

    def train(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        batches.append(list(seeds))
        return noisy(params, clients, seeds)

    uninterrupted = simulator(rule, delays, train)
    events, trained = uninterrupted.run(12), batches.copy()
    for cut in (1, 5, 17, 30):  # in the middle of buffers too
        batches.clear()
        stopped = simulator(rule, delays, train)
        before = [event for _ in range(cut) for event in stopped.advance()]
        run = Run(tmp_path / str(cut), seed=0)
        run.checkpoint("simulator", stopped.snapshot())
        resumed = simulator(rule, delays, train)
        resumed.restore(run.load("simulator"))
        run.close()
        assert before + resumed.run(12) == events
        assert batches == trained  # nothing twice, and together with the same others
        assert torch.equal(resumed.params, uninterrupted.params)
        for key, value in uninterrupted.state.items():
            assert torch.equal(torch.as_tensor(resumed.state[key]), torch.as_tensor(value)), key


def test_delta_is_taken_against_the_model_that_the_client_started_from() -> None:
    """Two clients, of durations 1 and 2.5, buffer 1, worked out by hand."""
    delays = Trace([[1.0], [2.5]])
    ours = simulator(FedBuff(lr=1.0), delays, train=exact, clients=2, concurrency=2, buffer_size=1)
    events = ours.run(3)
    assert [(event.time, event.client, event.version) for event in of(events, "arrive")] == [
        (1.0, 0, 0),
        (2.0, 0, 1),
        (2.5, 1, 0),  # two rounds old
    ]
    x1 = sgd(ZERO, 0)
    x2 = x1 + sgd(x1, 0)
    torch.testing.assert_close(ours.params, x2 + sgd(ZERO, 1))

    mixed = simulator(FedAsync(mix=0.5), delays, train=exact, clients=2, concurrency=2, buffer_size=1)
    mixed.run(3)
    y1 = sgd(ZERO, 0) / 2
    y2 = (y1 + (y1 + sgd(y1, 0))) / 2
    torch.testing.assert_close(mixed.params, (y2 + sgd(ZERO, 1)) / 2)  # the late client's own model, from 0


def test_a_trace_gives_the_durations_of_a_clients_trainings_in_turn() -> None:
    ours = simulator(FedBuff(), Trace([[1.0, 3.0]]), clients=1, concurrency=1, buffer_size=1)
    assert [event.time for event in of(ours.run(4), "arrive")] == [1.0, 4.0, 5.0, 8.0]


@pytest.mark.parametrize("name", ["fadas", "fadas-min", "fadas-divide"])
def test_fadas_under_large_delays_nears_the_optimum_of_the_sum(name: str) -> None:
    common = torch.ones(N, P, dtype=torch.float64)  # equal curvatures, all clients drawn alike: the mean of centres

    def train(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        return [((1 - 0.9**STEPS) * (common[client] - params), 1) for client in clients]

    ours = simulator(RULES[name](lr=0.02), large(), train=train)
    ours.run(800)
    assert (ours.params - 1).abs().max() < 0.05


def test_clients_that_send_rubbish_are_rejected_and_the_run_goes_on() -> None:
    def train(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        bad = {0: params * math.nan, 1: torch.zeros(P + 1, dtype=torch.float64)}
        return [(bad.get(client, sgd(params, client)), 1) for client in clients]

    ours = simulator(FedBuff(), train=train)
    events = ours.run(20)
    reasons = {(event.client, event.note) for event in of(events, "reject")}
    assert reasons == {(0, "3 of 3 values are not finite"), (1, "the update has shape (4,), the model (3,)")}
    assert {event.client for event in of(events, "arrive")} == set(range(2, N))
    assert ours.round >= 20 and ours.params.isfinite().all()


def test_a_run_of_failures_alone_ends_with_the_last_reason() -> None:
    def diverged(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        return [(params * math.nan, 1) for _ in clients]

    with pytest.raises(RuntimeError, match="100 answers in a row were unusable, the last: 3 of 3 values are not fin"):
        simulator(FedBuff(), train=diverged).run(1)
    with pytest.raises(RuntimeError, match=r"100 answers in a row were unusable, the last: no answer within 0\.5"):
        simulator(FedBuff(), timeout=0.5).run(1)


@pytest.mark.parametrize("refill", ["arrival", "round"])
def test_clients_that_vanish_are_given_up_at_the_timeout(refill: str) -> None:
    vanishing = Trace([[math.inf], [math.inf]] + [[1.0, 2.0]] * (N - 2))
    options = {"concurrency": 3, "buffer_size": 3, "refill": refill}
    ours = simulator(FedBuff(), vanishing, timeout=4.0, **options)
    events = ours.run(30)
    assert {event.client for event in of(events, "late")} == {0, 1}
    started = {}
    for event in events:
        if event.kind == "start":
            started[event.client] = event.time
        elif event.kind == "late":
            assert event.time == started[event.client] + 4.0
    with pytest.raises(RuntimeError, match="set a timeout"):
        simulator(FedBuff(), Trace([[math.inf]] * N)).run(1)


def test_old_updates_are_rejected() -> None:
    delays = Trace([[1.0]] * (N - 1) + [[10.0]])
    events = simulator(FedBuff(), delays, max_staleness=3, concurrency=N, buffer_size=2).run(60)
    assert {event.client for event in of(events, "reject")} == {N - 1}
    assert all("rounds old, more than 3" in event.note for event in of(events, "reject"))


def test_clients_of_one_model_are_trained_together() -> None:
    batches: list[int] = []

    def train(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        batches.append(len(clients))
        return exact(params, clients, seeds)

    simulator(FedBuff(), train=train, concurrency=N, buffer_size=N).run(4)
    assert batches == [N] * 4


def test_clients_of_several_models_may_be_trained_together() -> None:
    batches: list[int] = []

    def train(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        batches.append(len(clients))
        starts = params.expand(len(clients), P)
        return [(sgd(start, client, 0.5, seed), 1) for start, client, seed in zip(starts, clients, seeds, strict=True)]

    apart, together = (simulator(FedBuff(), large(), train, together=cohort) for cohort in ("model", "all"))
    events = apart.run(20)
    calls = len(batches)
    assert together.run(20) == events
    assert torch.equal(together.params, apart.params)
    assert len(batches) - calls < calls


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"concurrency": 9}, "concurrency 9 is more than the 8 clients"),
        ({"refill": "round", "buffer_size": 7}, "buffer_size 7 is more than the 6 clients at work"),
    ],
)
def test_settings_that_cannot_work(options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        simulator(FedBuff(), **options)
