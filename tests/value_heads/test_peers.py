"""Real processes that fit one LoRA iteration together."""

from __future__ import annotations

import os
from datetime import timedelta
from itertools import count
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from tests.value_heads.lora import examples
from value_heads import LoraBackbone, fit_lora
from value_heads.peers import (
    PeerLost,
    Rendezvous,
    broadcast_first,
    joined_peers,
    peer_share,
    rendezvous_store,
    sum_over_peers,
)

HOST = "127.0.0.1"


def fit(model_dir, on_batch=lambda: None):
    """Scores and weights. Batches of 9 leave shares of unequal size, and the last is short."""
    backbone = LoraBackbone(model_dir, num_layers=2, rank=4)
    train, heldout = examples(range(13)), examples(range(100, 108))
    settings = {"learning_rate": 1e-2, "batch_size": 9, "epochs": 3}
    scores = fit_lora(backbone, train, heldout, **settings, on_batch=on_batch)
    return scores, {name: weight.numpy() for name, weight in backbone.iteration_state(0).items()}


def work(rendezvous, model_dir, dies_at, queue):
    torch.set_num_threads(1)
    batches = count()

    def on_batch():
        if next(batches) == dies_at and rendezvous.rank == 1:
            os._exit(1)

    try:
        with joined_peers(rendezvous):
            queue.put((rendezvous.rank, fit(model_dir, on_batch)))
    except PeerLost as error:
        queue.put((rendezvous.rank, str(error)))


def fit_in_processes(size, model_dir, dies_at=None):
    context = get_context("forkserver")
    context.set_forkserver_preload(["peft", "value_heads.backbone"])  # whose import takes longer than the fits
    queue = context.Queue()
    with rendezvous_store(HOST) as port:
        rendezvous_of_ranks = [Rendezvous(HOST, port, rank, size) for rank in range(size)]
        processes = [
            context.Process(target=work, args=(each, model_dir, dies_at, queue)) for each in rendezvous_of_ranks
        ]
        for process in processes:
            process.start()
        fits = dict(queue.get(timeout=120) for _ in range(size - (dies_at is not None)))
        for process in processes:
            process.join(60)
    return fits


@pytest.mark.slow(15)
def test_two_processes_take_the_steps_of_one(model_dir):
    scores, weights = fit(model_dir)
    fits = fit_in_processes(2, model_dir)
    assert fits.keys() == {0, 1}
    for their_scores, theirs in fits.values():
        assert their_scores == pytest.approx(scores, abs=1e-4)
        for name, weight in weights.items():
            np.testing.assert_allclose(theirs[name], weight, atol=1e-4)
            np.testing.assert_array_equal(theirs[name], fits[0][1][name])


@pytest.mark.slow(11)
def test_who_outlives_another_is_told(model_dir):
    fits = fit_in_processes(2, model_dir, dies_at=4)
    assert "gone" in fits[0]


def test_alone_everything_is_ones_own():
    gradient = torch.ones(3)
    with joined_peers(None):
        assert peer_share([1, 2, 3]) == [1, 2, 3]
        sum_over_peers([gradient])
        assert gradient.tolist() == [1, 1, 1] and broadcast_first(0.1) == 0.1


def test_who_is_alone_at_a_meeting_is_told(monkeypatch):
    monkeypatch.setattr("value_heads.peers.RENDEZVOUS_TIMEOUT", timedelta(seconds=1))
    with (
        rendezvous_store(HOST) as port,
        pytest.raises(PeerLost, match="2 processes did not meet"),
        joined_peers(Rendezvous(HOST, port, 0, 2)),
    ):
        pass
