"""Tilts: what a value function adds to the frozen model's logits before a token is drawn.

A(s, a) = bias[a] + <U s + P n, R E[a]> + sum_f gate_f(s) f(a) + stop(a) <p, n> + sharpness log pi_0(a|s), where s is
the state that the output head reads, E[a] the head's row of token a, f(a) says what the prompt and the response hold of
a (``prompt_features``), stop(a) whether it is a stop token, and n how long the response is (``length_features``). The
proposal is q(a|s) = pi_0(a|s) exp(A(s,a)) / Z(s). Reconstruction: the papers tilt by a second model's forward pass;
this form needs none. Axes in tensor names: V vocabulary, D width, r rank, M rows, F features, L length features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from value_heads.length_features import NUM_LENGTH_FEATURES, length_features
from value_heads.prompt_features import FEATURES, FeatureSets, RowFeatures, RunningFeatures, TokenGroups

TiltPart = Literal["bias", "states", "words", "word_states", "word_sets", "lengths", "sharpness"]
TILT_PARTS: frozenset[TiltPart] = frozenset(get_args(TiltPart))
EXPORTABLE_PARTS: frozenset[TiltPart] = frozenset({"bias", "states", "sharpness"})  # that a file and a temperature hold
STOP = FEATURES.index("stop")
REPEATED = [FEATURES.index(name) for name in ("prompt_repeated", "repeated")]
LEAST_LOGIT = -1e4  # lower ones are those of tokens that cannot be drawn
TENSORS = (
    "bias",
    "state_factor",
    "token_factor",
    "gates",
    "direction",
    "direction_error",
    "length_factor",
    "length_stop",
)


@dataclass(frozen=True, eq=False)
class WordGates:
    """Gates [F, D + 1] on a prompt's words, without those of the ``ignored`` tokens."""

    gates: Tensor
    ignored: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tilt:
    """``bias``: [V]. ``state_factor``: [r, D + 1] and ``gates``: [F, D + 1], their last column a constant.
    ``token_factor``: [r, D]. ``ignored``: tokens whose words are not a prompt's own. ``stop_ids``: sorted.
    ``direction``: [D], and ``direction_error``: [], see ``tilt_export.constant_direction``; an adapter without a bias
    needs them. ``word_sets``: more gates, of folded tilts whose jobs ignored other tokens. ``length_factor``: P,
    [r, L], and ``length_stop``: p, [L]; None where it does not read the response's length. ``sharpness``: at least 0;
    alone it is the frozen model at a temperature of 1 / (1 + sharpness)."""

    bias: Tensor
    state_factor: Tensor
    token_factor: Tensor
    gates: Tensor
    ignored: tuple[int, ...]
    stop_ids: tuple[int, ...]
    direction: Tensor | None = None
    direction_error: Tensor | None = None
    word_sets: tuple[WordGates, ...] = ()
    length_factor: Tensor | None = None
    length_stop: Tensor | None = None
    sharpness: float = 0.0

    @property
    def reads_words(self) -> bool:
        """Whether it depends on the prompt's or the response's words."""
        return bool(self.gates[:-1].any())

    @property
    def parts(self) -> frozenset[TiltPart]:
        """What a server must be able to do: add a ``bias``, read the model's ``states``, read the ``words`` of prompt
        and response, weigh them by the state (``word_states``), read them in several ways (``word_sets``), count the
        response's ``lengths``, and scale the frozen model's logits (``sharpness``)."""
        word_gates, stop_gate = self.gates[:-1], self.gates[-1]
        needs: dict[TiltPart, bool] = {
            "bias": bool(self.bias.any()) or bool(stop_gate[-1]) or bool(self.state_factor[:, -1:].any()),
            "states": bool(self.state_factor[:, :-1].any()) or bool(stop_gate[:-1].any()),
            "words": self.reads_words,
            "word_states": bool(word_gates[:, :-1].any()),
            "word_sets": bool(self.word_sets),
            "lengths": any(part is not None and bool(part.any()) for part in (self.length_factor, self.length_stop)),
            "sharpness": bool(self.sharpness),
        }
        return frozenset(part for part, needed in needs.items() if needed)

    def temperature(self, strength: float = 1.0) -> float:
        """Of q ∝ exp((logits + temperature strength (A - sharpness log pi_0)) / temperature), which is q."""
        return 1 / (1 + strength * self.sharpness)

    def tensors(self) -> dict[str, Tensor]:
        """Its parameters by name, as a file stores them."""
        parts = {name: getattr(self, name) for name in TENSORS}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}


def fold_tilts(tilts: Sequence[Tilt], strengths: Sequence[float]) -> Tilt:
    """Sum_t strength_t A_t as one tilt: biases, gates and sharpness add, factor pairs concatenate. Exact.

    Gates of tilts that ignore different tokens of a prompt stay apart (``word_sets``). ValueError where the tilts stop
    at different tokens, or are of different models.
    """
    first = tilts[0]
    if any(tilt.stop_ids != first.stop_ids for tilt in tilts):
        raise ValueError("tilts that stop at different tokens do not fold")
    if any((tilt.bias.shape, tilt.gates.shape) != (first.bias.shape, first.gates.shape) for tilt in tilts):
        raise ValueError("tilts of models of different vocabularies or widths do not fold")
    scaled = list(zip(tilts, strengths, strict=True))
    (ignored, gates), *word_sets = _fold_gates(scaled).items()
    directed = next((tilt for tilt in tilts if tilt.direction is not None), first)
    return Tilt(
        bias=torch.stack([tilt.bias * strength for tilt, strength in scaled]).sum(0),
        state_factor=torch.cat([tilt.state_factor * strength for tilt, strength in scaled]),
        token_factor=torch.cat([tilt.token_factor for tilt in tilts]),
        gates=gates,
        ignored=ignored,
        stop_ids=first.stop_ids,
        direction=directed.direction,
        direction_error=directed.direction_error,
        word_sets=tuple(WordGates(gates, ignored) for ignored, gates in word_sets),
        **_fold_lengths(scaled),
        sharpness=sum(tilt.sharpness * strength for tilt, strength in scaled),
    )


def sharpened(tilt: Tilt, sharpness: float) -> Tilt:
    """The tilt of q^(1 + sharpness), normalised: q at a temperature of 1 / (1 + sharpness)."""
    scaled = fold_tilts([tilt], [1 + sharpness])
    return replace(scaled, sharpness=scaled.sharpness + sharpness)


def with_repetition_penalty(tilt: Tilt, penalty: float) -> Tilt:
    """The tilt less ``penalty`` nats for each token whose word the response has already."""
    gates = tilt.gates.clone()
    gates[REPEATED, -1] -= penalty
    return replace(tilt, gates=gates)


def with_sharpness(addition_MV: Tensor, logits_MV: Tensor, sharpness: float) -> Tensor:
    """The addition and sharpness log pi_0(a|s), [M, V], up to a constant of s; finite for tokens that cannot be
    drawn."""
    return torch.add(addition_MV, logits_MV.clamp(min=LEAST_LOGIT), alpha=sharpness) if sharpness else addition_MV


def _fold_gates(scaled: Sequence[tuple[Tilt, float]]) -> dict[tuple[int, ...], Tensor]:
    """The gates by the tokens that they ignore; the stop gate, which reads no words, is in the first."""
    readers = [tilt for tilt, _ in scaled if tilt.reads_words] or [scaled[0][0]]
    sums = {tilt.ignored: torch.zeros_like(tilt.gates) for tilt in readers}
    sums |= {part.ignored: torch.zeros_like(part.gates) for tilt, _ in scaled for part in tilt.word_sets}
    first = readers[0].ignored
    for tilt, strength in scaled:
        sums[tilt.ignored if tilt.reads_words else first][:-1] += tilt.gates[:-1] * strength
        sums[first][-1] += tilt.gates[-1] * strength
        for part in tilt.word_sets:
            sums[part.ignored] += part.gates * strength
    return sums


def _fold_lengths(scaled: Sequence[tuple[Tilt, float]]) -> dict[str, Tensor]:
    """Their length factors one after another, zeros where a tilt reads no length, and the sum of their stop gates."""
    if all(tilt.length_factor is None for tilt, _ in scaled):
        return {}
    factors, stops = [], []
    for tilt, strength in scaled:
        zero = tilt.bias.new_zeros(len(tilt.state_factor), NUM_LENGTH_FEATURES)
        factors.append(zero if tilt.length_factor is None else tilt.length_factor * strength)
        if tilt.length_stop is not None:
            stops.append(tilt.length_stop * strength)
    return {"length_factor": torch.cat(factors), "length_stop": torch.stack(stops).sum(0)}


class BoundTilt:
    """A tilt with the output head and the vocabulary of the model that it steers.

    ``head_VD``: the output head's weight; ``groups``: of its vocabulary.
    """

    def __init__(self, tilt: Tilt, head_VD: Tensor, groups: TokenGroups) -> None:
        if len(tilt.bias) != len(head_VD):
            raise ValueError(f"the tilt is of {len(tilt.bias)} tokens, the model's output head of {len(head_VD)}")
        self.groups = groups
        self.ignored = [tilt.ignored, *(part.ignored for part in tilt.word_sets)]  # not the tilt, which outlives this
        device = head_VD.device
        self.bias_V = tilt.bias.float().to(device)
        self.state_factor = tilt.state_factor.float().to(device)
        self.gates = torch.cat([tilt.gates, *(part.gates for part in tilt.word_sets)]).float().to(device)
        self.length_factor, self.length_stop = (
            part.float().to(device) if part is not None and "lengths" in tilt.parts else None
            for part in (tilt.length_factor, tilt.length_stop)
        )
        self.token_rV = token_products(tilt, head_VD)
        self.stop_ids = torch.tensor(tilt.stop_ids, dtype=torch.int64)
        self.sharpness = tilt.sharpness

    def start(self, prompt_ids: Sequence[int]) -> RowFeatures:
        """The features of a session's rows, the first of them the prompt."""
        sets = [RunningFeatures(self.groups, prompt_ids, ignored, self.stop_ids) for ignored in self.ignored]
        return sets[0] if len(sets) == 1 else FeatureSets(sets)

    def additions(self, states_MD: Tensor, sessions: Sequence[RowFeatures]) -> Tensor:
        """A(s, .) [M, V] float32 without the sharpness, of the rows of these sessions one after another."""
        states_MD = states_MD.float()
        gates_MF, states_Mr = affine(states_MD, self.gates), affine(states_MD, self.state_factor)
        if self.length_factor is not None and self.length_stop is not None:
            lengths = [row.lengths for features in sessions for row in features.rows]
            lengths_ML = length_features(lengths).to(states_MD.device)
            states_Mr += lengths_ML @ self.length_factor.T
            gates_MF[:, STOP] += lengths_ML @ self.length_stop
        addition_MV = torch.addmm(self.bias_V, states_Mr, self.token_rV)
        start = 0
        for features in sessions:
            rows = slice(start, start + len(features.rows))
            features.add(addition_MV[rows], gates_MF[rows])
            start = rows.stop
        return addition_MV

    def along(self, prompt_ids: Sequence[int], tokens: Sequence[int], states_TD: Tensor, logits_TV: Tensor) -> Tensor:
        """A(s, .) [T, V] before each token of a response, from the states [T, D] that they were drawn from, and the
        frozen model's logits at these."""
        features = self.start(prompt_ids)
        features.along(tokens)
        addition_TV = self.additions(states_TD, [features])
        return with_sharpness(addition_TV, logits_TV, self.sharpness)


def token_products(tilt: Tilt, head_VD: Tensor) -> Tensor:
    """R E [r, V] float32 of the head's rows E, whose copy in float32 a tilt of rank 0 does without."""
    token_rD = tilt.token_factor.float().to(head_VD.device)
    return token_rD @ head_VD.float().T if len(token_rD) else token_rD.new_zeros(0, len(head_VD))


def affine(states_MD: Tensor, weight: Tensor) -> Tensor:
    """[M, D] by [n, D + 1], whose last column is a constant: [M, n]."""
    return torch.addmm(weight[:, -1], states_MD, weight[:, :-1].T)


def zero_tilt(vocabulary: int, width: int, ignored: Sequence[int], stop_ids: Sequence[int]) -> Tilt:
    """One that changes nothing."""
    return Tilt(
        torch.zeros(vocabulary),
        torch.zeros(0, width + 1),
        torch.zeros(0, width),
        torch.zeros(len(FEATURES), width + 1),
        tuple(ignored),
        tuple(sorted(stop_ids)),
    )
