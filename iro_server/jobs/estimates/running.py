"""An estimate, from its prompts to its verdict; and, of a job's, the event that tells of it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from itertools import chain

from iro_server import JsonObject
from iro_server.alignment.definition import AlignmentOptions
from iro_server.engines.base import ModelInfo
from iro_server.graders.base import GraderError
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.parsing import parse_grader
from iro_server.jobs import records
from iro_server.jobs.background import Lease, WorkFailed
from iro_server.jobs.estimates import statistics
from iro_server.jobs.estimates.cost import NumCalls, Rates, Rows, job_cost, job_work, num_completions
from iro_server.jobs.estimates.rollouts import Completion, Roller, Rollouts
from iro_server.jobs.estimates.statistics import Repeats
from iro_server.jobs.estimates.verdict import first_reason, judge
from iro_server.settings import Settings
from iro_server.store.database import Sessions, find
from iro_server.store.tables import FINISHED, Estimate, Job, now
from iro_server.telemetry import request

JOB_SHARE = 0.04  # of the most completions of a job that the estimate beside it may take: a job may take fewer
LEAST_OF_JOB = 4  # prompts of that estimate in any case
SHOWN = 500  # characters of a sample completion and of what the grader said


def drawn_rows(lines: Iterable[bytes], count: int, seed: int) -> tuple[list[JsonObject], int]:
    """``count`` rows of a JSONL file at random, or all, and how many it has."""
    chosen: list[bytes] = []
    generator, total = random.Random(seed), 0
    for line in lines:
        if not line.strip():
            continue
        total += 1
        if len(chosen) < count:
            chosen.append(line)
        elif (place := generator.randrange(total)) < count:
            chosen[place] = line
    generator.shuffle(chosen)
    return [json.loads(line.decode("utf-8-sig")) for line in chosen], total


def num_rows(lines: Iterable[bytes]) -> int:
    return sum(1 for line in lines if line.strip())


def affordable_prompts(options: AlignmentOptions, rows: Rows, rollouts: int) -> int:
    """How many prompts cost at most ``JOB_SHARE`` of the completions of the job itself, but some in any case."""
    return max(LEAST_OF_JOB, int(JOB_SHARE * num_completions(chain(*job_work(options, rows))) / rollouts))


def options_of(config: JsonObject) -> AlignmentOptions:
    """The alignment options in a job's config."""
    fields = AlignmentOptions.model_fields.keys() & config.keys()
    return AlignmentOptions.model_validate({name: config[name] for name in fields})


class EstimateExecutor:
    """``info``: of the frozen model."""

    def __init__(
        self, settings: Settings, sessions: Sessions, grader_environment: GraderEnvironment, info: ModelInfo
    ) -> None:
        self.settings, self.sessions, self.width = settings, sessions, info.hidden_size
        self.holds_schemas = info.adjusts and info.resumes  # what a job's searches need for a response format
        self.grader_environment = grader_environment

    def execute(self, estimate: Estimate, lease: Lease) -> None:
        """Raises WorkFailed, LeaseLost, Stopping."""
        if self._job_is_over(estimate):
            lease.end("canceled")
            return
        request.set_current(request.Current(estimate.id, charged_key=estimate.key_id))
        options = options_of(estimate.config)
        rollouts, num_calls = self._roll_out(estimate, options, lease)
        if not rollouts.by_prompt:
            message = f"no completion could be sampled: {first_reason(rollouts.errors)}"
            raise WorkFailed(message, "sampling_failed")
        rows = Rows(estimate.rows, estimate.config.get("validation_rows"))
        result = report(rollouts, options, rows, self.width, num_calls)
        with self.sessions.begin() as session:
            lease.write(session, status="completed", finished_at=now(), result=result, lease_until=None)
            if estimate.job_id is not None:
                level = "info" if result["verdict"] == "go" else "warn"
                records.add_event(session, estimate.job_id, f"Estimate: {result['message']}", level, data=result)

    def _job_is_over(self, estimate: Estimate) -> bool:
        with self.sessions() as session:
            job = find(session, Job, estimate.job_id) if estimate.job_id else None
        return job is not None and job.status in FINISHED

    def _roll_out(self, estimate: Estimate, options: AlignmentOptions, lease: Lease) -> tuple[Rollouts, NumCalls]:
        """And the number of calls that the grader takes for so many completions of a prompt."""
        environment = self.grader_environment.of_job(estimate.project)
        response_format = estimate.config.get("response_format")
        try:
            grader = parse_grader(estimate.config["grader"], environment)
        except GraderError as error:
            raise WorkFailed(str(error), "invalid_grader") from error
        seed, completions = estimate.config["seed"], self.settings.estimate_rollouts
        limits = completions, self.settings.estimate_seconds
        formats = response_format, self.holds_schemas
        with grader, Roller(estimate.model, options, grader, environment, *formats, seed, *limits) as roller:
            lease.on_stop(roller.close)
            lease.on_stop(grader.close)
            rollouts = roller.roll_out(estimate.prompts, lease)
        lease.check()
        return rollouts, grader.num_calls


def report(rollouts: Rollouts, options: AlignmentOptions, rows: Rows, width: int, num_calls: NumCalls) -> JsonObject:
    """What the rollouts say of a job with ``options`` over so many rows."""
    rewards = rollouts.rewards
    values = statistics.gradable(rewards)
    within, repeats = statistics.within_prompt_variance(rewards), Repeats.of(rollouts.repeats)
    graded = [completion for of_prompt in rollouts.by_prompt for completion in of_prompt]
    searched = options.beam_width * options.num_successors
    expected = statistics.gain(rewards, searched) if values else None
    errors = [completion.grade.error for completion in graded if completion.grade.error]
    verdict = judge(rewards, repeats, expected, errors[0] if errors else None, rows.training, rollouts.errors)
    rates = _rates(rollouts)
    means = [sum(of_prompt) / len(of_prompt) for of_prompt in values]
    return {
        "verdict": verdict.word,
        "message": verdict.sentence,
        "prompts": len(rewards),
        "completions": len(graded),
        "unsampled": {"prompts": len(rollouts.errors), "error": rollouts.errors[0] if rollouts.errors else None},
        "reward": {
            "mean": sum(means) / len(means) if means else None,
            "within_prompt_variance": within,
            "best_of": {str(n): mean for n, mean in statistics.best_of_curve(rewards).items()},
        },
        "ungradable_share": statistics.ungradable_share(rewards),
        "all_equal_share": statistics.equal_share(rewards),
        "grader": {
            "seconds_per_call": rates.grader_seconds,
            "graded_twice": repeats.pairs,
            "disagreement": repeats.disagreement,
            "reliability": repeats.reliability(within),
        },
        "expected_gain": expected and {"mean": expected.mean, "low": expected.low, "high": expected.high},
        "cost": job_cost(options, rows, rates, width, num_calls),
        "estimate_cost": {
            "base_tokens": rollouts.tokens,
            "grader_calls": rollouts.graded,
            "seconds": round(rollouts.sampling_seconds + rollouts.grading_seconds, 2),
        },
        "samples": [_shown(completion) for completion in _chosen(graded)],
    }


def _rates(rollouts: Rollouts) -> Rates:
    return Rates(
        tokens=rollouts.tokens / max(1, rollouts.sampled),
        tokens_per_second=rollouts.tokens / max(1e-6, rollouts.sampling_seconds) or 1.0,
        grader_seconds=rollouts.grading_seconds / max(1, rollouts.graded),
    )


def _chosen(graded: list[Completion]) -> list[Completion]:
    """Up to three: the one of the lowest reward, one in the middle, and the highest; those without any count as low."""

    def order(completion: Completion) -> tuple[bool, float]:
        reward = completion.grade.reward
        return (reward == reward, reward if reward == reward else 0.0)

    ranked = sorted(graded, key=order)
    places = dict.fromkeys((0, len(ranked) // 2, len(ranked) - 1))
    return [ranked[place] for place in places]


def _shown(completion: Completion) -> JsonObject:
    grade = completion.grade
    reward = None if grade.reward != grade.reward else grade.reward
    said = None if grade.error is None else grade.error[:SHOWN]
    return {"prompt": completion.prompt, "text": completion.text[:SHOWN], "reward": reward, "error": said}
