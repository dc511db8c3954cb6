"""What shares the engine's next step: the live sequences, and parts of prompts that wait to be read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from iro_server.engines.cache import CacheSpec
from iro_server.engines.prefill import Prompt, PromptKey, PromptPart, prompt_key
from iro_server.engines.sequences import ChunkWork, SequenceGroup

Outcome = TypeVar("Outcome")
Run = SequenceGroup | PromptPart  # tokens of a step's flat batch that belong together


@dataclass(frozen=True)
class PrefillBudget:
    """How much of prompts a step reads, in units of the work of a prompt's first token.

    ``step_units``: work that takes as long as a step's fixed part, which is to read the weights. Rows wait for at most
    two more steps' time: the budget beside R rows is 2 (step_units + R), and ``max_units`` at most.
    ``attention_span``: the position at which a token's attention costs as much as the rest of its work.
    """

    step_units: int
    max_units: int
    attention_span: float

    def units(self, rows: int) -> float:
        """The budget of a step beside so many rows."""
        return min(self.max_units, 2 * (self.step_units + rows)) if rows else self.max_units

    def tokens(self, prompt: Prompt, units: float) -> int:
        """The prompt's next tokens that so many units pay for."""
        return min(prompt.remaining, int(units / self._token_units(prompt)))

    def cost(self, prompt: Prompt, tokens: int) -> float:
        """Units of the prompt's next ``tokens``."""
        return tokens * self._token_units(prompt)

    def _token_units(self, prompt: Prompt) -> float:
        return 1 + prompt.segment.length / self.attention_span


class Scheduler:
    """Sessions between their opening and their close. The engine's thread alone touches it.

    Prompts are read in parts. The oldest gets at least half of the budget, so that it ends; the others, shortest first,
    get the rest, so that a short prompt does not wait for a long one.
    """

    def __init__(self, spec: CacheSpec, budget: PrefillBudget) -> None:
        self._spec, self._budget = spec, budget
        self._sessions: set[SequenceGroup] = set()
        self._prompts: dict[PromptKey, Prompt] = {}
        self._openings: dict[Prompt, list[tuple[SequenceGroup, Future[None]]]] = {}  # of prompts still to be read
        self._live: list[SequenceGroup] = []
        self.awaited = 0  # sessions without which no step begins

    @property
    def live_rows(self) -> int:
        """Rows in the batch at this moment."""
        return sum(group.count for group in list(self._live))

    @property
    def ready(self) -> bool:
        """Whether there is a step to compute."""
        waiting = len(self._live) + sum(map(len, self._openings.values()))
        return waiting > 0 and waiting >= self.awaited

    def open(self, group: SequenceGroup, prompt_ids: Sequence[int], opened: Future[None]) -> None:
        """Settle ``opened`` once the group's prompt is read, which a live session's equal prompt may be already."""
        key = prompt_key(prompt_ids, group.sampling.salt)
        prompt = self._prompts.get(key)
        if prompt is None:
            prompt = self._prompts[key] = Prompt(key, self._spec)
            self._openings[prompt] = []
        group.prompt = prompt
        prompt.num_users += 1
        self._sessions.add(group)
        if prompt.states is None:
            self._openings[prompt].append((group, opened))
        else:
            group.states, group.cached_tokens = prompt.states, prompt.count
            settle(opened, None)

    def extend(self, group: SequenceGroup, work: ChunkWork) -> None:
        """Begin a chunk, once those before it are drawn. RuntimeError where the session is closed, or where memory does
        not hold the chunk: it is closed then."""
        if group.work:
            group.upcoming.append(work)
            return
        if work.follows and group.stopped:
            return
        try:
            group.begin(work)
        except Exception:
            self.close(group)
            raise
        self._live.append(group)

    def close(self, group: SequenceGroup) -> None:
        """Free what the group holds; a prompt goes with the last session that shares it."""
        if group not in self._sessions:
            return
        self._sessions.remove(group)
        self.awaited = max(0, self.awaited - 1)
        if group in self._live:
            self._live.remove(group)
        prompt = group.prompt
        prompt.num_users -= 1
        if prompt in self._openings:
            self._openings[prompt] = [opening for opening in self._openings[prompt] if opening[0] is not group]
        if not prompt.num_users:
            self._prompts.pop(prompt.key)
            self._openings.pop(prompt, None)
        group.free()

    def step(self) -> tuple[list[SequenceGroup], list[PromptPart]]:
        """Every live group in order of number, and the parts of prompts to read beside them."""
        groups = sorted(self._live, key=lambda group: group.number)
        return groups, self._parts() if self._openings else []

    def _parts(self) -> list[PromptPart]:
        # Rows between two chunks wait as well: their next chunk arrives while the step is computed.
        units = self._budget.units(sum(group.count for group in self._sessions if group.states is not None))
        oldest, *newer_prompts = self._openings
        reserved = min(units / 2, self._budget.cost(oldest, oldest.remaining))
        units -= reserved
        counts = {}
        for prompt in sorted(newer_prompts, key=lambda prompt: prompt.remaining):
            counts[prompt] = self._budget.tokens(prompt, units)
            units -= self._budget.cost(prompt, counts[prompt])
        counts[oldest] = max(1, self._budget.tokens(oldest, units + reserved))
        return [PromptPart(prompt, counts[prompt]) for prompt in self._openings if counts[prompt]]

    def finish(self, run: Run) -> None:
        """The model has read ``run``: settle what that ends."""
        if isinstance(run, SequenceGroup):
            if run.finished and run.work:
                work, chunk = run.work, run.work.result()
                run.work, run.stopped = None, bool(work.stopped_R.all())
                settle(work.done, chunk)
                self._go_on(run)
        elif run.prompt.states is not None:
            for group, opened in self._openings.pop(run.prompt):
                group.states = run.prompt.states
                settle(opened, None)

    def _go_on(self, group: SequenceGroup) -> None:
        """With the chunk that follows, or else without the group."""
        if group.upcoming and not group.stopped:
            group.begin(group.upcoming[0])
            group.upcoming.popleft()
        else:
            group.upcoming.clear()
            self._live.remove(group)

    def fail(self, run: Run, failure: BaseException) -> None:
        """Hand ``failure`` to the callers of ``run`` alone, whose sessions are closed."""
        if isinstance(run, SequenceGroup):
            for work in [run.work, *run.upcoming]:
                if work:
                    settle(work.done, failure)
            self.close(run)
        else:
            for group, opened in list(self._openings[run.prompt]):
                settle(opened, failure)
                self.close(group)

    def fail_all(self, failure: BaseException) -> None:
        """Hand ``failure`` to every waiting caller."""
        runs: list[Run] = [*self._live, *(PromptPart(prompt, 0) for prompt in self._openings)]
        for run in runs:
            self.fail(run, failure)


def settle(future: Future[Outcome], outcome: Outcome | BaseException) -> None:
    """Hand over a result or an exception, unless the caller has left: it may do so at any moment."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
