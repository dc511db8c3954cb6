"""The response prefixes that a fit reads, and the frozen model's states at them as rollouts store them.

A table has a row a prefix: ``completion``, its place in the shard; ``length``, the prefix's tokens; and for each hidden
state or running sum that a spec reads a column of float16 vectors and a column of their scales.
Axes in tensor names: N prefixes of all completions one after another, D width, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from training.iro.data import AlignError
from training.iro.half import Half
from training.json_values import JsonObject
from value_heads import FeatureSpec
from value_heads.features import STOPPED, TEXT_COUNTS, TOKENS, Block, Sums, assemble, running_sums
from value_heads.text_counts import unpack

if TYPE_CHECKING:
    from datasets import Dataset

OTHER_STATES = "this job's rollouts were stored for the features of an earlier version: start the job anew"
STRIDE = 4  # tokens between the prefixes that a fit reads


def prefix_lengths(length: int) -> list[int]:
    """Every ``STRIDE``-th token and the last: neighbouring prefixes tell a fit much the same."""
    return sorted({*range(STRIDE, length + 1, STRIDE), length} - {0})


def prefix_table(spec: FeatureSpec, hidden: Sequence[Mapping[int, Tensor]]) -> Dataset:
    """The table of completions whose hidden states are ``hidden[completion][layer]``: [T, D], T of each its own."""
    lengths = [prefix_lengths(len(next(iter(states.values())))) for states in hidden]
    columns: dict[str, list[Tensor]] = {name: [] for name in _columns(spec)}
    uncounted = spec.model_copy(update={"counted": (), "text_counts": ""})
    for by_layer, prefixes in zip(hidden, lengths, strict=True):
        states = {layer: by_layer[layer].float()[None] for layer in spec.layers}
        sums = running_sums(uncounted, states, None)
        last = torch.tensor(prefixes) - 1
        for name, block in _columns(spec).items():
            source = states[block.layer] if block.kind == "current" else sums[block.layer, block.decay]
            columns[name].append(source[0, last])
    halves = {name: Half.of(torch.cat(parts)) for name, parts in columns.items()}
    return _to_arrow(lengths, halves)


def _columns(spec: FeatureSpec) -> dict[str, Block]:
    """What is stored, by the column's name; a mean is its sum divided by the prefix's length."""
    blocks = [block for block in spec.blocks if block.reads_states and block.layer != TOKENS and not block.ended]
    sums = [Block("sum", block.layer, block.decay) for block in blocks if block.kind != "current"]
    stored = dict.fromkeys([*(block for block in blocks if block.kind == "current"), *sums])
    return {f"{block.kind}_{block.layer}_{block.decay:g}": block for block in stored}


def _to_arrow(lengths: Sequence[Sequence[int]], halves: Mapping[str, Half]) -> Dataset:
    import pyarrow as pa

    completions = [place for place, prefixes in enumerate(lengths) for _ in prefixes]
    columns = {
        "completion": pa.array(completions, pa.int32()),
        "length": pa.array([length for prefixes in lengths for length in prefixes], pa.int32()),
    }
    return _vector_table(halves, columns)


def _vector_table(halves: Mapping[str, Half], columns: JsonObject) -> Dataset:
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    for name, half in halves.items():
        vectors = pa.array(half.stored.numpy().reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(vectors, half.stored.shape[-1])
        columns[f"{name}_scale"] = pa.array(half.scale.numpy())
    return Dataset(InMemoryTable(pa.table(columns)))


def state_table(states: Sequence[Tensor]) -> Dataset:
    """A row a token: the states [T, D] of completions, one after another."""
    return _vector_table({"state": Half.of(torch.cat(list(states)))}, {})


def read_states(table: Dataset) -> Tensor:
    """[tokens, D] float32, as ``state_table`` stored them."""
    return _read_vectors(table.data.table, "state").float()


def places_of(completions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Of each prefix of the completions: which one's it is, and its length in tokens; [N] both."""
    lengths = [prefix_lengths(len(tokens)) for tokens in completions]
    row_N = torch.tensor([row for row, prefixes in enumerate(lengths) for _ in prefixes])
    return row_N, torch.tensor([length for prefixes in lengths for length in prefixes])


def _read_vectors(table: Any, name: str) -> Half:
    vectors, scale_N = (table.column(column).combine_chunks() for column in (name, f"{name}_scale"))
    stored = torch.tensor(vectors.flatten().to_numpy()).reshape(len(scale_N), -1)
    return Half(stored, torch.tensor(scale_N.to_numpy()))


class Prefixes:
    """The states at the prefixes of some of a shard's completions, read from ``table`` as features are asked for."""

    def __init__(self, table: Dataset, completions: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """``completions``: places in the shard, rising; ``tokens``: of each of those."""
        place_N = table.data.column("completion").to_numpy()
        start, stop = np.searchsorted(place_N, [completions[0], completions[-1] + 1])
        self.table, self.tokens = table.data.table.slice(start, stop - start), tokens
        self.length_N = places_of(tokens)[1]
        self._chosen_N = torch.from_numpy(np.isin(place_N[start:stop], completions))

    def features(self, spec: FeatureSpec) -> Tensor:
        """[N, F] float32. AlignError where rollouts were stored for a spec that reads other states."""
        if not set(_columns(spec)).issubset(self.table.column_names):
            raise AlignError(OTHER_STATES, "other_features", "feature_spec")
        states: dict[int, Tensor] = {}
        sums: Sums = {}
        for name, block in _columns(spec).items():
            if block.kind == "current":
                states[block.layer] = self._vectors(name)
            else:
                sums[block.layer, block.decay] = self._vectors(name)
        if spec.counted:
            sums[TOKENS, 1.0] = self._token_counts(spec.counted)
        if spec.text_counts:
            sums[TEXT_COUNTS, 1.0] = self._text_counts(spec.text_counts)
        if spec.stop_ids:
            last_N = [tokens[length - 1] for tokens in self.tokens for length in prefix_lengths(len(tokens))]
            states[STOPPED] = torch.isin(torch.tensor(last_N), torch.tensor(spec.stop_ids)).float()[:, None]
        return assemble(spec, states, sums, self.length_N)

    def _vectors(self, name: str) -> Tensor:
        vectors = _read_vectors(self.table, name)
        return Half(vectors.stored[self._chosen_N], vectors.scale[self._chosen_N]).float()

    def _text_counts(self, packed: str) -> Tensor:
        """Of the text of each prefix, [N, C]."""
        counts_VC = unpack(packed)
        parts = [
            counts_VC[torch.tensor(tokens).clamp_max(len(counts_VC) - 1)].cumsum(0)[torch.tensor(lengths) - 1]
            for tokens in self.tokens
            if (lengths := prefix_lengths(len(tokens)))
        ]
        return torch.cat(parts)

    def _token_counts(self, counted: Sequence[int]) -> Tensor:
        """How often each counted token is in each prefix, [N, counted]."""
        counted_C = torch.tensor(counted)
        counts_NC = torch.zeros(len(self.length_N), len(counted))
        start = 0
        for tokens in map(torch.tensor, self.tokens):
            prefixes = len(prefix_lengths(len(tokens)))
            place_T = torch.searchsorted(counted_C, tokens).clamp_max(len(counted_C) - 1)
            known_T = counted_C[place_T] == tokens
            since_T = start + torch.arange(len(tokens)) // STRIDE  # the first prefix that holds the token
            counts_NC.index_put_((since_T[known_T], place_T[known_T]), torch.ones(()), accumulate=True)
            counts_NC[start : start + prefixes] = counts_NC[start : start + prefixes].cumsum(0)
            start += prefixes
        return counts_NC
