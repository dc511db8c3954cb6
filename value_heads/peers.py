"""Processes that fit one value function together: each computes its share of a batch, all take the same step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Each = TypeVar("Each")
MEET = timedelta(seconds=120)


class PeerLost(RuntimeError):
    """One of the processes died, or did not come in time."""


@dataclass(frozen=True)
class Meeting:
    """Where ``size`` processes find one another: a ``TCPStore`` that somebody keeps at ``host:port``."""

    host: str
    port: int
    rank: int
    size: int


@contextmanager
def meeting_place(host: str) -> Iterator[int]:
    """The port of a store on this machine, which ``host`` is reached by, for as long as the context lasts."""
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    yield store.port


@contextmanager
def together(meeting: Meeting | None) -> Iterator[None]:
    """In this context the process is one of several; None: it is alone. PeerLost if they do not all come."""
    if meeting is None:
        yield
        return
    try:
        store = dist.TCPStore(meeting.host, meeting.port, timeout=MEET)
        dist.init_process_group("gloo", store=store, rank=meeting.rank, world_size=meeting.size, timeout=MEET)
        dist.barrier()
    except RuntimeError as error:
        raise PeerLost(f"{meeting.size} processes did not meet at {meeting.host}:{meeting.port}: {error}") from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def share(batch: Sequence[Each]) -> Sequence[Each]:
    """What of a batch this process computes: neighbours, which may have a prompt in common."""
    if not dist.is_initialized():
        return batch
    rank, size = dist.get_rank(), dist.get_world_size()
    return batch[len(batch) * rank // size : len(batch) * (rank + 1) // size]


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each by its sum over the processes. PeerLost."""
    if not dist.is_initialized():
        return
    flat = torch.cat([tensor.detach().reshape(-1).float().cpu() for tensor in tensors])
    try:
        dist.all_reduce(flat)
    except RuntimeError as error:
        raise PeerLost(f"a process that fits along is gone: {error}") from error
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(total.reshape(tensor.shape))


def first_says(number: float) -> float:
    """The number of the first process: another's may differ in its last bits. PeerLost."""
    if not dist.is_initialized():
        return number
    said = torch.tensor(number if dist.get_rank() == 0 else 0.0)
    add_up([said])
    return float(said)
