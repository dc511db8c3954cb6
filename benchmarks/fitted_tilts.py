"""The tilts that ``benchmarks.tilt_fits`` compares, fitted to the plain rollouts of a finished piece's job.

Axes in tensor names: N positions of all rollouts, M rollouts, K candidates, V vocabulary, D width, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from benchmarks.bench_tasks.piece import Piece
    from iro_server.decoding.base import Final
    from training.iro.fit import Graded
    from training.iro.tilt_rows import TiltData
    from value_heads.tilt import Tilt
    from value_heads.tilt_fit import TiltRows

OWN, BIAS, RETURN, INCREMENTS = "expected advantage", "ridge bias", "return", "increments"
WEIGHTED, WORDS = "weighted likelihood", "expected advantage, words alone"
DISTILLED = "increments of a LoRA value function"
KL_WEIGHT = 0.1
AT_ONCE = 64  # rollouts that a LoRA value function reads
SPREAD_ROLLOUTS = 32  # at whose positions the variance of a tilt is measured


@dataclass(frozen=True)
class StoredRollouts:
    """A job's shards, as ``Shards`` reads them, with the output head's states by shard."""

    checkpoints: Any
    states: dict[str, list[Tensor]]

    def load(self, name: str) -> Any:
        return self.checkpoints.load(name)

    def table(self, name: str, part: str) -> Any:
        from training.iro.prefixes import state_table
        from training.iro.rollouts import HEAD_STATES

        return state_table(self.states[name]) if part == HEAD_STATES else self.checkpoints.table(name, part)

    def stop_if_asked(self) -> None:
        """Nobody asks."""


class FittedPiece:
    """The plain rollouts of a piece's job, and the tilts that are fitted to them. ``folder``: where states are kept."""

    def __init__(self, piece: Piece, folder: Path) -> None:
        from training.checkpoints import open_checkpoints

        self.piece, self.folder, self.seed = piece, folder, piece.seed
        self.checkpoints = open_checkpoints(str(piece.folder / "align" / "checkpoints"))
        count = sum(name.startswith("1-train-") and name.endswith("-rewards") for name in self.checkpoints.names())
        self.names = [(f"1-train-{number}-rollouts", f"1-train-{number}-rewards") for number in range(count)]
        self.prompts = {prompt.index: prompt for prompt in piece.prompts("train", piece.config.train_prompts)}
        self.layer = round(piece.engine.info.num_layers * 2 / 3)  # what value heads read by default

    @cached_property
    def states(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Of each shard's completions: the output head's states, and those of ``layer``."""
        from training.iro.head_states import states_along
        from training.iro.rollouts import completions_of

        engine, path = self.piece.engine, self.folder / f"{self.piece.task.name}-{self.seed}-states.pt"
        if not path.exists():
            states = {}
            for name, _ in self.names:
                numbers, groups = self.checkpoints.load(name)["prompts"], completions_of(self.checkpoints, name)
                states[name] = [
                    pair
                    for number, group in zip(numbers, groups, strict=True)
                    for pair in states_along(engine.frozen, self.prompts[number].token_ids, group, self.layer)
                ]
            torch.save(states, path)
        loaded: dict[str, list[tuple[Tensor, Tensor]]] = torch.load(path)
        return loaded

    @cached_property
    def data(self) -> TiltData:
        from iro_server.engines.describe import Description
        from training.iro.fit import Scale, Shards
        from training.iro.tilt_rows import TiltData

        engine, scale = self.piece.engine, self.checkpoints.load("scale")
        source = StoredRollouts(
            self.checkpoints, {name: [head for head, _ in group] for name, group in self.states.items()}
        )
        shards = Shards(source, self.names, Scale(**scale))
        model = Description.of_engine(engine)
        return TiltData(self.prompts, shards, model, lambda: engine.frozen, engine.info.steers)

    @cached_property
    def zero(self) -> Tilt:
        return replace(self.piece.no_tilt, ignored=self.data.ignored)

    @cached_property
    def rows(self) -> TiltRows:
        from training.iro.tilt_rows import tilt_rows

        return tilt_rows(self.data, self.zero, self.seed)

    @cached_property
    def graded(self) -> list[Graded]:
        return [self.data.shards.graded(number) for number in range(len(self.names))]

    @cached_property
    def prompt_M(self) -> Tensor:
        """The prompt of each rollout."""
        return torch.cat([graded.prompt_R for graded in self.graded])

    @cached_property
    def rollout_N(self) -> Tensor:
        """The rollout of each position."""
        lengths_M = torch.cat([graded.lengths_R for graded in self.graded])
        return torch.arange(len(lengths_M)).repeat_interleave(lengths_M)

    @cached_property
    def head_VD(self) -> Tensor:
        return self.piece.engine.frozen.head_weight.float().cpu()

    @cached_property
    def group_M(self) -> Tensor:
        """The prompt of each rollout, numbered from 0."""
        return self.prompt_M.unique(return_inverse=True)[1]

    def increments(self, values: list[Tensor]) -> Tensor:
        """[N]: V after each token less V before it; before the first, the mean after it of the prompt's rollouts."""
        from value_heads.bias_fit import within_groups

        first_M = within_groups(torch.stack([values_T[0] for values_T in values]), self.group_M)
        parts = zip(first_M, values, strict=True)
        return torch.cat([torch.cat([first[None], values_T.diff()]) for first, values_T in parts])

    @cached_property
    def values(self) -> list[Tensor]:
        """Of each rollout, V after each of its tokens: the head that a job fits by default, on these rollouts alone."""
        from benchmarks.value_features import fitted
        from iro_server.decoding.base import Final
        from training.iro.config import default_feature_spec
        from training.iro.rollouts import commonest_tokens
        from training.iro.simple_loop import Rollout
        from value_heads import features
        from value_heads.features import TOKENS
        from value_heads.text_counts import packed_counts

        engine, rollouts = self.piece.engine, list[Rollout]()
        for (name, _), graded in zip(self.names, self.graded, strict=True):
            for row, (place, tokens) in enumerate(zip(graded.places, graded.tokens, strict=True)):
                final = Final(tokens, [], 0.0, "length", hidden={self.layer: self.states[name][place][1]})
                rollouts.append(Rollout(int(graded.prompt_R[row]), final, float(graded.rewards_R[row])))
        spec = default_feature_spec(engine.info, self.piece.max_tokens, packed_counts(engine.tokenizer))
        counted = commonest_tokens([rollout.final.tokens for rollout in rollouts], self.piece.config.counted_tokens)
        head = fitted(spec.model_copy(update={"counted": counted}), rollouts, type(self.data.shards.scale)())

        def values_of(final: Final) -> Tensor:
            hidden = {self.layer: final.hidden[self.layer][None], TOKENS: torch.tensor([final.tokens])}
            return head(features(head.spec, hidden))[0].detach()

        return [values_of(rollout.final) for rollout in rollouts]

    @cached_property
    def lora_values(self) -> list[Tensor]:
        """Of each rollout, V after each of its tokens: a LoRA value function that a job fits where it is told to, on
        these rollouts; a quarter of the prompts chooses its epoch."""
        from iro_server.engines.prepare import prepare_model
        from value_heads import LoraBackbone, fit_lora
        from value_heads.backbone_fit import Example
        from value_heads.bias_fit import FOLDS

        columns = [(graded.prompt_R.tolist(), graded.tokens, graded.rewards_R.tolist()) for graded in self.graded]
        rollouts = [rollout for part in columns for rollout in zip(*part, strict=True)]
        examples = [
            Example(self.prompts[prompt].token_ids, tokens, reward, group)
            for (prompt, tokens, reward), group in zip(rollouts, self.group_M.tolist(), strict=True)
        ]
        held = [example for example in examples if example.group % FOLDS == 0]
        taught = [example for example in examples if example.group % FOLDS]
        backbone = LoraBackbone(prepare_model(), ceil(self.piece.engine.info.num_layers / 3))
        fit_lora(backbone, taught, held, seed=self.seed)
        values = list[Tensor]()
        with torch.no_grad():
            for start in range(0, len(examples), AT_ONCE):
                part = examples[start : start + AT_ONCE]
                completions = [example.completion_ids for example in part]
                values_RT = backbone.response_values(0, [example.prompt_ids for example in part], completions)
                values += [values_T[: len(row)] for values_T, row in zip(values_RT, completions, strict=True)]
        return values

    def fitted(self, name: str, rank: int) -> Tilt:
        from benchmarks.bench_tasks.piece import first_bias
        from benchmarks.tilt_regressions import increment_tilt, return_tilt
        from value_heads.tilt_fit import TiltFit, fit_tilt

        if name == BIAS:
            return replace(self.zero, bias=first_bias(self.piece.folder / "align"))
        if name == RETURN:
            return return_tilt(self.rows, self.rollout_N, self.prompt_M, self.head_VD, self.zero, rank)
        if name in (INCREMENTS, DISTILLED):
            increments_N = self.increments(self.values if name == INCREMENTS else self.lora_values)
            groups_N = self.group_M[self.rollout_N]
            return increment_tilt(self.rows, increments_N, groups_N, self.head_VD, self.zero, rank)
        if name == WORDS:
            fit = TiltFit(rank=0, bias_rate=0.0)
            return fit_tilt(self.rows, self.head_VD, self.zero, fit, self.seed)
        if name == OWN:
            return fit_tilt(self.rows, self.head_VD, self.zero, TiltFit(rank=rank), self.seed)
        firsts_M = torch.searchsorted(self.rollout_N, torch.arange(len(self.group_M)))
        weights_M = reward_weights(self.rows.advantages_N[firsts_M], self.group_M)
        rows = replace(self.rows, advantages_N=weights_M[self.rollout_N])
        fit = TiltFit(rank=rank, beta=KL_WEIGHT)
        return fit_tilt(rows, self.head_VD, self.zero, fit, self.seed, loss_of=weighted_likelihood)

    @torch.no_grad()
    def spread(self, tilt: Tilt) -> float:
        """The root of the mean variance of A under the frozen model, in nats."""
        from benchmarks.tilt_regressions import drawn_tokens
        from value_heads.tilt import BoundTilt

        frozen, places = self.data.frozen, range(0, len(self.prompt_M), len(self.prompt_M) // SPREAD_ROLLOUTS)
        bound, variances = BoundTilt(tilt, frozen.head_weight, self.data.groups), []
        for place in places:
            part, prompt = self.rows.at(torch.nonzero(self.rollout_N == place)[:, 0]), self.prompt_M[place]
            logits_TV = frozen.logits(part.states_ND)
            tokens, prompt_ids = drawn_tokens(part).tolist(), self.prompts[int(prompt)].token_ids
            additions_TV = bound.along(prompt_ids, tokens, part.states_ND, logits_TV)
            probs_TV = logits_TV.softmax(-1)
            mean_T1 = (probs_TV * additions_TV).sum(1, keepdim=True)
            variances.append((probs_TV * (additions_TV - mean_T1).square()).sum(1))
        return float(torch.cat(variances).mean().sqrt())


def reward_weights(advantages_M: Tensor, group_M: Tensor) -> Tensor:
    """exp(advantage), divided by its mean among the rollouts of a prompt."""
    weights_M = advantages_M.exp()
    sums = torch.zeros(int(group_M.max()) + 1).index_add_(0, group_M, weights_M)
    return weights_M / (sums / torch.bincount(group_M))[group_M]


def weighted_likelihood(additions_NK: Tensor, rows: TiltRows, beta: float) -> Tensor:
    """beta KL(q || pi) - w log q/pi of the drawn token, a mean over positions; w lies in ``rows.advantages_N``."""
    from value_heads.tilt_fit import log_ratio_and_kl

    log_ratio_N, kl_N = log_ratio_and_kl(additions_NK, rows)
    return beta * kl_N.mean() - (rows.advantages_N * log_ratio_N).mean()
