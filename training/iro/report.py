"""An iteration's metrics, in the names that OpenAI's reinforcement fine-tuning gives them, and which bundles stay."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from iro_server.graders.base import Flag, Grader
from iro_server.graders.multi import MultiGrader
from training.iro.diagnostics import mean_and_error, mean_and_half_width, ranking_mean
from training.iro.grading import PARSE_ERROR, Tally, merge
from training.iro.validation import Validated
from training.json_values import JsonObject
from training.run import Run

KEPT_CHECKPOINTS = 3  # checkpoints
NOTHING = Validated([], {}, {}, [])
NO_TOKENS: dict[str, float] = dict.fromkeys(("prompt_tokens", "completion_tokens", "base_tokens", "value_tokens"), 0)
NO_REASONING = {"train_reasoning_tokens_mean": 0.0, "valid_reasoning_tokens_mean": 0.0}  # clients of RFT read them


def metrics_row(
    grader: Grader, train_rewards: Sequence[float], train: Tally, beta: Tally, choosing: Tally, valid: Validated | None
) -> JsonObject:
    """Rewards, errors and tokens of an iteration: ``train`` of its rollouts, ``beta`` of the searches that chose β,
    ``choosing`` of those that chose a tilt and a way to serve it.

    What validation would tell is NaN where there was none. Its scores are those of the completions the values picked.
    """
    valid = valid or NOTHING
    row: JsonObject = {"train_mean_reward": mean_and_error(train_rewards)[0]}
    row["train_mean_parse_error"] = _share(train, "errors", PARSE_ERROR)
    picked = [v["value_pick"] for v in valid.rows]
    row["full_valid_mean_reward"], row["full_valid_error"] = mean_and_error(picked)
    row["full_valid_half_width"] = mean_and_half_width(picked)[1]
    row["full_valid_mean_parse_error"] = _share(valid.picks, "errors", PARSE_ERROR)
    best = [v["grader_pick"] for v in valid.rows]
    row["valid_grader_pick"], row["valid_grader_pick_half_width"] = mean_and_half_width(best)
    row["valid_mean_of_finals"] = mean_and_error([v["mean"] for v in valid.rows])[0]
    row["mean_unresponsive_rewards"] = _share(train, "samples", "unrewarded")
    row["completion_tokens_mean"] = train["usage"]["completion_tokens"] / train["samples"]["all"]
    row["reasoning_tokens_mean"] = 0.0
    row["scores"] = {
        "train_reward_mean": row["train_mean_reward"],
        "valid_reward_mean": row["full_valid_mean_reward"],
        "graders": _scores(grader, train, valid.picks),
    }
    row["errors"] = {"graders": [_errors(grader, train, valid.finals)]}
    row["usage"] = usage(merge([train, beta]), choosing, valid.finals)
    return row


def usage(train: Tally, choosing: Tally, valid: Tally) -> JsonObject:
    """Tokens of all searches, of those of ``choosing`` alone, and of the models that graders called."""
    return merge([train, choosing, valid])["usage"] | {
        "choosing": NO_TOKENS | choosing.get("usage", {}),
        "samples": NO_REASONING,
        "graders": _grader_usage({"train_": train, "choosing_": choosing, "valid_": valid}),
    }


def spent(run: Run, graded: Tally) -> JsonObject:
    """``usage`` and ``timing`` of a whole job. ``graded``: all that it graded."""
    total = merge([length_tally(run), graded])
    seconds = run.seconds(run.checkpoints.names())
    return {
        "usage": total["usage"] | {"graders": _grader_usage({"": total})},
        "timing": {"full_job": seconds},
    }


def length_tally(run: Run) -> Tally:
    """Of the samples that ``max_tokens`` "auto" is measured with."""
    if not run.has("lengths"):
        return {}
    tokens = sum(run.load("lengths")["lengths"])
    return {"usage": {"completion_tokens": tokens, "base_tokens": tokens}}


def _scores(grader: Grader, train: Tally, valid: Tally) -> list[JsonObject]:
    parts = grader.graders if isinstance(grader, MultiGrader) else {grader.name: grader}
    return [
        {
            "name": name,
            "type": part.type,
            "train_reward_mean": _mean(train, name),
            "valid_reward_mean": _mean(valid, name),
        }
        for name, part in parts.items()
    ]


def _errors(grader: Grader, train: Tally, valid: Tally) -> JsonObject:
    errors: JsonObject = {"name": grader.name, "type": grader.type}
    for flag in get_args(Flag):
        for data, tally in (("train", train), ("valid", valid)):
            errors[f"{data}_{flag}_count"] = tally.get("errors", {}).get(flag, 0)
            errors[f"{data}_{flag}_mean"] = _share(tally, "errors", flag)
    return errors


def _grader_usage(tallies: Mapping[str, Tally]) -> list[JsonObject]:
    """Tokens by model and, where the operator gave a price, what they cost. ``tallies``: by prefix of their fields."""
    rows = []
    for model in sorted({model for tally in tallies.values() for model in tally.get("grader_tokens", {})}):
        row: JsonObject = {"model": model}
        for prefix, tally in tallies.items():
            row[f"{prefix}tokens_count"] = tally.get("grader_tokens", {}).get(model, 0)
        if any(model in tally.get("grader_costs", {}) for tally in tallies.values()):
            row |= {f"{prefix}cost": tally.get("grader_costs", {}).get(model, 0.0) for prefix, tally in tallies.items()}
        rows.append(row)
    return rows


def timing(
    run: Run, sampling: Sequence[str], training: Sequence[str], choosing: Sequence[str], valid: Validated | None
) -> JsonObject:
    """Seconds that the iteration's steps took, whichever process took them."""
    names = {"sampling": sampling, "training": training, "choosing": choosing}
    step = {part: run.seconds(steps) for part, steps in names.items()}
    step["eval"] = run.seconds(valid.steps) if valid else 0.0
    return {"step": step | {"full_iteration": sum(step.values())}}


def message(row: JsonObject) -> str:
    text = f"Step {row['step']}/{row['total_steps']}, train mean reward={row['train_mean_reward']:.3f}"
    if math.isnan(row["full_valid_mean_reward"]):
        return text
    return f"{text}, full validation mean reward={row['full_valid_mean_reward']:.3f}"


def best(history: Sequence[JsonObject], count: int) -> list[JsonObject]:
    """The validated iterations of the highest held-out reward, best first; of equals, the earlier."""
    return sorted((row for row in history if row["path"]), key=_held_out, reverse=True)[:count]


def drop_checkpoints(run: Run, history: Sequence[JsonObject]) -> None:
    """Remove the bundles of all but the best. Told before it is done: a killed run tells it again."""
    best_steps = {row["step"] for row in best(history, KEPT_CHECKPOINTS)}
    for row in history:
        if row["path"] and row["step"] not in best_steps and Path(row["path"]).exists():
            run.emit("checkpoint_dropped", data={"step": row["step"]})
            shutil.rmtree(row["path"])


def _share(tally: Tally, part: str, name: str) -> float:
    """Of all samples; NaN without any."""
    return tally[part].get(name, 0) / tally["samples"]["all"] if tally else math.nan


def _mean(tally: Tally, grader: str) -> float:
    scored = tally.get("scored", {}).get(grader)
    return tally["score_sums"][grader] / scored if scored else math.nan


def rises(history: Sequence[JsonObject]) -> bool:
    """Whether the last iteration's held-out reward is above that of every validated iteration before."""
    *before, last = (_held_out(row) for row in history if row["path"])
    return not before or last > max(before)


def _held_out(row: JsonObject) -> float:
    return ranking_mean([row["full_valid_mean_reward"]])
