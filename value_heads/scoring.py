"""Scores of concurrent searches on one LoRA backbone: one forward pass per adapter serves all pending requests.

Key-value caches are evicted, least recently used first, when they exceed a budget.

R rows, L new tokens, S tokens read before (padding included), d head size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from value_heads.threads import leaving_engine_core, on_fresh_thread

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 8192  # new tokens of one forward pass, padding included; a single search may have more
CACHE_BYTES = 2 * 2**30


class Backbone(Protocol):
    """A shared model with value functions. ``score_singly``: no two searches in one batch."""

    score_singly: bool

    @property
    def model(self) -> PreTrainedModel: ...
    @property
    def num_layers(self) -> int: ...

    def values(self, iteration: int, tokens_RS: Tensor, cache: DynamicCache | None, valid: Tensor | None) -> Tensor:
        """V [R, S] at every token; ``cache`` grows by S tokens; ``valid`` [R, cached + S] is false at padding, which
        stands before a row's cached tokens and after its new ones."""
        ...


@dataclass
class Read:
    """The cached keys and values of a search's rows.

    layers[adapter][layer]: keys and values [R, heads, S, d]; valid_RS: false at padding.
    """

    layers: list[list[tuple[Tensor, Tensor]]]
    valid_RS: Tensor

    @property
    def bytes(self) -> int:
        return sum(k.nbytes + v.nbytes for layers in self.layers for k, v in layers)


class ReadCaches:
    """The caches of all searches, up to ``limit`` bytes over all backbones of the process.

    A deleted search frees its cache. A search whose cache was evicted reads its prefix again.
    """

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
            for oldest in list(self._held):
                if total <= self.limit:
                    break
                total -= self._held.pop(oldest).bytes

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

    backbone: Backbone
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

    @cached_property
    def past_order(self) -> tuple[Tensor, Tensor | None]:
        """``padding_first`` of the cached rows that the new tokens follow."""
        assert self.before is not None
        return padding_first(self.before.valid_RS[self.origin_R])


class ScoreQueue:
    """The pending requests of one shared model. After each ``add``, ``drain`` must run in the model's worker."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._lock = threading.Lock()

    def add(self, request: Request) -> None:
        with self._lock:
            self._waiting.append(request)

    def drain(self) -> None:
        """Score all pending requests. An error fails the requests of its batch only."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        live_requests = [request for request in waiting if request.done.set_running_or_notify_cancel()]
        for batch in batches(live_requests):
            try:
                totals = on_fresh_thread(leaving_engine_core(partial(score, batch)))
            except Exception as error:  # reported to the callers
                for request in batch:
                    request.done.set_exception(error)
                continue
            for request, total_R in zip(batch, totals, strict=True):
                request.done.set_result(total_R)


def batches(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Requests of one bundle, equally many adapters and similar length, BATCH_TOKENS at a time."""
    batch: list[Request] = []
    for request in sorted(requests, key=lambda r: (id(r.backbone), len(r.search.betas), r.length)):
        if batch and (request.backbone.score_singly or not _fits(batch, request)):
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def _fits(batch: list[Request], request: Request) -> bool:
    requests = [*batch, request]
    rows = sum(member.tokens_RL.shape[0] for member in requests)
    padded_tokens = rows * max(member.tokens_RL.shape[1] for member in requests)
    similar_length = request.length <= 2 * batch[0].length + 32  # else over half of the attended positions are padding
    same_adapters = batch[0].backbone is request.backbone and len(batch[0].search.betas) == len(request.search.betas)
    return same_adapters and padded_tokens <= BATCH_TOKENS and similar_length


@torch.no_grad()
def score(batch: Sequence[Request]) -> list[Tensor]:
    """Sum_t V_t / beta_t [R] of each request at each row's last counted token; all of one backbone."""
    backbone = batch[0].backbone
    adapters = len(batch[0].search.betas)
    previous_reads = [CACHES.take(request.search) for request in batch]
    unread = [i for i, previous in enumerate(previous_reads) if previous is None]
    if unread:
        _, reads = read(backbone, adapters, [_prefix(batch[i]) for i in unread])
        for i, search_read in zip(unread, reads, strict=True):
            previous_reads[i] = search_read
    pieces = []
    for i, (request, previous) in enumerate(zip(batch, previous_reads, strict=True)):
        place = {parent: index for index, parent in enumerate(_needed(request))} if i in unread else None
        origins = [place[parent] if place else parent for parent in request.origins]
        pieces.append(Piece(previous, torch.tensor(origins), request.tokens_RL, request.lengths_R))
    values, reads = read(backbone, adapters, pieces)
    for request, search_read in zip(batch, reads, strict=True):
        search, new_tokens = request.search, request.tokens_RL.tolist()
        lengths = request.lengths_R.tolist()
        extensions = zip(request.origins, new_tokens, lengths, strict=True)
        search.rows = [search.rows[parent] + tokens[:length] for parent, tokens, length in extensions]
        CACHES.put(search, search_read)
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


def padding_first(valid_RS: Tensor) -> tuple[Tensor, Tensor | None]:
    """``valid_RS`` with each row's padding before its tokens, and the positions [R, S] in this order (None: as given).

    A sliding window counts positions, so that padding between cached and new tokens would take the place of tokens.
    """
    sorted_RS, order_RS = valid_RS.sort(dim=1, stable=True)
    return sorted_RS, None if torch.equal(sorted_RS, valid_RS) else order_RS


def reordered(states: Tensor, order_RS: Tensor | None) -> Tensor:
    """Keys or values [R, heads, S, d] in the order of ``padding_first``."""
    if order_RS is None:
        return states
    return states.gather(2, order_RS.to(states.device)[:, None, :, None].expand_as(states))


def read(backbone: Backbone, adapters: int, pieces: Sequence[Piece]) -> tuple[list[list[Tensor]], list[Read]]:
    """V_t [R] of each piece at its rows' last tokens for every adapter t, and the piece's new cache.

    One forward pass per adapter. Rows are padded to the longest, before their cached and after their new tokens.
    """
    device = backbone.model.device
    past_length = max(piece.past for piece in pieces)
    length = max(piece.tokens_RL.shape[1] for piece in pieces)
    sizes = [len(piece.tokens_RL) for piece in pieces]
    lengths_R = torch.cat([piece.lengths_R.cpu() for piece in pieces])
    valid_RS = torch.zeros(sum(sizes), past_length + length, dtype=torch.bool)
    valid_RS[:, past_length:] = torch.arange(length) < lengths_R[:, None]
    tokens_RL = torch.zeros(sum(sizes), length, dtype=torch.int64)
    for span, piece in zip(_spans(sizes), pieces, strict=True):
        tokens_RL[span, : piece.tokens_RL.shape[1]] = piece.tokens_RL.cpu()
        if piece.before:
            valid_RS[span, past_length - piece.past : past_length] = piece.past_order[0]
    tokens_RL.masked_fill_(~valid_RS[:, past_length:], 0)
    kept_positions = [slice(past_length - p.past, past_length + p.tokens_RL.shape[1]) for p in pieces]
    reads = [Read([], valid_RS[span, kept]) for span, kept in zip(_spans(sizes), kept_positions, strict=True)]
    values: list[list[Tensor]] = [[] for _ in pieces]
    for adapter in range(adapters):
        cache = DynamicCache()  # keeps all keys; one made from the config would drop those outside a sliding window
        for layer in range(backbone.num_layers if past_length else 0):
            cache.update(*_gather(pieces, adapter, layer, past_length), layer)
        values_RL = backbone.values(adapter, tokens_RL, cache, valid_RS)
        layers: Any = cache.layers
        last_R = values_RL.gather(1, (lengths_R - 1).to(device)[:, None]).squeeze(1)
        for i, span in enumerate(_spans(sizes)):
            values[i].append(last_R[span])
            reads[i].layers.append(
                [_cut_cache(layer_cache.keys, layer_cache.values, span, kept_positions[i]) for layer_cache in layers]
            )
    return values, reads


def _spans(sizes: Sequence[int]) -> list[slice]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _gather(pieces: Sequence[Piece], adapter: int, layer: int, past_length: int) -> tuple[Tensor, Tensor]:
    """Keys and values [R, heads, past_length, d] of all pieces' rows; all pieces have a cache, or none has."""

    def padded(index: int) -> Tensor:
        parts = []
        for piece in pieces:
            assert piece.before is not None
            cached = piece.before.layers[adapter][layer][index]
            rows = reordered(cached[piece.origin_R.to(cached.device)], piece.past_order[1])
            parts.append(F.pad(rows, (0, 0, past_length - piece.past, 0)))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return padded(0), padded(1)


def _cut_cache(keys: Tensor | None, values: Tensor | None, span: slice, positions: slice) -> tuple[Tensor, Tensor]:
    """One search's part of a layer's keys and values, without padding added for other searches."""
    assert keys is not None and values is not None
    if (span.stop - span.start, positions.stop - positions.start) == (keys.shape[0], keys.shape[2]):
        return keys, values
    return keys[span, :, positions].clone(), values[span, :, positions].clone()  # a view would hold the whole batch
