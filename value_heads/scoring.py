"""Scores of concurrent searches over one LoRA backbone: one forward pass an adapter for all that wait, over caches that
are given up, least recently used first, when they grow past a budget.

R rows, L new tokens, S tokens read before (padding included), d head size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from value_heads.threads import on_fresh_thread, sparing

if TYPE_CHECKING:
    from value_heads.backbone import LoraBackbone

BATCH_TOKENS = 8192  # new tokens of one forward pass, padding included; a single search may have more
CACHE_BYTES = 2 * 2**30


@dataclass
class Read:
    """What one search's rows have read. layers[adapter][layer]: keys, values [R, heads, S, d]; valid_RS: no padding."""

    layers: list[list[tuple[Tensor, Tensor]]]
    valid_RS: Tensor

    @property
    def bytes(self) -> int:
        return sum(k.nbytes + v.nbytes for layers in self.layers for k, v in layers)


class ReadCaches:
    """What searches have read, up to ``limit`` bytes over all backbones of the process. A search that is gone takes its
    own along; one that is given up reads its prefix again."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self._held: WeakKeyDictionary[object, Read] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def take(self, search: object) -> Read | None:
        with self._lock:
            return self._held.pop(search, None)

    def put(self, search: object, read: Read) -> None:
        with self._lock:
            self._held[search] = read
            total = self._bytes()
            for other in list(self._held):
                if total <= self.limit:
                    break
                total -= self._held.pop(other).bytes

    @property
    def bytes(self) -> int:
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        return sum(read.bytes for read in list(self._held.values()))


CACHES = ReadCaches()


@dataclass(eq=False)
class Search:
    """``rows``: all tokens of each row of the last chunk, from the prompt on."""

    betas: tuple[float, ...]
    rows: list[list[int]]


@dataclass(eq=False)
class Request:
    """Rows ``parents`` of ``search``, each continued by ``successors`` rows of ``tokens_RL``, parent-major."""

    backbone: LoraBackbone
    search: Search
    parents: Sequence[int]
    successors: int
    tokens_RL: Tensor
    lengths_R: Tensor
    done: Future[Tensor] = field(default_factory=Future)

    @property
    def origins(self) -> list[int]:
        return [parent for parent in self.parents for _ in range(self.successors)]

    @property
    def length(self) -> int:
        return len(self.search.rows[self.parents[0]])


@dataclass
class Piece:
    """One search's share of a forward pass: new tokens after rows ``origin_R`` of ``before``."""

    before: Read | None
    origin_R: Tensor
    tokens_RL: Tensor
    lengths_R: Tensor

    @property
    def past(self) -> int:
        return self.before.valid_RS.shape[1] if self.before else 0


class ScoreQueue:
    """The requests that wait for one shared model. After each ``add``, ``drain`` is to run in the model's worker."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._lock = threading.Lock()

    def add(self, request: Request) -> None:
        with self._lock:
            self._waiting.append(request)

    def drain(self) -> None:
        """Score all that wait. A request that fails fails its batch, and no other."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        wanted = [request for request in waiting if request.done.set_running_or_notify_cancel()]
        for batch in batches(wanted):
            try:
                totals = on_fresh_thread(sparing(partial(score, batch)))
            except Exception as error:  # handed to those who wait
                for request in batch:
                    request.done.set_exception(error)
                continue
            for request, total_R in zip(batch, totals, strict=True):
                request.done.set_result(total_R)


def batches(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Requests of one bundle, equally many adapters and similar length, BATCH_TOKENS at a time."""
    batch: list[Request] = []
    for request in sorted(requests, key=lambda r: (id(r.backbone), len(r.search.betas), r.length)):
        if batch and (request.backbone.alone or not _fits(batch, request)):
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def _fits(batch: list[Request], request: Request) -> bool:
    together = [*batch, request]
    rows = sum(each.tokens_RL.shape[0] for each in together)
    padded = rows * max(each.tokens_RL.shape[1] for each in together)
    alike = request.length <= 2 * batch[0].length + 32  # else more than half of what is attended to is padding
    adapters = batch[0].backbone is request.backbone and len(batch[0].search.betas) == len(request.search.betas)
    return adapters and padded <= BATCH_TOKENS and alike


@torch.no_grad()
def score(batch: Sequence[Request]) -> list[Tensor]:
    """Sum_t V_t / beta_t [R] of each request at each row's last counted token; all of one backbone."""
    backbone = batch[0].backbone
    adapters = len(batch[0].search.betas)
    befores = [CACHES.take(request.search) for request in batch]
    unread = [i for i, before in enumerate(befores) if before is None]
    if unread:
        _, reads = read(backbone, adapters, [_prefix(batch[i]) for i in unread])
        for i, one in zip(unread, reads, strict=True):
            befores[i] = one
    pieces = []
    for i, (request, before) in enumerate(zip(batch, befores, strict=True)):
        place = {parent: at for at, parent in enumerate(_needed(request))} if i in unread else None
        origins = [place[parent] if place else parent for parent in request.origins]
        pieces.append(Piece(before, torch.tensor(origins), request.tokens_RL, request.lengths_R))
    values, reads = read(backbone, adapters, pieces)
    for request, one in zip(batch, reads, strict=True):
        search, news = request.search, request.tokens_RL.tolist()
        lengths = request.lengths_R.tolist()
        grown = zip(request.origins, news, lengths, strict=True)
        search.rows = [search.rows[parent] + tokens[:length] for parent, tokens, length in grown]
        CACHES.put(search, one)
    return [sum_values(request, of_adapters) for request, of_adapters in zip(batch, values, strict=True)]


def sum_values(request: Request, of_adapters: Sequence[Tensor]) -> Tensor:
    weighed = [values_R / beta for values_R, beta in zip(of_adapters, request.search.betas, strict=True)]
    return torch.stack(weighed).sum(0).to(request.tokens_RL.device)


def _needed(request: Request) -> list[int]:
    return sorted(set(request.parents))


def _prefix(request: Request) -> Piece:
    rows = [torch.tensor(request.search.rows[parent]) for parent in _needed(request)]
    lengths_R = torch.tensor([len(row) for row in rows])
    return Piece(None, torch.arange(len(rows)), pad_sequence(rows, batch_first=True), lengths_R)


def read(backbone: LoraBackbone, adapters: int, pieces: Sequence[Piece]) -> tuple[list[list[Tensor]], list[Read]]:
    """One forward pass an adapter. Of each piece: V_t [R] at its rows' last tokens for every adapter t, and what it has
    read by then. Searches are padded to the longest, on the right of what was read before and of what is new."""
    device = backbone.model.device
    past = max(piece.past for piece in pieces)
    length = max(piece.tokens_RL.shape[1] for piece in pieces)
    sizes = [len(piece.tokens_RL) for piece in pieces]
    lengths_R = torch.cat([piece.lengths_R.cpu() for piece in pieces])
    valid_RS = torch.zeros(sum(sizes), past + length, dtype=torch.bool)
    valid_RS[:, past:] = torch.arange(length) < lengths_R[:, None]
    tokens_RL = torch.zeros(sum(sizes), length, dtype=torch.int64)
    for span, piece in zip(_spans(sizes), pieces, strict=True):
        tokens_RL[span, : piece.tokens_RL.shape[1]] = piece.tokens_RL.cpu()
        if piece.before:
            valid_RS[span, : piece.past] = piece.before.valid_RS[piece.origin_R]
    tokens_RL.masked_fill_(~valid_RS[:, past:], 0)
    kept = [[*range(p.past), *range(past, past + p.tokens_RL.shape[1])] for p in pieces]
    reads = [Read([], valid_RS[span][:, k]) for span, k in zip(_spans(sizes), kept, strict=True)]
    values: list[list[Tensor]] = [[] for _ in pieces]
    for adapter in range(adapters):
        cache = DynamicCache()  # keeps all keys, where one by the config would drop those out of a sliding window
        for layer in range(backbone.num_layers if past else 0):
            cache.update(*_gather(pieces, adapter, layer, past), layer)
        values_RL = backbone.values(adapter, tokens_RL, cache, valid_RS)
        layers: Any = cache.layers
        last_R = values_RL.gather(1, (lengths_R - 1).to(device)[:, None]).squeeze(1)
        for i, span in enumerate(_spans(sizes)):
            values[i].append(last_R[span])
            reads[i].layers.append([_share(each.keys, each.values, span, kept[i]) for each in layers])
    return values, reads


def _spans(sizes: Sequence[int]) -> list[slice]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _gather(pieces: Sequence[Piece], adapter: int, layer: int, past: int) -> tuple[Tensor, Tensor]:
    """Keys and values [R, heads, past, d] of all pieces' rows; where one piece has read something, all have."""

    def padded(which: int) -> Tensor:
        parts = []
        for piece in pieces:
            assert piece.before is not None
            kept = piece.before.layers[adapter][layer][which]
            parts.append(F.pad(kept[piece.origin_R.to(kept.device)], (0, 0, 0, past - piece.past)))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return padded(0), padded(1)


def _share(keys: Tensor | None, values: Tensor | None, span: slice, kept: list[int]) -> tuple[Tensor, Tensor]:
    """One search's part of a layer's keys and values, without the others' padding."""
    assert keys is not None and values is not None
    if span.stop - span.start == len(keys) and len(kept) == keys.shape[2]:
        return keys, values
    index = torch.tensor(kept, device=keys.device)
    return keys[span].index_select(2, index), values[span].index_select(2, index)
