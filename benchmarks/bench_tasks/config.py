"""What ``bench.tasks`` compares."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self, TypeVar

from pydantic import Field, PositiveInt, field_validator, model_validator

from iro_server import JsonObject
from iro_server.engines.endpoints import Precision
from training.run import JobConfig, check_names

DECODERS = (
    *("base", "best_of_n", "tempered", "blockwise", "static_bias", "static_bias_refitted"),
    *("iro", "iro_by_chunk", "iro_samples", "iro_search", "iro_by_reward", "iro_best_of_n"),
    *("args", "vas", "smc", "dvts"),
)
METHOD_NAMES = (*DECODERS, "dpo", "grpo")
"""The keys of ``methods.METHODS``, which imports this configuration."""
MAX_ROWS = 256  # that step at once
Rows = Annotated[int, Field(ge=1, le=MAX_ROWS)]
Strength = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Named = TypeVar("Named", str, int, float)


class BenchTasksConfig(JobConfig):
    """Lengths are in tokens."""

    extendable: ClassVar[frozenset[str]] = frozenset(
        {
            "tasks",
            "methods",
            "rows",
            "measured_rows",
            "seeds",
            "seeds_of",
            "tasks_of",
            "tilt_strengths",
            "each_iteration",
            "grpo_reward_calls",
        }
    )

    tasks: tuple[str, ...] = Field(min_length=1, description="The tasks, by name.")
    methods: tuple[str, ...] = Field(
        DECODERS, min_length=1, description="The decoding methods to compare, and the trainers dpo and grpo."
    )
    rows: tuple[Rows, ...] = Field(
        (1, 2, 4, 16, 64), min_length=1, description="Rows of a prompt: what a method may sample at once."
    )
    measured_rows: int = Field(
        1, ge=1, description="Rows of a prompt that are sampled at least: methods of fewer rows answer several times."
    )
    seeds: int = Field(5, ge=1, description="Repetitions, each with prompts and value functions of its own.")
    seeds_of: dict[str, PositiveInt] = Field({}, description="Fewer seeds for some methods.")
    tasks_of: dict[str, tuple[str, ...]] = Field({}, description="Fewer tasks for some methods.")
    tilt_strengths: tuple[Strength, ...] = Field(
        (),
        description="Multiples of a tilt at one row, ours and a static bias's: reward by strength.",
    )
    each_iteration: bool = Field(
        False, description="Measure the models of all iterations that a job kept: judge against reward as they go on."
    )
    grpo_reward_calls: int | None = Field(
        None, ge=1, description="Graded completions that a GRPO yet to be trained learns from; as the job's by default."
    )
    train_prompts: int = Field(96, ge=4, description="Prompts of a value function's rollouts.")
    validation_prompts: int = Field(12, ge=1, description="Choose an iteration; as many others compare it.")
    heldout_prompts: int = Field(24, ge=1, description="Prompts of the comparison.")
    iterations: int = Field(1, ge=1, description="Value functions, one for each iteration.")
    prompts_per_iteration: int | None = Field(
        None, ge=2, description="Prompts in each iteration; more than an equal share are sampled again by later ones."
    )
    rollouts_per_prompt: int = Field(16, ge=2, description="Plain samples of each prompt in the first iteration.")
    chunk_length: int = Field(4, ge=1, description="L: tokens between two selections of a search.")
    max_tokens: int = Field(48, ge=1, description="Of an answer, where the task does not set less.")
    counted_tokens: int = Field(1500, ge=0, description="How many of the most common tokens get a weight of their own.")
    max_kl: float | None = Field(
        None, gt=0, description="Mean nats of an answer from the frozen model: of the job's tilt and of its rivals."
    )
    vllm_tilts: bool = Field(
        False, description="Fit the parts of a tilt that vLLM applies and no others, as jobs on vLLM do."
    )
    engine_precision: Precision = Field(
        "float32", description="Of products on a CPU; bfloat16 takes less time (docs/models.md#data-types)."
    )
    concurrency: int = Field(8, ge=1, description="Prompts of 16 rows or more that are decoded at once.")

    @field_validator("tasks", "methods", "rows", "tilt_strengths")
    @classmethod
    def _distinct(cls, values: tuple[Named, ...]) -> tuple[Named, ...]:
        repeated = sorted({value for value in values if values.count(value) > 1})
        if repeated:
            raise ValueError(f"{', '.join(map(str, repeated))} is named twice")
        return values

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        from benchmarks.tasks import TASKS

        check_names(self.tasks, TASKS, "task")
        check_names([*self.methods, *self.seeds_of, *self.tasks_of], METHOD_NAMES, "method")
        check_names([name for names in self.tasks_of.values() for name in names], TASKS, "task")
        return self

    def seeds_for(self, method: str) -> int:
        return min(self.seeds, self.seeds_of.get(method, self.seeds))

    def methods_for(self, task: str, repetition: int) -> list[str]:
        """The methods that the task is decoded by at the ``repetition``-th seed, from 0."""
        return [
            method
            for method in self.methods
            if repetition < self.seeds_for(method) and task in self.tasks_of.get(method, self.tasks)
        ]


ALL_TASKS = (
    "sentiment",
    "keywords",
    "instructions",
    "arithmetic",
    "extraction",
    "brevity",
    "reading_level",
    "civility",
)
PRESETS: dict[str, JsonObject] = {
    "smoke": {
        "tasks": ("keywords",),
        "rows": (1, 2),
        "seeds": 1,
        "train_prompts": 6,
        "validation_prompts": 1,
        "heldout_prompts": 2,
        "rollouts_per_prompt": 4,
        "max_tokens": 8,
        "counted_tokens": 50,
    },
    "two-cores": {
        "tasks": ("keywords", "arithmetic"),
        "methods": ("base", "best_of_n", "tempered", "static_bias", "iro"),
        "rows": (1, 4, 16),
        "seeds": 1,
        "train_prompts": 32,
        "validation_prompts": 6,
        "heldout_prompts": 16,
    },
    "paper": {
        "tasks": ALL_TASKS,
        "methods": METHOD_NAMES,
        "seeds_of": dict.fromkeys(set(METHOD_NAMES) - {"base", "best_of_n", "tempered", "static_bias", "iro"}, 3),
        "tasks_of": dict.fromkeys(("dpo", "grpo"), ("sentiment", "keywords", "extraction")),
        "tilt_strengths": (0.5, 1.0, 2.0, 4.0, 8.0),
        "measured_rows": 8,
        "train_prompts": 64,
    },
}
