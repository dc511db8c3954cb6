"""`iro run bilevel.transient`: how many iterations SPARKLE and D-SOBA take until the network no longer matters."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import TypeVar

import torch
from pydantic import Field, field_validator

from training.bilevel import topology
from training.bilevel.algorithms.sparkle import Sparkle, Strategy
from training.bilevel.problems import quadratic
from training.bilevel.problems.quadratic import PROBLEM, Quadratic
from training.bilevel.studies.moments import SquaredGradients, moments, recursion, squared_gradients
from training.bilevel.studies.quadratic_measurements import D_SOBA, problem_seeds, strategies
from training.bilevel.studies.transient_figure import draw
from training.bilevel.studies.transient_slopes import Lengths, slopes
from training.json_values import JsonObject
from training.run import Job, JobConfig, Run

METHODS = ("ED", "EXTRA", "ATC-GT", "ED/ATC-GT", D_SOBA)
MEASURES = SquaredGradients._fields
LEVELS = ("lower", "upper")  # y and z; x
LONGEST_RATIO = 2.0  # of the error to that of agents that average exactly, at the end of a transient
THETA = 0.2
COARSE = 4  # powers of two between the horizons that are tried first
Row = TypeVar("Row")


class TransientConfig(JobConfig):
    """Agents mix by (1 - g) I + g 11ᵀ/n, whose spectral gap is g."""

    repeats: int = Field(5, ge=2, description="Random problems.")
    agents: int = Field(8, ge=2, description="Agents where their number is not varied.")
    gaps: tuple[float, ...] = Field(
        tuple(2.0**-power for power in range(2, 11)), description="Spectral gaps g of the mixing matrix, falling."
    )
    sizes: tuple[int, ...] = Field((4, 8, 16, 32), description="Numbers of agents n at the gap `size_gap`, rising.")
    size_gap: float = Field(2.0**-6, gt=0, le=1, description="The spectral gap where the number of agents is varied.")
    level_gap: float = Field(0.5, gt=0, le=1, description="The spectral gap of the level whose gap is not varied.")
    powers: tuple[int, int] = Field((9, 38), description="The shortest and the longest horizon, as powers of two.")
    step: float = Field(0.5, gt=0, description="c of the steps for horizon K: c √(n/K) of x and twice that of y and z.")
    noise: float = Field(1.0, gt=0, description="Noise in the gradients.")
    heterogeneity: float = Field(1.0, ge=0, description="How much agents' problems differ.")

    @field_validator("gaps")
    @classmethod
    def _falling(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) < 3 or list(value) != sorted(set(value), reverse=True) or value[0] > 1 or value[-1] <= 0:
            raise ValueError(f"three gaps or more, falling, above 0 and at most 1, not {list(value)}")
        return value

    @field_validator("sizes")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or list(value) != sorted(set(value)) or value[0] < 2:
            raise ValueError(f"rising numbers of agents, 2 or more each, not {list(value)}")
        return value

    @field_validator("powers")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1] <= 48:
            raise ValueError(f"two rising powers from 0 to 48, not {list(value)}")
        return value


def run(config: TransientConfig, run: Run) -> dict[str, object]:
    """Lengths by method: gaps, by measure, and levels, by level: [repeats, gaps]; sizes: [repeats, sizes]; slopes."""
    run.planned_steps = config.repeats * len(METHODS) * (1 + 1 + len(LEVELS))
    lengths: JsonObject = {"gaps": _gaps(config, run), "sizes": _sizes(config, run), "levels": _levels(config, run)}
    return lengths | {"slopes": slopes(lengths, config.gaps, config.sizes)}


def _gaps(config: TransientConfig, run: Run) -> dict[str, dict[str, list[Lengths]]]:
    def lengths_of(method: str, repeat: int) -> dict[str, Lengths]:
        ratios = _Ratios(config, config.agents, repeat)
        rows = {
            measure: [transient(partial(ratios.of, method, gap, gap, measure), config.powers) for gap in config.gaps]
            for measure in MEASURES
        }
        run.metrics(
            {"study": "gaps", "method": method, "repeat": repeat, "lengths": rows},
            f"gaps, {method}: {_listed(rows[MEASURES[0]])}",
        )
        return rows

    rows = {method: _by_repeat(config, run, "gaps", method, lengths_of) for method in METHODS}
    return {measure: {m: [row[measure] for row in rows[m]] for m in METHODS} for measure in MEASURES}


def _sizes(config: TransientConfig, run: Run) -> dict[str, list[Lengths]]:
    def lengths_of(method: str, repeat: int) -> Lengths:
        row = [
            transient(
                partial(_Ratios(config, n, repeat).of, method, config.size_gap, config.size_gap, MEASURES[0]),
                config.powers,
            )
            for n in config.sizes
        ]
        run.metrics(
            {"study": "sizes", "method": method, "repeat": repeat, "lengths": row}, f"n, {method}: {_listed(row)}"
        )
        return row

    return {method: _by_repeat(config, run, "sizes", method, lengths_of) for method in METHODS}


def _levels(config: TransientConfig, run: Run) -> dict[str, dict[str, list[Lengths]]]:
    def lengths_of(level: str, method: str, repeat: int) -> Lengths:
        ratios, other = _Ratios(config, config.agents, repeat), config.level_gap
        pairs = [(gap, other) if level == "lower" else (other, gap) for gap in config.gaps]
        row = [transient(partial(ratios.of, method, *pair, MEASURES[0]), config.powers) for pair in pairs]
        labels = {"study": "levels", "level": level, "method": method, "repeat": repeat}
        run.metrics(labels | {"lengths": row}, f"gap of the {level} level, {method}: {_listed(row)}")
        return row

    return {
        level: {
            method: _by_repeat(config, run, f"levels-{level}", method, partial(lengths_of, level)) for method in METHODS
        }
        for level in LEVELS
    }


def _by_repeat(
    config: TransientConfig, run: Run, study: str, method: str, compute: Callable[[str, int], Row]
) -> list[Row]:
    """``compute`` of the method and each repeat, as steps of the run."""
    prefix = f"{study}-{method}".replace("/", "-")
    return [run.step(f"{prefix}-{repeat}", partial(compute, method, repeat)) for repeat in range(config.repeats)]


class _Ratios:
    """Errors after K = 2^power iterations at the steps for that horizon, over those of agents that average exactly."""

    def __init__(self, config: TransientConfig, agents: int, repeat: int) -> None:
        self.config = config
        self.problem = quadratic.draw(
            agents,
            x_size=2,
            y_size=2,
            heterogeneity=config.heterogeneity,
            seed=problem_seeds(config.seed, config.repeats)[repeat],
        )
        self._errors = cache(self._compute)

    def of(self, method: str, lower_gap: float, upper_gap: float, measure: str, power: int) -> float:
        error = self._errors(method, lower_gap, upper_gap, power)
        exact = self._errors(D_SOBA, 1.0, 1.0, power)
        return float(getattr(error, measure) / getattr(exact, measure))

    def _compute(self, method: str, lower_gap: float, upper_gap: float, power: int) -> SquaredGradients:
        n = len(self.problem.e)
        lower, upper = strategies(method, mixing(n, lower_gap))[0], strategies(method, mixing(n, upper_gap))[1]
        algorithm = tuned(self.problem, lower, upper, self.config.step * math.sqrt(n / 2**power))
        return squared_gradients(moments(recursion(algorithm, self.problem, self.config.noise), power), self.problem)


def tuned(problem: Quadratic, lower: Strategy, upper: Strategy, alpha: float) -> Sparkle:
    return Sparkle(PROBLEM, lower, upper, alpha=alpha, beta=2 * alpha, gamma=2 * alpha, theta=THETA)


def mixing(agents: int, gap: float) -> torch.Tensor:
    """(1 - gap) I + gap 11ᵀ/n."""
    return (1 - gap) * torch.eye(agents, dtype=torch.float64) + gap * topology.fully_connected(agents)


def transient(ratio: Callable[[int], float], powers: tuple[int, int]) -> float | None:
    """log2 of the horizon beyond which ``ratio``, of a power of two, stays at LONGEST_RATIO or below.

    Interpolated between two powers; None where that is not between ``powers``. Searched from the longest horizon down
    in strides, so that a shorter rise above it between two strides is not seen.
    """
    below = powers[1]
    if not ratio(below) <= LONGEST_RATIO:
        return None
    tried = [*range(below - 1, powers[0], -COARSE), powers[0]]
    above = next((power for power in tried if not ratio(power) <= LONGEST_RATIO), None)
    if above is None:
        return None
    below = min(above + COARSE, below)
    while below - above > 1:
        middle = (above + below) // 2
        above, below = (above, middle) if ratio(middle) <= LONGEST_RATIO else (middle, below)
    high, low = math.log(ratio(above)), math.log(ratio(below))
    return above + (high - math.log(LONGEST_RATIO)) / (high - low) if math.isfinite(high) else float(below)


def _listed(lengths: Lengths) -> str:
    return ", ".join("none" if length is None else f"2^{length:.1f}" for length in lengths)


JOB = Job(
    name="bilevel.transient",
    summary="Transient iterations of SPARKLE and D-SOBA against the spectral gap and n, from exact moments",
    Config=TransientConfig,
    run=run,
    presets={
        "smoke": {"repeats": 2, "gaps": (2.0**-5, 2.0**-6, 2.0**-7), "sizes": (4, 8), "powers": (9, 32)},
        "two-cores": {},
    },
    draw=draw,
)
