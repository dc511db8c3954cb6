"""Data-parallel fits: each process computes its share of a batch, and all take the same step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")
RENDEZVOUS_TIMEOUT = timedelta(seconds=120)


class PeerLost(RuntimeError):
    """One of the processes died, or did not join in time."""


@dataclass(frozen=True)
class Rendezvous:
    """Where ``size`` processes join: a ``TCPStore`` at ``host:port``."""

    host: str
    port: int
    rank: int
    size: int


@contextmanager
def rendezvous_store(host: str) -> Iterator[int]:
    """The port of a store on this machine, reachable by ``host``, that exists while the context lasts."""
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    yield store.port


@contextmanager
def joined_peers(rendezvous: Rendezvous | None) -> Iterator[None]:
    """Join the process group of ``rendezvous`` in this context; None: no group. PeerLost if a process does not join."""
    if rendezvous is None:
        yield
        return
    try:
        store = dist.TCPStore(rendezvous.host, rendezvous.port, timeout=RENDEZVOUS_TIMEOUT)
        dist.init_process_group(
            "gloo", store=store, rank=rendezvous.rank, world_size=rendezvous.size, timeout=RENDEZVOUS_TIMEOUT
        )
        dist.barrier()
    except RuntimeError as error:
        raise PeerLost(
            f"{rendezvous.size} processes did not meet at {rendezvous.host}:{rendezvous.port}: {error}"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def peer_share(batch: Sequence[Item]) -> Sequence[Item]:
    """This process's contiguous share of a batch, in which neighbours may share a prompt."""
    if not dist.is_initialized():
        return batch
    rank, size = dist.get_rank(), dist.get_world_size()
    return batch[len(batch) * rank // size : len(batch) * (rank + 1) // size]


def sum_over_peers(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes. Raises PeerLost."""
    if not dist.is_initialized():
        return
    flat = torch.cat([tensor.detach().reshape(-1).float().cpu() for tensor in tensors])
    try:
        dist.all_reduce(flat)
    except RuntimeError as error:
        raise PeerLost(f"a process that fits along is gone: {error}") from error
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(total.reshape(tensor.shape))


def broadcast_first(number: float) -> float:
    """The first process's number, since others may differ in their last bits. Raises PeerLost."""
    if not dist.is_initialized():
        return number
    tensor = torch.tensor(number if dist.get_rank() == 0 else 0.0)
    sum_over_peers([tensor])
    return float(tensor)
