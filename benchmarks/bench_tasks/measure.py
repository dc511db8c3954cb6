"""What a method's answers are worth, and which differences between methods are more than chance."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.bench_tasks.adapted import Adapted
from benchmarks.bench_tasks.answers import Answer, DecodingMethod
from benchmarks.bench_tasks.methods import METHODS
from benchmarks.bench_tasks.piece import Piece
from benchmarks.quality_report import distinct, interval, interval_of_seeds
from iro_server import JsonObject

if TYPE_CHECKING:
    from benchmarks.bench_tasks.config import BenchTasksConfig
    from training.iro.data import Prompt

ResultRow = JsonObject
SAMPLED = ("best_of_n", "tempered")
COMPARED_WITH = (
    ("base", 1),
    *((name, rows) for name in SAMPLED for rows in (None, 16)),
    *((name, None) for name in ("static_bias", "static_bias_refitted")),
)
"""Methods, and their rows: None for as many as the method that is compared has."""
RIVALS = (("vas", 1), ("args", 1), *((name, 16) for name in ("blockwise", "smc", "dvts")))
"""Methods that ``OURS`` are compared with too."""
OURS = (("iro", 1), ("iro_samples", 16))
SIGN_FLIPS = 9999
STUDENT_SEEDS = 4
"""From so many on Student's interval over seeds counts too. Of fewer it reaches four standard errors and further."""


def measured(piece: Piece, method: str, rows: int, decoder: DecodingMethod | None = None) -> ResultRow:
    """A line of the results: means over held-out prompts, and ``rewards`` and ``judges`` of each prompt, means over its
    ``answers`` (``measured_rows``). ``texts``: of the first one. ``seconds``: of one for each prompt.

    ``decoder``: of another setting than the method's own.
    """
    decoder = decoder or METHODS[method].build(piece)
    count = num_answers(piece.config, rows)
    prompts = repeated(piece.held_out, count)
    with decoder.engine if isinstance(decoder, Adapted) else nullcontext():
        began = time.monotonic()
        answers = decoder.answers(prompts, rows, piece.seed)
        seconds = time.monotonic() - began
    texts = [piece.text(answer.tokens) for answer in answers]
    judges = [piece.task.judge(prompt.item, text) for prompt, text in zip(prompts, texts, strict=True)]
    rewards_P, judges_P = (np.reshape(each, (count, -1)).mean(0) for each in (piece.rewards(prompts, texts), judges))
    return {
        "task": piece.task.name,
        "method": method,
        "rows": rows,
        "seed": piece.seed,
        "answers": count,
        "reward": float(rewards_P.mean()),
        "judge": float(judges_P.mean()),
        **qualities(answers),
        "seconds": seconds / count,
        "rewards": rewards_P.tolist(),
        "judges": judges_P.tolist(),
        "texts": texts[: len(piece.held_out)],
    }


def num_answers(config: BenchTasksConfig, rows: int) -> int:
    """Of each prompt by a method of so many rows."""
    return max(1, config.measured_rows // rows)


def repeated(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The prompts, and then copies of them with numbers of their own, which their random numbers go by."""
    return [replace(prompt, index=prompt.index + copy * len(prompts)) for copy in range(count) for prompt in prompts]


def qualities(answers: Sequence[Answer]) -> JsonObject:
    """Base tokens, reward calls and KL a prompt; perplexity over all tokens; distinct-2 within an answer."""
    logprobs = [logprob for answer in answers for logprob in answer.logprobs]
    divergences = [answer.kl for answer in answers if answer.kl is not None]
    return {
        "perplexity": math.exp(-fmean(logprobs)),
        "distinct_2": fmean(distinct([answer.tokens], 2) for answer in answers),
        "kl": fmean(divergences) if len(divergences) == len(answers) else None,
        "length": fmean(len(answer.tokens) for answer in answers),
        "base_tokens": fmean(answer.base_tokens for answer in answers),
        "reward_calls": fmean(answer.reward_calls for answer in answers),
        "finished": fmean(answer.finished for answer in answers),
    }


def lines_by_seed(rows: Sequence[ResultRow], task: str, method: str, count: int) -> dict[int, ResultRow]:
    """A method's lines in the order of seeds; none where it was not run with so many rows."""
    lines = [row for row in rows if (row["task"], row["method"], row["rows"]) == (task, method, count)]
    return {row["seed"]: row for row in sorted(lines, key=lambda row: row["seed"])}


def matrix(lines: Iterable[ResultRow], name: str) -> np.ndarray:
    """[seeds, prompts] of ``rewards`` or ``judges``."""
    return np.array([row[name] for row in lines])


def interval_of_jobs(values_SP: np.ndarray) -> dict[str, float]:
    """Mean of [seeds, prompts] and its 95 % interval: a bootstrap over both, and from ``STUDENT_SEEDS`` on Student's
    over the seeds' means where that reaches further. Of fewer seeds it is too narrow where jobs differ."""
    return interval_of_seeds(values_SP) if len(values_SP) >= STUDENT_SEEDS else interval(values_SP)


def intervals(rows: Sequence[ResultRow]) -> list[JsonObject]:
    """Reward and judge of each task, method and number of rows, with their ``interval_of_jobs``."""
    settings = dict.fromkeys((row["task"], row["method"], row["rows"]) for row in rows)
    return [
        {"task": task, "method": method, "rows": count}
        | {
            name: interval_of_jobs(matrix(lines_by_seed(rows, task, method, count).values(), f"{name}s"))
            for name in ("reward", "judge")
        }
        for task, method, count in settings
    ]


def comparisons(rows: Sequence[ResultRow]) -> list[JsonObject]:
    """Paired differences from those of ``COMPARED_WITH``, and of ours from rivals, on the seeds that both have."""
    settings = dict.fromkeys((row["task"], row["method"], row["rows"]) for row in rows)
    results = []
    for task, method, count in settings:
        for other, fixed_count in (*COMPARED_WITH, *(RIVALS if (method, count) in OURS else ())):
            other_count = fixed_count or count
            is_repeated = fixed_count == count and other in SAMPLED
            if method == other or is_repeated or (task, other, other_count) not in settings:
                continue
            first, second = lines_by_seed(rows, task, method, count), lines_by_seed(rows, task, other, other_count)
            if seeds := [seed for seed in first if seed in second]:
                compared = {"task": task, "method": method, "rows": count, "over": other, "over_rows": other_count}
                pairs = [(first[seed], second[seed]) for seed in seeds]
                results.append(compared | {"seeds": len(seeds)} | paired(pairs))
    return results


def iteration_gains(rows: Sequence[ResultRow]) -> list[JsonObject]:
    """Of ``iterations``: each one's paired differences from the first, on the seeds that both have."""
    lines = {(row["task"], row["rows"], row["iteration"], row["seed"]): row for row in rows}
    settings = dict.fromkeys((task, count, iteration) for task, count, iteration, _ in lines if iteration > 1)
    results = []
    for task, count, iteration in settings:
        seeds = [seed for *setting, seed in lines if setting == [task, count, iteration]]
        pairs = [
            (lines[task, count, iteration, seed], lines[task, count, 1, seed])
            for seed in seeds
            if (task, count, 1, seed) in lines
        ]
        if pairs:
            gains = {"task": task, "rows": count, "iteration": iteration, "seeds": len(pairs)}
            results.append(gains | paired(pairs))
    return results


def paired(pairs: Sequence[tuple[ResultRow, ResultRow]]) -> JsonObject:
    """Differences of two methods' lines, a pair a seed, with their ``interval_of_jobs`` and p."""
    firsts, seconds = zip(*pairs, strict=True)
    reward, judge = (matrix(firsts, name) - matrix(seconds, name) for name in ("rewards", "judges"))
    return {"reward": interval_of_jobs(reward), "judge": interval_of_jobs(judge), "p": sign_flip_p(reward)}


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p of a paired permutation test: each prompt's difference changes its sign with probability 1/2.

    It speaks of the jobs that were run alone: prompts of one job change their signs independently, so that what jobs
    differ by counts as a difference of the methods. The intervals are over jobs too.
    """
    from scipy.stats import permutation_test

    if differences.size < 2 or not differences.any():
        return 1.0
    result = permutation_test(
        (differences.ravel(),), np.mean, permutation_type="samples", n_resamples=SIGN_FLIPS, rng=0, vectorized=True
    )
    return float(result.pvalue)
