"""How many steps a job takes, as far as it is known: its events say how far it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from training.iro.config import AlignConfig
from training.iro.data import Prompt, Split, shards_of
from training.iro.serving import STRENGTHS, searches
from training.iro.tilting import Round, num_trials, trial_shards
from training.iro.validation import BETA_GRID, tries_betas
from value_heads.tilt import TiltPart


def planned_steps(
    config: AlignConfig,
    prompts: Split,
    drawing: Collection[int],
    rounds: Mapping[int, Sequence[Round]],
    steers: frozenset[TiltPart],
    is_tilted: bool,
) -> int:
    """Steps of a run that is not stopped early, the choice of ``max_tokens`` aside. ``drawing``: iterations whose
    rollouts are plain draws. ``rounds``: of tilts, done so far, by iteration. ``is_tilted``: whether rollouts that
    follow are drawn with a tilt."""
    validation = num_shards(config, prompts.validation) * config.eval_samples
    check = num_shards(config, prompts.check) * config.eval_samples
    total = validation + 2 * check + 2  # the baseline, the final check of two models, and the scale of rewards
    for step, part in enumerate(prompts.slices, 1):
        shards, is_drawn = num_shards(config, part.train) + num_shards(config, part.heldout), step in drawing
        total += 2 * shards + 2
        if tries_betas(config, 1 if is_tilted else step):
            total += len(BETA_GRID) * num_shards(config, part.heldout) + 1
        ways = 1
        if is_drawn:
            planned = planned_rounds(rounds.get(step, []), config.tilt_rounds)
            total += sum(round_steps(config, steers, each, part.heldout, shards) for each in planned)
            tilted = is_tilted or planned[0].is_better
            ways = len(searches(config, tilted)) + len(STRENGTHS) * tilted
        total += (validation * ways + is_drawn) * validates(config, step) + is_drawn
    return total


def planned_rounds(done: Sequence[Round], most: int) -> list[Round]:
    """Those of an iteration, as if all that are to come found a tilt."""
    ended = bool(done) and not done[-1].is_better
    return [*done, *[Round()] * (0 if ended else most - len(done))]


def round_steps(
    config: AlignConfig, steers: frozenset[TiltPart], planned: Round, heldout: Sequence[Prompt], shards: int
) -> int:
    """Those that draw so many ``shards`` of the round's tilt among them."""
    trials = num_trials(steers) + planned.further_trials
    return trials * len(trial_shards(config, heldout)) + 3 + 2 * shards * planned.is_better


def num_shards(config: AlignConfig, prompts: Sequence[Prompt]) -> int:
    return len(shards_of(prompts, config.concurrency))


def validates(config: AlignConfig, step: int) -> bool:
    """Whether an iteration ends with a validation."""
    return step % config.eval_interval == 0 or step == config.iterations
