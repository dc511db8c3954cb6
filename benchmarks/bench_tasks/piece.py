"""A piece of the benchmark: one task at one seed, with the rollouts and value functions that its methods share."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchmarks.bench_tasks.config import MAX_ROWS, BenchTasksConfig
from benchmarks.tasks import TASKS
from benchmarks.tasks.task import Split, Task
from iro_server import JsonObject
from training.run import Cancelled, Run, RunEvent, derive_seed

if TYPE_CHECKING:
    from torch import Tensor

    from iro_server.decoding.base import Scorer, SearchParams, SearchResult
    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.graders.base import Grader
    from training.iro.data import Prompt
    from training.iro.tilt_trials import Limits
    from training.iro.values import Stack
    from value_heads.tilt import Tilt

Item = TypeVar("Item")
Result = TypeVar("Result")
Step = Callable[[str, Callable[[], JsonObject]], JsonObject]
DECODING, TRAINING, TUNING = 0, 1, 2  # streams of random numbers
USUAL_ROWS = 16  # of a prompt; where it has fewer, more prompts are decoded at once
BIAS_TRIAL = re.compile(r"tilt-bias-([\d.]+)-\d+-of-\d+")  # a step of the job
OF_FIRST_BIAS = re.compile(rf"1-(train|heldout)-\d+-rewards|{BIAS_TRIAL.pattern}")  # plain rollouts and trials


@dataclass(frozen=True)
class Trained:
    """An alignment job's outcome. ``stack`` None: all rewards of its rollouts were equal. ``static_biases``: the
    job's static tilt at one or two strengths. ``prices``: of each way to serve its model, the ``search``, its ``rows``,
    and its ``reward`` on validation prompts. ``folder``: its run folder, with graded rollouts. ``base_tokens``,
    ``reward_calls``: what it took, validation included; ``first_bias``: the same of what its first static bias took."""

    folder: Path
    stack: Stack | None
    static_biases: list[Tilt]
    prices: list[JsonObject]
    base_tokens: int
    reward_calls: int
    first_bias: JsonObject
    seconds: float


@dataclass(frozen=True)
class Piece:
    """``grader`` is open. ``folder`` is the piece's own. ``step(name, compute)``: a step of the run, computed once."""

    config: BenchTasksConfig
    task: Task
    seed: int
    folder: Path
    engine: EmbeddedEngine
    grader: Grader
    step: Step
    on_event: Callable[[RunEvent], None] | None = None
    should_stop: Callable[[], bool] | None = None

    @property
    def max_tokens(self) -> int:
        return min(self.task.max_tokens, self.config.max_tokens)

    @cached_property
    def held_out(self) -> list[Prompt]:
        return self.prompts("held_out", self.config.heldout_prompts)

    @cached_property
    def validation(self) -> list[Prompt]:
        """Prompts that value functions were not fitted on."""
        return self.prompts("validation", self.config.validation_prompts)

    def prompts(self, split: Split, count: int) -> list[Prompt]:
        from iro_server.engines.prompts import item_prompt_ids
        from training.iro.data import Prompt

        rows = self.task.prompts(split, count, self.seed)
        return [Prompt(i, tuple(item_prompt_ids(self.engine.tokenizer, row)), row) for i, row in enumerate(rows)]

    @cached_property
    def no_tilt(self) -> Tilt:
        """One that changes nothing."""
        from value_heads.tilt import zero_tilt

        vocabulary, width = self.engine.frozen.head_weight.shape
        return zero_tilt(vocabulary, width, (), self.engine.info.eos_ids)

    def text(self, tokens: Sequence[int]) -> str:
        return str(self.engine.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def rewards(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """Of one text for each prompt. ValueError where one could not be graded."""
        from iro_server.graders.base import Sample

        grades = self.grader.grade_many(
            [(Sample(text), prompt.item) for prompt, text in zip(prompts, texts, strict=True)]
        )
        if errors := [grade.error for grade in grades if grade.error]:
            raise ValueError(f"{self.task.name}: {len(errors)} texts could not be graded: {errors[0]}")
        return [grade.reward for grade in grades]

    def search(
        self,
        prompts: Sequence[Prompt],
        params: SearchParams,
        stack: Scorer | None,
        seed: int,
        tilt: Tilt | None = None,
    ) -> list[SearchResult]:
        """A search of each prompt, in lockstep, steered by ``tilt`` where the search has a strength.

        A prompt's seed is the same for all methods.
        """
        from iro_server.decoding.search import guided_search
        from iro_server.engines.base import Steering
        from training.iro.rollouts import rollout_sampling

        sampling = rollout_sampling(1.0, self.engine.info)
        steering = Steering(tilt, params.strength) if tilt is not None and params.strength else None
        scorer = stack if params.rows > 1 else None

        async def search_one(prompt: Prompt) -> SearchResult:
            seeded = replace(sampling, seed=derive_seed(seed, DECODING, prompt.index))
            return await guided_search(
                self.engine, prompt.token_ids, params, seeded, self.max_tokens, scorer, steering=steering
            )

        return self.in_lockstep(prompts, self.prompts_at_once(params.rows), search_one)

    def prompts_at_once(self, rows: int) -> int:
        """How many prompts of so many rows are decoded at once."""
        at_once = self.config.concurrency * max(1, USUAL_ROWS // rows)
        return max(1, min(at_once, MAX_ROWS // rows))

    def in_lockstep(
        self, items: Sequence[Item], at_once: int, decode: Callable[[Item], Awaitable[Result]]
    ) -> list[Result]:
        """Decode the items, each in one session, ``at_once`` at a time. Cancelled where the run was asked to stop."""

        async def decode_all(shard: Sequence[Item]) -> list[Result]:
            return await asyncio.gather(*map(decode, shard))

        results: list[Result] = []
        for start in range(0, len(items), at_once):
            if self.should_stop is not None and self.should_stop():
                raise Cancelled(f"stopped; {self.folder} keeps what was done")
            shard = items[start : start + at_once]
            with self.engine.lockstep(len(shard)):
                results += asyncio.run(decode_all(shard))
        return results

    @cached_property
    def trained(self) -> Trained:
        """The alignment job of this task and seed; a second call, or a second process, goes on from its run folder."""
        return train(self)

    def load(self, path: str) -> Stack:
        """A model that an alignment job saved."""
        from iro_server.engines.prepare import prepare_model
        from training.iro.values import Bundles

        return Bundles(self.engine.info, prepare_model()).load(Path(path))

    def jsonl(self, split: Split, count: int) -> Path:
        path = self.folder / f"{split}.jsonl"
        rows = self.task.prompts(split, count, self.seed)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path


def train(piece: Piece) -> Trained:
    """The trainer of ``training.iro`` on the piece's engine. The stack is that of the job's best iteration."""
    from benchmarks.engine_job import engine_job
    from iro_server.engines.prepare import prepare_model
    from training.iro.data import AlignError

    config, folder = piece.config, piece.folder / "align"
    model_dir = prepare_model()
    options = {
        "model_dir": model_dir,
        "training_file": piece.jsonl("train", config.train_prompts),
        "validation_file": piece.jsonl("validation", 2 * config.validation_prompts),
        "validation_prompts": config.validation_prompts,
        "grader": piece.task.grader(),
        "iterations": config.iterations,
        "prompts_per_iteration": config.prompts_per_iteration,
        "rollouts_per_prompt": config.rollouts_per_prompt,
        "chunk_length": config.chunk_length,
        "max_tokens": piece.max_tokens,
        "counted_tokens": config.counted_tokens,
        "max_kl": config.max_kl,
        "concurrency": config.concurrency,
        "seed": derive_seed(piece.seed, TRAINING) % 2**31,
    }
    execute = partial(
        engine_job(piece.engine, model_dir).execute, on_event=piece.on_event, should_stop=piece.should_stop
    )
    stack, biases, prices = None, [], []
    try:
        result = execute(options, folder)
    except AlignError as error:
        if error.code != "constant_reward":
            raise
    else:
        stack, prices = piece.load(result["best_checkpoint"]), result["prices"]
        biases = static_biases(folder, piece)
    return Trained(folder, stack, biases, prices, **spent(folder))


def static_biases(folder: Path, piece: Piece) -> list[Tilt]:
    """Of the strengths that the job tried on held-out prompts, first the one of the highest reward within the limits of
    its text, the weakest where none is; and the one of the highest reward outside, which a penalty on repetition or a
    lower temperature could mend."""
    from training.checkpoints import open_checkpoints
    from training.iro.tilt_trials import Trial
    from training.iro.trials import mean_reward

    checkpoints = open_checkpoints(str(folder / "checkpoints"))
    rows: dict[float, list[JsonObject]] = {}
    for name in checkpoints.names():
        if trial := BIAS_TRIAL.fullmatch(name):
            rows.setdefault(float(trial[1]), []).extend(checkpoints.load(name)["rows"])
    trials = [Trial("bias", strength, rows[strength]) for strength in sorted(rows)]
    limits = text_limits(piece, folder)
    allowed = [trial for trial in trials if limits.allow(trial)] or trials[:1]
    best, highest = max(allowed, key=mean_reward), max(trials, key=mean_reward)
    bias = first_bias(folder)
    strengths = dict.fromkeys([best.strength, highest.strength])
    return [replace(piece.no_tilt, bias=bias * strength) for strength in strengths]


def first_bias(folder: Path) -> Tensor:
    """[V], the static bias that the job in ``folder`` fitted to its plain rollouts, at strength 1."""
    from training.checkpoints import open_checkpoints

    bias: Tensor = open_checkpoints(str(folder / "checkpoints")).load("tilts")["bias"]["bias"]
    return bias


def text_limits(piece: Piece, folder: Path) -> Limits:
    """What the tilts of the job in ``folder`` kept to."""
    from training.checkpoints import open_checkpoints
    from training.iro.tilt_trials import Limits

    return Limits.of(open_checkpoints(str(folder / "checkpoints")).load("tilt-none"), piece.config.max_kl)


def spent(folder: Path) -> JsonObject:
    """Base tokens, graded completions and seconds of the alignment job in ``folder``; ``first_bias``: the first two of
    the plain rollouts and of the trials of the first static bias alone."""
    from training.checkpoints import open_checkpoints

    checkpoints = open_checkpoints(str(folder / "checkpoints"))
    names = list(checkpoints.names())
    tallies: dict[str, JsonObject] = {}
    for name in names:
        value = checkpoints.load(name)
        tally = value.get("tally") or value.get("finals") if isinstance(value, dict) else None
        if tally:
            tallies[name] = tally
    first_bias = total_of(tally for name, tally in tallies.items() if OF_FIRST_BIAS.fullmatch(name))
    seconds = sum(checkpoints.about(name)["seconds"] for name in names)
    return total_of(tallies.values()) | {"first_bias": first_bias, "seconds": seconds}


def total_of(tallies: Iterable[JsonObject]) -> JsonObject:
    """Base tokens and graded completions of steps of a job."""
    usages = [(int(tally["usage"]["base_tokens"]), int(tally["samples"]["all"])) for tally in tallies]
    return {"base_tokens": sum(tokens for tokens, _ in usages), "reward_calls": sum(calls for _, calls in usages)}


def open_piece(
    config: BenchTasksConfig, name: str, seed: int, run: Run, engine: EmbeddedEngine, grader: Grader
) -> Piece:
    folder = run.folder / "pieces" / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)

    def step(step_name: str, compute: Callable[[], JsonObject]) -> JsonObject:
        value: JsonObject = run.step(f"{name}-{seed}-{step_name}", compute, "decoding")
        return value

    return Piece(config, TASKS[name], seed, folder, engine, grader, step, run.on_event, run.should_stop)
