"""Steered rows in the engine's batch: what is added to their logits, and how far that takes them from the frozen model.

Axes in tensor names: M rows, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch

from iro_server.engines.base import Steering
from iro_server.engines.sample import Distribution, divergence
from value_heads.tilt import BoundTilt, with_sharpness

LEAST_ROOM = 1e-3  # nats: what is less is none. KL is quadratic in the strength, so that rounding would choose it
Session = tuple["SteeredRows", torch.Tensor]  # and its states [M, D]
BISECTIONS = 12  # of a step's strength where ``max_kl`` leaves less room than it would take


class SteeredRows:
    """The rows of one session. ``kl_M``: nats that each row's tokens have taken so far."""

    def __init__(self, steering: Steering, bound: BoundTilt, prompt_ids: Sequence[int]) -> None:
        self.steering, self.bound = steering, bound
        self.features = bound.start(prompt_ids)
        self.kl_M = torch.zeros(1)

    def select(self, parents: Sequence[int]) -> None:
        """Keep these rows, in this order; repeats allowed."""
        self.features.select(parents)
        self.kl_M = self.kl_M[list(parents)]

    def take(self, tokens: Sequence[Sequence[int]], kl_M: torch.Tensor) -> None:
        """Every row goes on as many ways as it has tokens here; its step took ``kl_M``."""
        self.features.take(tokens)
        successors = len(tokens[0])
        self.kl_M = (self.kl_M + kl_M.cpu()).repeat_interleave(successors)

    def part(self, rows: slice) -> SteeredRows:
        """These rows alone."""
        part = copy.copy(self)
        part.features, part.kl_M = self.features.part(rows), self.kl_M[rows]
        return part

    @property
    def room_M(self) -> torch.Tensor:
        """Nats that each row may still take."""
        limit = self.steering.max_kl
        return torch.full_like(self.kl_M, torch.inf) if limit is None else (limit - self.kl_M).clamp(min=0)


def blocks(sessions: Sequence[Session], most_rows: int) -> Iterator[list[Session]]:
    """The sessions' rows in their order, ``most_rows`` at once: a session's may be in several blocks."""
    block: list[Session] = []
    room = most_rows
    for rows, states_MD in sessions:
        start = 0
        while start < len(states_MD):
            part = slice(start, min(start + room, len(states_MD)))
            block.append((rows.part(part), states_MD[part]))
            room -= part.stop - start
            start = part.stop
            if not room:
                yield block
                block, room = [], most_rows
    if block:
        yield block


def additions(sessions: Sequence[Session], logits_MV: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """strength A(s, .) [M, V] of each session's states [M, D], one after another: one product for all that share a
    tilt. ``logits_MV``: the frozen model's, at ``temperature``, which divides A too."""
    by_tilt: dict[BoundTilt, list[int]] = {}
    for place, (rows, _) in enumerate(sessions):
        by_tilt.setdefault(rows.bound, []).append(place)
    added: dict[int, torch.Tensor] = {}
    for bound, places in by_tilt.items():
        states = [sessions[place][1] for place in places]
        steered = [sessions[place][0] for place in places]
        sums = bound.additions(torch.cat(states), [rows.features for rows in steered])
        for place, rows, part in zip(places, steered, sums.split([len(state) for state in states]), strict=True):
            scale = rows.steering.strength / temperature
            added[place] = part if scale == 1.0 else part * scale
    parts_MV = logits_MV.split([len(state) for _, state in sessions])
    for place, (rows, _) in enumerate(sessions):
        sharpness = rows.bound.sharpness * rows.steering.strength
        added[place] = with_sharpness(added[place], parts_MV[place], sharpness)
    return torch.cat([added[place] for place in range(len(sessions))])


def within_room(logits_MV: torch.Tensor, addition_MV: torch.Tensor, room_M: torch.Tensor) -> torch.Tensor:
    """The addition, scaled down in the rows where its KL exceeds what is left of their ``max_kl``; 0 where none is."""
    spent_M = room_M < LEAST_ROOM
    if spent_M.any():
        scaled_MV, rest = torch.zeros_like(addition_MV), (~spent_M).nonzero()[:, 0]
        if len(rest):
            scaled_MV[rest] = within_room(logits_MV[rest], addition_MV[rest], room_M[rest])
        return scaled_MV
    over = (divergence(logits_MV, addition_MV) > room_M).nonzero()[:, 0]
    if not len(over):
        return addition_MV
    scale_M = torch.ones(len(addition_MV), device=over.device)
    scale_M[over] = _largest_scale(logits_MV[over], addition_MV[over], room_M[over])
    return addition_MV * scale_M[:, None]


def _largest_scale(logits_MV: torch.Tensor, addition_MV: torch.Tensor, room_M: torch.Tensor) -> torch.Tensor:
    """The largest part [M] of the additions whose KL is within the room, by bisection."""
    frozen, device = Distribution.of(logits_MV), logits_MV.device
    low_M, high_M = torch.zeros(len(room_M), device=device), torch.ones(len(room_M), device=device)
    for _ in range(BISECTIONS):
        middle_M = (low_M + high_M) / 2
        fits_M = divergence(logits_MV, addition_MV * middle_M[:, None], frozen) <= room_M
        low_M, high_M = torch.where(fits_M, middle_M, low_M), torch.where(fits_M, high_M, middle_M)
    return low_M
