"""IRO (arXiv:2506.17828) in one file: sample, grade, fit, search. ``python -m training.iro.simple_loop`` runs it.

``loop.py`` does the same with checkpoints, a choice of β (here 1), an early stop, a final check, LoRA and Ray.
Axes in tensor names: R rollouts, L tokens, D hidden width, F features.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from iro_server.decoding.base import Final, SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.engines.describe import Description
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from iro_server.graders.base import Grader, Sample
from iro_server.graders.parsing import parse_grader
from training.iro.config import AlignConfig, default_feature_spec
from training.iro.data import Prompt, split
from training.iro.fit import Scale
from training.iro.prefixes import STRIDE
from training.iro.ridge import fit_values
from training.iro.rollouts import commonest_tokens, exploring, plain
from training.iro.seeds import ROLLOUTS, SPLIT, VALIDATION
from training.run import derive_seed, rng_of
from value_heads import FeatureSpec, Rows, ValueStack, features, response_rows
from value_heads.features import TOKENS
from value_heads.heads import Head
from value_heads.text_counts import packed_counts


class Rollout(NamedTuple):
    """A completion (``final.tokens``, and ``final.hidden[layer]``: [L, D]) of the prompt of a row, with its reward."""

    row: int
    final: Final
    reward: float


class SimpleLoop:
    def __init__(self, config: AlignConfig, engine: EmbeddedEngine, grader: Grader) -> None:
        self.config, self.engine, self.grader = config, engine, grader
        text_counts = packed_counts(engine.tokenizer)
        # What V reads of states and text.
        self.spec = config.feature_spec or default_feature_spec(engine.info, config.horizon, text_counts)

    def run(self) -> list[float]:
        """The mean reward on validation prompts of the frozen model, then of the policy after each iteration."""
        prompts = split(self.config, Description.of_engine(self.engine), rng_of(self.config.seed, SPLIT))
        rewards = [self.mean_reward(prompts.validation, plain(self.config), None)]
        scale: Scale | None = None
        stack: ValueStack | None = None
        heads: list[Head] = []
        for iteration, part in enumerate(prompts.slices, 1):
            train = self.explore(iteration, part.train, stack)
            heldout = self.explore(iteration, part.heldout, stack)
            if scale is None:  # values of all iterations have the unit of the frozen model's rewards
                first_rewards = [rollout.reward for rollout in [*train, *heldout]]
                scale = Scale(fmean(first_rewards), pstdev(first_rewards))
            heads.append(fit_head(self.spec, self.config.counted_tokens, train, heldout, scale))
            stack = ValueStack(heads, betas=[1.0] * len(heads))  # π ∝ π_frozen · exp(Σ_t V_t / β_t)
            rewards.append(self.mean_reward(prompts.validation, self.config.search, stack))
        return rewards

    def explore(self, iteration: int, prompts: Sequence[Prompt], stack: ValueStack | None) -> list[Rollout]:
        """Plain samples of the frozen model at first; then all finals of several independent searches of a prompt."""
        params, searches = exploring(self.config) if stack else (plain(self.config), 1)
        jobs = [(prompt, number) for prompt in prompts for number in range(searches)]
        seeds = [derive_seed(self.config.seed, ROLLOUTS, iteration, prompt.index, number) for prompt, number in jobs]
        groups = self.sample_and_grade([prompt for prompt, _ in jobs], seeds, params, stack)
        return [rollout for group in groups for rollout in group]

    def sample_and_grade(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], params: SearchParams, stack: ValueStack | None
    ) -> list[list[Rollout]]:
        """The finals of a search of each prompt, the highest value first. All searches share the engine's batches."""

        async def search(prompt: Prompt, seed: int) -> list[Final]:
            sampling = Sampling(self.config.temperature, seed=seed, stop_ids=self.engine.info.eos_ids)
            max_tokens, layers = self.config.horizon, self.spec.layers
            result = await guided_search(
                self.engine, prompt.token_ids, params, sampling, max_tokens, stack, keep_hidden=layers
            )
            return result.finals

        async def search_all() -> list[list[Final]]:
            return await asyncio.gather(*map(search, prompts, seeds))

        with self.engine.lockstep(len(prompts)):  # in lockstep, so that the result is the same each time
            finals = asyncio.run(search_all())
        return [self.graded(prompt, group) for prompt, group in zip(prompts, finals, strict=True)]

    def graded(self, prompt: Prompt, finals: Sequence[Final]) -> list[Rollout]:
        """All of a prompt at once: a grader that ranks compares them."""
        texts = [str(self.engine.tokenizer.decode(final.tokens, skip_special_tokens=True)) for final in finals]
        grades = self.grader.grade_many([(Sample(text), prompt.item) for text in texts])
        return [Rollout(prompt.index, final, grade.reward) for final, grade in zip(finals, grades, strict=True)]

    def mean_reward(self, prompts: Sequence[Prompt], params: SearchParams, stack: ValueStack | None) -> float:
        """Of the final with the highest value of each prompt; without values, of all samples."""
        seeds = [derive_seed(self.config.seed, VALIDATION, prompt.index) for prompt in prompts]
        groups = self.sample_and_grade(prompts, seeds, params, stack)
        return fmean(rollout.reward for group in groups for rollout in (group[:1] if stack else group))


def fit_head(
    spec: FeatureSpec, counted_tokens: int, train: Sequence[Rollout], heldout: Sequence[Rollout], scale: Scale
) -> Head:
    """V(prefix of a response), by ridge regression on the standardised reward of the whole response."""
    counted = commonest_tokens([r.final.tokens for r in [*train, *heldout]], counted_tokens)
    spec = spec.model_copy(update={"counted": counted})
    return fit_values(spec, [rows_of(spec, train, scale)], [rows_of(spec, heldout, scale)]).head


def rows_of(spec: FeatureSpec, rollouts: Sequence[Rollout], scale: Scale) -> Rows:
    """Features and rewards of every ``STRIDE``-th prefix and of whole responses; each prompt has the weight 1."""
    finals = [rollout.final for rollout in rollouts]
    hidden = {layer: pad_sequence([final.hidden[layer] for final in finals], True) for layer in spec.layers}
    hidden[TOKENS] = pad_sequence([torch.tensor(final.tokens) for final in finals], True)
    prompt_R = torch.tensor([rollout.row for rollout in rollouts])
    return response_rows(
        features(spec, hidden),
        targets=scale.standard([rollout.reward for rollout in rollouts]),
        lengths_R=torch.tensor([len(final.tokens) for final in finals]),
        prompt_ids_R=prompt_R,
        weights_R=1 / torch.bincount(prompt_R)[prompt_R],
        stride=STRIDE,
    )


def run_simple_loop(config: AlignConfig) -> list[float]:
    with EmbeddedEngine(config.model_dir or prepare_model()) as engine, parse_grader(config.grader) as grader:
        return SimpleLoop(config, engine, grader).run()


if __name__ == "__main__":
    from training.iro.job import JOB

    frozen, *aligned = run_simple_loop(AlignConfig(**JOB.presets["smoke"]))
    print(f"frozen model: mean reward {frozen:.3f}")
    for iteration, reward in enumerate(aligned, 1):
        print(f"iteration {iteration}: mean reward {reward:.3f}")
