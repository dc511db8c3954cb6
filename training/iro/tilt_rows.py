"""Tilts from an alignment job's rollouts: plain samples of the frozen model, later of its tilted policy.

Three kinds are fitted: ``words`` reads what prompt and response hold of a candidate, ``states`` the model's state too,
``bias`` is one number for each token. Where words are not to be read, ``states`` reads the state alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from iro_server.engines.describe import Description
from iro_server.engines.frozen_model import FrozenModel
from iro_server.engines.grammars import grammars_of
from training.iro.data import Prompt
from training.iro.fit import Shards
from training.iro.head_states import head_states
from training.iro.prefixes import read_states
from training.iro.rollouts import HEAD_STATES, completions_of, schema_of
from value_heads.bias_fit import fit_bias, within_groups
from value_heads.length_features import length_features
from value_heads.prompt_features import TokenGroups, candidate_features, common_tokens
from value_heads.tilt import STOP, BoundTilt, Tilt, TiltPart, fold_tilts, zero_tilt
from value_heads.tilt_export import constant_direction
from value_heads.tilt_fit import TiltFit, TiltRows, fit_tilt

CANDIDATES = 96  # tokens of each state that the fit compares
MOST_POSITIONS = 65_536  # of all rollouts together: more are left out at random


@dataclass(frozen=True)
class TiltData:
    """What tilts are fitted from: prompts by number, graded shards of plain rollouts, the frozen model, and the parts
    of a tilt (``Tilt.parts``) that its engine applies. Rollouts were drawn from q ∝ exp((logits + A) / temperature); A
    is that of ``policy``, or 0. ``schema``: of prompts that are held to it (``rollouts.schema_of``), among the tokens
    that it allows there."""

    prompts: dict[int, Prompt]
    shards: Shards
    model: Description
    load_frozen: Callable[[], FrozenModel]
    steers: frozenset[TiltPart]
    policy: Tilt | None = None
    temperature: float = 1.0
    schema: str | None = None

    @cached_property
    def frozen(self) -> FrozenModel:
        return self.load_frozen()

    @cached_property
    def ignored(self) -> tuple[int, ...]:
        """Tokens whose words are not a prompt's own; of all tilts of a job the same, so that they fold."""
        if self.policy is not None:
            return self.policy.ignored
        return common_tokens([prompt.token_ids for prompt in self.prompts.values()])

    @cached_property
    def groups(self) -> TokenGroups:
        return TokenGroups.of_tokenizer(self.model.tokenizer, len(self.frozen.head_weight))

    @cached_property
    def bound(self) -> BoundTilt | None:
        return None if self.policy is None else BoundTilt(self.policy, self.frozen.head_weight, self.groups)

    @torch.no_grad()
    def policy_logprobs(self, prompt: Prompt, tokens: Sequence[int], states_TD: Tensor) -> Tensor:
        """log q(.|s) [T, V] before each token, of the policy that drew the rollouts; -inf where q is 0."""
        head = self.frozen.head_weight
        states_TD = states_TD.to(head.device, head.dtype)
        logits_TV = self.frozen.logits(states_TD)
        if self.bound is not None:
            logits_TV = logits_TV + self.bound.along(prompt.token_ids, tokens, states_TD, logits_TV)
        if schema := schema_of(prompt, self.schema):
            grammars = grammars_of(self.model.tokenizer, self.model.info.eos_ids)
            allowed_TV = grammars.along(schema, tokens, logits_TV.shape[1])
            logits_TV = logits_TV.masked_fill(~allowed_TV.to(head.device), -torch.inf)
        return torch.log_softmax(logits_TV / self.temperature, -1).cpu()

    @torch.no_grad()
    def frozen_logprob(self, prompt: Prompt, completions: Sequence[Sequence[int]]) -> list[float]:
        """Of all tokens of each completion together, under the frozen model at temperature 1."""
        states = head_states(self.frozen, prompt.token_ids, completions)
        head, logprobs = self.frozen.head_weight, []
        for states_TD, tokens in zip(states, completions, strict=True):
            logprobs_TV = self.frozen.logits(states_TD.to(head.device, head.dtype)).log_softmax(-1).cpu()
            logprobs.append(float(logprobs_TV.gather(1, torch.tensor(tokens)[:, None]).sum()))
        return logprobs

    def states(self, index: int) -> list[Tensor]:
        """Of each completion of a shard, in its order: the states that its tokens were drawn from, [T, D].

        Recomputed where a version whose jobs had fewer rounds stored the shard without them.
        """
        (name, _), source = self.shards.names[index], self.shards.source
        groups = completions_of(source, name)
        try:
            states = read_states(source.table(name, HEAD_STATES))
        except KeyError:
            prompts = [self.prompts[number].token_ids for number in source.load(name)["prompts"]]
            pairs = zip(prompts, groups, strict=True)
            return [states for prompt_ids, group in pairs for states in head_states(self.frozen, prompt_ids, group)]
        return list(states.split([len(tokens) for group in groups for tokens in group]))


def fit_tilts(data: TiltData, seed: int, stop_if_asked: Callable[[], None]) -> dict[str, Tilt]:
    """A tilt of each kind in ``TRIALS`` that the engine applies, to be added to the policy's.

    What is fitted to draws at a temperature is what the logits over it lack: the tilt is the temperature times that.
    """
    head_VD = data.frozen.head_weight.float().cpu()
    vocabulary, width = head_VD.shape
    zero = zero_tilt(vocabulary, width, data.ignored, data.model.info.eos_ids)
    rows = tilt_rows(data, zero, seed)
    direction, error = constant_direction(rows.states_ND)
    zero = replace(zero, direction=direction, direction_error=error)
    parts = [data.shards.graded(index) for index in range(len(data.shards))]
    completions = [tokens for part in parts for tokens in part.tokens]
    prompts_R, rewards_R = (torch.cat([getattr(part, name) for part in parts]) for name in ("prompt_R", "rewards_R"))
    fit = TiltFit() if "word_states" in data.steers else TiltFit(gate_rate=0.0)
    fit = fit if "lengths" in data.steers else replace(fit, length_rate=0.0)
    tilts = {"bias": replace(zero, bias=fit_bias(completions, prompts_R, rewards_R, head_VD, seed))}
    if "words" in data.steers:
        words_alone = replace(fit, rank=0, bias_rate=0.0)
        tilts["words"] = fit_tilt(rows, head_VD, zero, words_alone, seed, stop_if_asked)
    else:
        rows = without_words(rows)
    if "states" in data.steers:
        tilts["states"] = fit_tilt(rows, head_VD, zero, fit, seed, stop_if_asked)
    return {kind: fold_tilts([tilt], [data.temperature]) for kind, tilt in tilts.items()}


def tilt_rows(data: TiltData, zero: Tilt, seed: int) -> TiltRows:
    """The positions of all graded rollouts, or of as many as ``MOST_POSITIONS``."""
    parts, shards = [], data.shards
    total = sum(len(tokens) for tokens in shards.completions())
    generator = torch.Generator().manual_seed(seed)
    for index in range(len(shards)):
        graded = shards.graded(index)
        states = data.states(index)
        _, group_R = graded.prompt_R.unique(return_inverse=True)
        advantages = within_groups(graded.rewards_R.float(), group_R)
        for row, (place, tokens) in enumerate(zip(graded.places, graded.tokens, strict=True)):
            if total > MOST_POSITIONS and float(torch.rand((), generator=generator)) > MOST_POSITIONS / total:
                continue
            prompt = data.prompts[int(graded.prompt_R[row])]
            parts.append(_rows_of(data, zero, prompt, tokens, states[place], float(advantages[row])))
    rows = TiltRows.concatenate(parts)
    return replace(rows, advantages_N=rows.advantages_N / (rows.advantages_N.std() + 1e-6))


def without_words(rows: TiltRows) -> TiltRows:
    """As if no candidate were a word of the prompt or the response: gates on words stay 0."""
    features_NKF = torch.zeros_like(rows.features_NKF)
    features_NKF[..., STOP] = rows.features_NKF[..., STOP]
    return replace(rows, features_NKF=features_NKF)


@torch.no_grad()
def _rows_of(
    data: TiltData,
    zero: Tilt,
    prompt: Prompt,
    tokens: list[int],
    states_TD: Tensor,
    advantage: float,
) -> TiltRows:
    logprobs_TV = data.policy_logprobs(prompt, tokens, states_TD)
    logprobs_TK, candidates_TK = logprobs_TV.topk(min(CANDIDATES, logprobs_TV.shape[1]))
    drawn_T = torch.tensor(tokens)
    missing = ~(candidates_TK == drawn_T[:, None]).any(1)
    candidates_TK[missing, -1] = drawn_T[missing]
    logprobs_TK[missing, -1] = logprobs_TV[missing, drawn_T[missing]]
    stop_ids = torch.tensor(zero.stop_ids, dtype=torch.int64)
    features = candidate_features(data.groups, prompt.token_ids, zero.ignored, stop_ids, tokens, candidates_TK)
    place_T = (candidates_TK == drawn_T[:, None]).int().argmax(1)
    return TiltRows(
        states_TD,
        candidates_TK,
        logprobs_TK,
        features,
        place_T,
        torch.full((len(tokens),), advantage),
        length_features(data.groups.lengths(tokens)[:-1]),
    )
