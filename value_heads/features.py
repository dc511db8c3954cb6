"""Features of value functions: hidden states of a frozen model at one token, and their sums over the response.

Axes in tensor names: R rows, L tokens of a chunk, D hidden width, F features. Token t of a response is counted from 1.
Everything is linear in the hidden states (but for the mean's division by t), so that linear heads fold exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, model_validator
from torch import Tensor

from value_heads.text_counts import WIDTH, text_features, unpack

POSITION, LENGTH, FINISHED, TEXT = "position", "length", "finished", "text"
TOKENS = -1
"""Key of the token ids [R, L] among the hidden states, for specs with counted tokens or stop ids; negative ids are
ignored."""
STOPPED = -2
"""Key among states [R, L, 1]: 1 where the token is a stop id, else 0."""
TEXT_COUNTS = -3
"""Key among states [R, L, C]: the counts of the token's text."""
HEAD_STATE = -10
"""Layer of the states that tokens were drawn from, as the output head reads them: token t's has not read token t."""

KNOTS = (1, 2, 3, *(size * quarter // 4 for size in (2**n for n in range(2, 14)) for quarter in (4, 5, 6, 7)), 2**14)
"""Token numbers between which length features are linear: every token up to 8, then four an octave."""


def _check_layer(layer: int) -> int:
    if layer < 0 and layer != HEAD_STATE:
        raise ValueError(f"layers count from 0, the embedding; {HEAD_STATE} is the state that the output head reads")
    return layer


Layer = Annotated[int, AfterValidator(_check_layer)]


class Block(NamedTuple):
    """One stretch of the feature vector, D wide where it reads a hidden layer. ``ended``: 0 but at stop ids."""

    kind: str  # "current", "sum", "mean", "text", "position", "length" or "finished"
    layer: int = 0
    decay: float = 1.0
    ended: bool = False

    @property
    def reads_states(self) -> bool:
        return self.kind in ("current", "sum", "mean")


Sums = dict[tuple[int, float], Tensor]
"""(layer, decay) -> running sum over response tokens; [R, D] where it is carried from chunk to chunk."""


class FeatureSpec(BaseModel):
    """Which hidden states make the feature vector of response token t. Layer 0 is the token embedding, layer -10
    (``HEAD_STATE``) the state that token t was drawn from.

    ``current``: h_t. ``summed``: sum_{i<=t} h_i / sqrt(horizon). ``averaged``: sum_{i<=t} h_i / t.
    ``decayed``: (layer, g) -> sum_{i<=t} g^(t-i) h_i / sqrt(horizon). ``position``: t / horizon.
    ``counted``: token ids; the count of each in y_1..y_t, / sqrt(horizon): a linear head has one weight per id.
    ``text_counts``: of each token of the vocabulary, packed (``text_counts.pack``); functions of the response's words,
    sentences, lines and kinds of characters, piecewise linear in each (``text``).
    ``stop_ids``: of the frozen model. They add a piecewise linear function of t (``length``) and a second one that
    applies where y_t is a stop id (``finished``), which separates finished from unfinished responses. ``ended``: so
    does a second copy of every other feature, which gives finished responses a value function of their own.
    ``horizon``: the response length, in tokens, at which sums and states have similar size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    current: tuple[Layer, ...] = ()
    summed: tuple[Layer, ...] = ()
    averaged: tuple[Layer, ...] = ()
    decayed: tuple[tuple[Layer, Annotated[float, Field(gt=0, lt=1)]], ...] = ()
    counted: tuple[NonNegativeInt, ...] = ()
    text_counts: str = Field("", repr=False)
    stop_ids: tuple[NonNegativeInt, ...] = ()
    position: bool = True
    ended: bool = False
    horizon: int = Field(48, ge=1)

    @model_validator(mode="after")
    def _some_layer_and_none_twice(self) -> FeatureSpec:
        if not self.layers:
            raise ValueError("a FeatureSpec reads at least one layer")
        if self.ended and not self.stop_ids:
            raise ValueError("ended: takes stop_ids, which end a response")
        if self.text_counts:
            unpack(self.text_counts)
        for name in ("counted", "stop_ids"):
            if list(getattr(self, name)) != sorted(set(getattr(self, name))):
                raise ValueError(f"{name}: token ids are sorted, each named once")
        if len(set(self.blocks)) < len(self.blocks):
            raise ValueError("a FeatureSpec names each layer once per kind")
        return self

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the feature vector, in order."""
        blocks = [Block("current", layer) for layer in self.current]
        blocks += [Block("sum", layer) for layer in self.summed]
        blocks += [Block("mean", layer) for layer in self.averaged]
        blocks += [Block("sum", layer, decay) for layer, decay in self.decayed]
        blocks += [Block("sum", TOKENS)] if self.counted else []
        blocks += [Block(TEXT, TEXT_COUNTS)] if self.text_counts else []
        position = [Block(POSITION)] if self.position else []
        ended = [block._replace(ended=True) for block in [*blocks, *position]] if self.ended else []
        lengths = [Block(LENGTH), Block(FINISHED)] if self.stop_ids else []
        return (*blocks, *lengths, *position, *ended)

    @property
    def layers(self) -> tuple[int, ...]:
        """Hidden layers that the model must report, sorted."""
        return tuple(sorted({block.layer for block in self.blocks if block.reads_states} - {TOKENS}))

    def width(self, hidden_size: int) -> int:
        return sum(self.block_width(block, hidden_size) for block in self.blocks)

    def block_width(self, block: Block, hidden_size: int) -> int:
        if not block.reads_states:
            return {POSITION: 1, LENGTH: len(KNOTS) - 1, FINISHED: len(KNOTS), TEXT: WIDTH}[block.kind]
        return len(self.counted) if block.layer == TOKENS else hidden_size

    def scale(self, block: Block) -> float:
        """The constant that multiplies a block's raw value."""
        return {"sum": 1 / math.sqrt(self.horizon), POSITION: 1 / self.horizon}.get(block.kind, 1.0)


def union(specs: Sequence[FeatureSpec]) -> FeatureSpec:
    """The smallest spec that contains the blocks of all ``specs``, with the longest horizon.

    Raises ValueError if two specs have different stop ids or counts of text, because their features of one kind differ.
    """
    text_counts = {spec.text_counts for spec in specs if spec.text_counts}
    if len(text_counts) > 1:
        raise ValueError("value functions of one stack count the text of one model's tokens: fit them anew")
    stop_ids = {spec.stop_ids for spec in specs if spec.stop_ids}
    if len(stop_ids) > 1:
        raise ValueError(
            f"value functions of one stack have one model's stop ids, not {sorted(stop_ids)}: fit them anew"
        )

    def merged(name: str) -> tuple[Any, ...]:
        return tuple(sorted({entry for spec in specs for entry in getattr(spec, name)}))

    return FeatureSpec(
        **{name: merged(name) for name in ("current", "summed", "averaged", "decayed", "counted")},
        text_counts=max(text_counts, default=""),
        stop_ids=max(stop_ids, default=()),
        position=any(spec.position for spec in specs),
        ended=any(spec.ended for spec in specs),
        horizon=max(spec.horizon for spec in specs),
    )


def features(
    spec: FeatureSpec, hidden: dict[int, Tensor], carried: Sums | None = None, start: int | Tensor = 0
) -> Tensor:
    """Features at every token of R rows: [R, L, F] in float32.

    hidden[layer]: [R, L, D] at tokens start+1 … start+L; hidden[TOKENS]: [R, L], for counted tokens, text and stop ids;
    ``carried``: sums over the first ``start`` tokens.
    Padding at a row's end does not affect earlier positions; features at padding are meaningless.
    """
    states = read_states(spec, hidden)
    rows, length, device = _shape(states)
    t_RL = torch.arange(1, length + 1, device=device) + torch.as_tensor(start, device=device).expand(rows)[:, None]
    return assemble(spec, states, running_sums(spec, states, carried), t_RL)


def last_states(
    spec: FeatureSpec, carried: Sums | None, hidden: dict[int, Tensor], lengths_R: Tensor, start: int | Tensor
) -> tuple[dict[int, Tensor], Sums, Tensor]:
    """States [R, D] and sums [R, D] at each row's last counted token, and that token's number t [R]."""
    any_layer = next(iter(hidden.values()))
    device, (rows, length) = any_layer.device, any_layer.shape[:2]
    lengths_R = lengths_R.to(device)
    row_R, last_R = torch.arange(rows, device=device), lengths_R - 1
    counted_RL = torch.arange(length, device=device) < lengths_R[:, None]
    sums: Sums = {}
    for layer, decay in _sum_keys(spec):
        if layer == TOKENS:
            total_RD = _count_tokens(spec, hidden[TOKENS].masked_fill(~counted_RL, -1))
        elif layer == TEXT_COUNTS:
            total_RD = _text_counts(spec, hidden[TOKENS]).masked_fill(~counted_RL[..., None], 0.0).sum(1)
        elif decay == 1:
            total_RD = hidden[layer].float().masked_fill(~counted_RL[..., None], 0.0).sum(1)
        else:
            total_RD = _decayed(hidden[layer].float(), decay)[row_R, last_R]
        if carried is not None:
            total_RD = total_RD + decay ** lengths_R[:, None] * carried[layer, decay]
        sums[layer, decay] = total_RD
    t_R = torch.as_tensor(start, device=device) + lengths_R
    states = {layer: hidden[layer][row_R, last_R].float() for layer in spec.layers}
    if spec.stop_ids:
        states[STOPPED] = _stopped(spec, hidden[TOKENS][row_R, last_R])
    return states, sums, t_R


def sums_of(spec: FeatureSpec, containing: FeatureSpec, sums: Sums) -> Sums:
    """What ``spec`` reads of the sums of a spec that contains it: the counts of its own tokens."""
    if not spec.counted or spec.counted == containing.counted:
        return sums
    places = torch.searchsorted(torch.tensor(containing.counted), torch.tensor(spec.counted))
    counts = sums[TOKENS, 1.0]
    return sums | {(TOKENS, 1.0): counts[..., places.to(counts.device)]}


def _sum_keys(spec: FeatureSpec) -> list[tuple[int, float]]:
    return sorted({(block.layer, block.decay) for block in spec.blocks if block.kind in ("sum", "mean", TEXT)})


def _count_tokens(spec: FeatureSpec, tokens_RL: Tensor) -> Tensor:
    """The count of each of ``spec.counted`` in a row's tokens [R, counted]."""
    place_RL, found_RL = _places(spec, tokens_RL)
    counts = torch.zeros(len(tokens_RL), len(spec.counted), device=tokens_RL.device)
    return counts.scatter_add_(1, place_RL, found_RL.float())


def _text_counts(spec: FeatureSpec, tokens_RL: Tensor) -> Tensor:
    """[R, L] -> [R, L, C]: the counts of each token's text."""
    counts_VC = unpack(spec.text_counts)
    return counts_VC[tokens_RL.cpu().clamp(0, len(counts_VC) - 1)].to(tokens_RL.device)


def _places(spec: FeatureSpec, tokens_RL: Tensor) -> tuple[Tensor, Tensor]:
    """The index of each token in ``spec.counted``, and whether it is in it."""
    counted = torch.tensor(spec.counted, device=tokens_RL.device)
    place_RL = torch.searchsorted(counted, tokens_RL).clamp_max(len(counted) - 1)
    return place_RL, counted[place_RL] == tokens_RL


def read_states(spec: FeatureSpec, hidden: dict[int, Tensor]) -> dict[int, Tensor]:
    """The states that a spec reads, [R, L, width] each: hidden states, one-hot counted tokens, TEXT_COUNTS, STOPPED."""
    states = {layer: hidden[layer].float() for layer in spec.layers}
    if spec.counted:
        place_RL, found_RL = _places(spec, hidden[TOKENS])
        one_hot = torch.zeros(*place_RL.shape, len(spec.counted), device=place_RL.device)
        states[TOKENS] = one_hot.scatter_(-1, place_RL[..., None], found_RL[..., None].float())
    if spec.text_counts:
        states[TEXT_COUNTS] = _text_counts(spec, hidden[TOKENS])
    if spec.stop_ids:
        states[STOPPED] = _stopped(spec, hidden[TOKENS])
    return states


def _stopped(spec: FeatureSpec, tokens: Tensor) -> Tensor:
    """[...] -> [..., 1]: 1 where the token is a stop id."""
    return torch.isin(tokens, torch.tensor(spec.stop_ids, device=tokens.device)).float()[..., None]


def ramps(t: Tensor) -> Tensor:
    """[..., 1] -> [..., len(KNOTS) - 1]: the n-th rises from 0 at knot n to 1 at the next, and stays there.

    A weighted sum of them is a piecewise linear function of t, constant beyond the lengths in the fitted data.
    """
    knots = torch.tensor(KNOTS, dtype=t.dtype, device=t.device)
    return ((t - knots[:-1]) / knots.diff()).clamp(0, 1)


def running_sums(spec: FeatureSpec, states: dict[int, Tensor], carried: Sums | None) -> Sums:
    """Sums [R, L, D] through every token: S_t = decay S_{t-1} + h_t, from S_0 = carried (absent: zero)."""
    sums = {}
    for layer, decay in _sum_keys(spec):
        sums[layer, decay] = states[layer].cumsum(1) if decay == 1 else _decayed(states[layer], decay)
        if carried is not None:
            past_L = decay ** torch.arange(1, states[layer].shape[1] + 1, device=states[layer].device)
            sums[layer, decay] += past_L[:, None] * carried[layer, decay][:, None]
    return sums


def assemble(spec: FeatureSpec, states: dict[int, Tensor], sums: Sums, t: Tensor) -> Tensor:
    """Feature vectors [..., F] from hidden states and sums [..., D] at tokens number t [...]."""
    t = t[..., None].float()
    pieces = []
    for block in spec.blocks:
        match block.kind:
            case "current":
                raw = states[block.layer]
            case "sum":
                raw = sums[block.layer, block.decay]
            case "mean":
                raw = sums[block.layer, block.decay] / t
            case "text":
                raw = text_features(sums[TEXT_COUNTS, 1.0])
            case "length":
                raw = ramps(t)
            case "finished":
                raw = states[STOPPED] * torch.cat([torch.ones_like(t), ramps(t)], -1)
            case _:
                raw = t
        pieces.append(raw * spec.scale(block) * (states[STOPPED] if block.ended else 1))
    return torch.cat(pieces, -1)


def _decayed(states_RLD: Tensor, decay: float) -> Tensor:
    step_L = torch.arange(states_RLD.shape[1], device=states_RLD.device)
    gap_LL = step_L[:, None] - step_L
    weight_LL = torch.where(gap_LL >= 0, decay ** gap_LL.clamp(min=0).float(), 0.0)
    # NaN after a row's end would spread to earlier tokens as 0 * NaN in the matrix product.
    return torch.einsum("tl,rld->rtd", weight_LL, states_RLD.nan_to_num())


def _shape(states: dict[int, Tensor]) -> tuple[int, int, torch.device]:
    state = next(iter(states.values()))
    return state.shape[0], state.shape[1], state.device
