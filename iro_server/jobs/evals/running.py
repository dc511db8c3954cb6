"""A run, from its first pending item to its last: sampled, graded and stored in batches, each in one transaction.

A run that is broken off goes on with the first batch that is not stored, and comes to the same results: items keep
their order, batches their bounds, and each item its seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

from sqlalchemy import select

from iro_server import JsonObject
from iro_server.graders.base import GraderError, Sample
from iro_server.graders.environment import GraderEnvironment
from iro_server.jobs.background import Lease, WorkFailed, check_key
from iro_server.jobs.evals.criteria import Criteria, Result
from iro_server.jobs.evals.sampling import Sampler, shown_sample
from iro_server.jobs.evals.source import stored_sample
from iro_server.store.database import Sessions, find
from iro_server.store.tables import Eval, EvalItem, EvalRun
from iro_server.telemetry import request

BATCH = 16  # items, as many as are asked at once
Sampled = tuple[Sample | None, JsonObject]


def new_counts() -> JsonObject:
    return {"total": 0, "passed": 0, "failed": 0, "errored": 0}


def new_criteria(names: Sequence[str]) -> list[JsonObject]:
    return [{"testing_criteria": name, "passed": 0, "failed": 0, "errored": 0, "score_sum": 0.0} for name in names]


class RunExecutor:
    def __init__(self, sessions: Sessions, grader_environment: GraderEnvironment) -> None:
        self.sessions, self.grader_environment = sessions, grader_environment

    def execute(self, run: EvalRun, lease: Lease) -> None:
        """Grade what the run has not graded yet, and complete it. Raises WorkFailed, LeaseLost, Stopping."""
        environment = self.grader_environment.of_job(run.project)
        request.set_current(request.Current(run.id, charged_key=run.key_id))
        with self.sessions() as session:
            evaluation = find(session, Eval, run.eval_id)
        assert evaluation is not None  # a run goes with its eval
        try:
            criteria = Criteria(evaluation.testing_criteria, environment)
        except GraderError as error:
            raise WorkFailed(str(error), "invalid_grader") from error
        with criteria:
            criteria.wait_for_limits()
            lease.on_stop(criteria.close)
            sampler = None if run.model is None else Sampler(run, environment, lease.request_timeout)
            if sampler is not None:
                lease.on_stop(sampler.close)
            try:
                while items := self._pending(run):
                    check_key(self.sessions, run.key_id)
                    self._do_batch(run, lease, criteria, sampler, items)
                    _check_judges(run, environment.max_judge_tokens)
            finally:
                if sampler is not None:
                    sampler.close()
        lease.check()
        lease.end("completed")

    def _pending(self, run: EvalRun) -> list[EvalItem]:
        pending = select(EvalItem).where(EvalItem.run_id == run.id, EvalItem.status == "pending")
        with self.sessions() as session:
            return list(session.scalars(pending.order_by(EvalItem.position).limit(BATCH)))

    def _do_batch(
        self, run: EvalRun, lease: Lease, criteria: Criteria, sampler: Sampler | None, items: list[EvalItem]
    ) -> None:
        sampled = [_brought(item) for item in items] if sampler is None else sampler.sample(items)
        lease.check()
        pairs = [(sample, item.item) for item, (sample, _) in zip(items, sampled, strict=True) if sample is not None]
        results = iter(criteria.grade(pairs))
        lease.check()  # what a grader said that was closed on the way is no result
        for item, (sample, shown) in zip(items, sampled, strict=True):
            self._note(run, item, shown, [] if sample is None else next(results))
        with self.sessions.begin() as session:
            run.bytes += sum(len(json.dumps([item.sample, item.results])) for item in items)
            progress = {name: getattr(run, name) for name in ("counts", "criteria", "usage", "bytes")}
            lease.write(session, tries=0, **progress)
            for item in items:
                session.merge(item)

    def _note(self, run: EvalRun, item: EvalItem, shown: JsonObject, results: list[Result]) -> None:
        item.sample, item.results = shown, [result.as_json() for result in results]
        passed = all(result.passed for result in results)
        errored = not results or any(result.grade.error for result in results)
        item.status = "error" if errored else "pass" if passed else "fail"
        count = {"pass": "passed", "fail": "failed", "error": "errored"}[item.status]
        run.counts = run.counts | {"total": run.counts["total"] + 1, count: run.counts[count] + 1}
        run.criteria = [*map(_counted, run.criteria, results)] if results else run.criteria
        use = partial(_add_usage, run)
        if run.model is not None and shown["error"] is None:
            use(run.model, shown["usage"])
        for result in results:
            for model, tokens in result.grade.tokens.items():
                cost = result.grade.costs.get(model)
                priced = {} if cost is None else {"cost": cost}
                use(model, {"total_tokens": tokens, "judge_tokens": tokens} | priced)


def _brought(item: EvalItem) -> Sampled:
    sample = stored_sample(item.sample)
    return sample, shown_sample(sample)


def _counted(criterion: JsonObject, result: Result) -> JsonObject:
    count = "errored" if result.grade.error else "passed" if result.passed else "failed"
    score = 0.0 if result.grade.error else result.grade.reward
    return criterion | {count: criterion[count] + 1, "score_sum": criterion["score_sum"] + score}


def _add_usage(run: EvalRun, model: str, tokens: JsonObject) -> None:
    """``judge_tokens``: those that graders asked for, of which only the total is known."""
    of_model = run.usage.get(model, {})
    counts = {"invocation_count": 1} | tokens
    run.usage = run.usage | {model: of_model | {name: of_model.get(name, 0) + n for name, n in counts.items()}}


def _check_judges(run: EvalRun, limit: int | None) -> None:
    judge_tokens = sum(usage.get("judge_tokens", 0) for usage in run.usage.values())
    if limit is not None and judge_tokens > limit:
        message = f"the graders' models took {judge_tokens} tokens; a run's limit is {limit} tokens"
        raise WorkFailed(message, "judge_token_limit")
