"""The gradient-flow studies: the data of each figure and the claims that are checked."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from theory.gradient_flow import figures
from theory.gradient_flow.critical import find, hessians
from theory.gradient_flow.full_system import heavy_tailed, joint_parameters, separate_keys_queries
from theory.gradient_flow.instances import InstanceI, InstanceII, one_dimensional
from theory.gradient_flow.system import (
    estimated_moments,
    flow,
    gaussian_moments,
    linear_regression,
    prompts,
    sgd,
)
from theory.lab import LabConfig, Result, Study, band, linear_fit, loglog
from training.run import Run


class GradientFlowConfig(LabConfig):
    """The data of a prompt, and the flows and starts of each figure."""

    n: PositiveInt = Field(10, description="Examples of a prompt.")
    variance: PositiveFloat = Field(1.0, description="λ: variance of x in one dimension.")
    spectrum: tuple[float, ...] = Field(
        (0.5, 1.0, 1.5, 2.0), description="Eigenvalues of Λ, the covariance of x, in two or more dimensions."
    )
    flows: PositiveInt = Field(200, description="Flows from random starts, of each instance.")
    init_scale: PositiveFloat = Field(0.1, description="Standard deviation of the starts.")
    horizon: PositiveFloat = Field(
        90.0, description="How long flows of the instances last: of instance I as is, of instance II in units of 1/λ²."
    )
    starts: int = Field(200, ge=4, description="Starts of the search for critical points; instance I has a quarter.")
    grid: PositiveInt = Field(61, description="Points of a side of the map of basins.")
    prompts: int = Field(400_000, ge=20, description="Prompts of the Monte Carlo estimates.")
    repeats: PositiveInt = Field(20, description="Starts of the smaller studies.")
    patience: PositiveFloat = Field(160.0, description="How long flows of the full system last.")
    scales: tuple[PositiveFloat, ...] = Field(
        (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
        min_length=1,
        description="Standard deviations of the starts in the study of escape.",
    )
    rates: tuple[PositiveFloat, ...] = Field(
        (0.16, 0.08, 0.04, 0.02, 0.01), min_length=1, description="Step sizes of SGD."
    )
    batch: PositiveInt = Field(256, description="Prompts of an SGD step.")

    @field_validator("spectrum")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) < 2 or min(value) <= 0:
            raise ValueError("spectrum must be positive numbers, two or more: the eigenvalues of the covariance of x")
        return value

    @property
    def instance_one(self) -> InstanceI:
        return InstanceI(np.diag(self.spectrum), self.n)

    @property
    def instance_two(self) -> InstanceII:
        return InstanceII(self.variance, self.n)

    @property
    def instances(self) -> tuple[tuple[str, InstanceI | InstanceII, int], ...]:
        """Name, instance and number of parameters of both."""
        return ("I", self.instance_one, 1 + len(self.spectrum) ** 2), ("II", self.instance_two, 4)

    def horizon_of(self, instance: InstanceI | InstanceII) -> float:
        return self.horizon if isinstance(instance, InstanceI) else self.horizon / self.variance**2

    @property
    def scalar(self) -> InstanceI:
        """Instance I with d = 1."""
        return InstanceI(np.array([[self.variance]]), self.n)


def flows(config: GradientFlowConfig, run: Run) -> Result:
    """Flows of both instances from small random starts: loss, drift of the invariant, and end points."""
    result: Result = {}
    for name, instance, size in config.instances:
        start = config.init_scale * run.rng(1, size).standard_normal((config.flows, size))
        times = np.linspace(0, config.horizon_of(instance), 241)
        path = flow(instance.velocity, start, times)
        loss = instance.loss(path)
        result[name] = {
            "times": times,
            "loss": loss[:, :12].T,
            "reached": int((loss[-1] - instance.least_loss < 1e-9).sum()),
            "flows": config.flows,
            "drift": np.abs(instance.invariant(path) - instance.invariant(path[:1])).max(),
            "least_loss": instance.least_loss,
        }
        if isinstance(instance, InstanceI):
            u, U = instance.split(path[-1])
            gap = u[:, None, None] * U - instance.optimum
            result[name]["gap"] = np.sqrt((gap**2).sum((1, 2))).max()
        else:
            result[name]["least_expected"] = config.variance / (config.n + 2)
    return result


def check_flows(result: Result, run: Run) -> None:
    for name, instance_result in result.items():
        got, drift = instance_result["reached"], instance_result["drift"]
        run.check(
            f"instance {name}: flows at the optimum",
            expected=instance_result["flows"],
            got=got,
            holds=got == instance_result["flows"],
        )
        run.check(f"instance {name}: drift of the invariant", expected="<= 1e-9", got=drift, holds=drift <= 1e-9)
    gap, second = result["I"]["gap"], result["II"]
    run.check("instance I: ‖uU − Γ⁻¹‖", expected="<= 1e-10", got=gap, holds=gap <= 1e-10)
    holds = abs(second["least_loss"] - second["least_expected"]) < 1e-12
    run.check(
        "instance II: L* = λ/(n+2)",
        expected=second["least_expected"],
        got=second["least_loss"],
        holds=holds,
    )


def critical(config: GradientFlowConfig, run: Run) -> Result:
    """Critical points of both instances from random starts, beside the closed forms."""
    instance_two, instance_one = config.instance_two, InstanceI(np.diag(config.spectrum[:2]), config.n)
    size = 1 + len(instance_one.covariance) ** 2
    points_one = find(instance_one, 0.7 * run.rng(2, 0).standard_normal((config.starts // 4, size)))
    # Saddles fill a subspace: the closed form depends on the saddle's U.
    saddle = next((p for p in points_one if p.index == 1), None)
    expected = (
        instance_one.saddle_eigenvalues(np.array(saddle.point[1:]).reshape(instance_one.covariance.shape))
        if saddle
        else None
    )
    return {
        "I": [asdict(p) for p in points_one],
        "II": [asdict(p) for p in find(instance_two, run.rng(2, 1).standard_normal((config.starts, 4)))],
        "saddle_eigenvalues": expected,
        "mixed": instance_two.mixed_saddle,
        "least_loss": {"I": instance_one.least_loss, "II": instance_two.least_loss},
        "mixed_slope": np.abs(instance_two.velocity(instance_two.mixed_saddle_point)).max(),
    }


def check_critical(result: Result, run: Run) -> None:
    expected = [[0, result["least_loss"]["II"]], [1, result["mixed"][1]], [2, None]]
    got = [[p["index"], p["loss"]] for p in result["II"]]
    same = [index for index, _ in got] == [0, 1, 2] and all(
        loss is None or abs(loss - found_loss) < 1e-8 for (_, loss), (_, found_loss) in zip(expected, got, strict=True)
    )
    run.check("instance II: critical points, index and loss", expected=expected, got=got, holds=same)
    mixed = next((p for p in result["II"] if p["index"] == 1), None)
    product = mixed["point"][1] * mixed["point"][2] if mixed else float("nan")
    holds = abs(product - result["mixed"][0]) < 1e-8
    run.check("instance II: vU at the mixed saddle", expected=result["mixed"][0], got=product, holds=holds)
    indices = sorted({p["index"] for p in result["I"]})
    run.check("instance I: Hessian indices", expected=[0, 1], got=indices, holds=indices == [0, 1])
    saddle = next((p for p in result["I"] if p["index"] == 1), None)
    if saddle:
        ends = [saddle["eigenvalues"][0], saddle["eigenvalues"][-1]]
        holds = bool(np.allclose(ends, result["saddle_eigenvalues"], atol=1e-7))
        run.check("instance I: saddle's eigenvalues", expected=result["saddle_eigenvalues"], got=ends, holds=holds)


def phase(config: GradientFlowConfig, run: Run) -> Result:
    """Instance I, d = 1: trajectories (u, U) on u² − U² = c, and P(t) = uU against the one-dimensional ODE."""
    scalar, times = config.scalar, np.linspace(0, 8 / config.variance**2, 161)
    curves, gap = [], 0.0
    for c in (-1.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0):
        angle = np.array([-2.5, -1.5, -0.6, 0.3, 1.5, 2.5])
        near, far = np.sqrt(abs(c)) * np.sinh(angle), np.sqrt(abs(c)) * np.cosh(angle)
        if c == 0:
            near, far = angle / 2, np.abs(angle) / 2 * np.sign(angle) * np.array([1, -1, 1, 1, 1, -1])
        start = np.stack([far, near] if c >= 0 else [near, far], axis=1)
        path = flow(scalar.velocity, start, times)
        P = flow(one_dimensional(c, config.variance, config.n), start[:, :1] * start[:, 1:], times)[..., 0]
        gap = max(gap, float(np.abs(path[..., 0] * path[..., 1] - P).max()))
        curves.append({"c": c, "u": path[..., 0].T, "U": path[..., 1].T, "P": P.T})
    return {"times": times, "curves": curves, "gap": gap, "optimum": float(scalar.optimum[0, 0])}


def check_phase(result: Result, run: Run) -> None:
    run.check("P(t) against the 1-D ODE", expected="<= 1e-9", got=result["gap"], holds=result["gap"] <= 1e-9)


def basin(config: GradientFlowConfig, run: Run) -> Result:
    """Instance I, d = 1: time to the optimum from each (u, U); instance II: which optimum from a plane of starts."""
    # Rounding errors leave U = −u at rate λ² from 1e-16: at 25/λ² they are small, and other starts are at the optimum.
    axis, times = np.linspace(-1.5, 1.5, config.grid), np.linspace(0, 25 / config.variance**2, 601)
    first, second = (part.ravel() for part in np.meshgrid(axis, axis))
    scalar, instance_two = config.scalar, config.instance_two
    loss = scalar.loss(flow(scalar.velocity, np.stack([first, second], axis=1), times, rtol=1e-9, atol=1e-12))
    done = loss - scalar.least_loss < 1e-6
    reached = np.where(done.any(axis=0), times[done.argmax(axis=0)], np.nan)
    on_line = np.isclose(second, -first)
    slice_ = np.stack(
        [second, first, 0.7 * first, 0.7 * second], axis=1
    )  # (p, v, U, q): vU = .7 first², pq = .7 second²
    end = flow(instance_two.velocity, slice_, times[[0, -1]], rtol=1e-9, atol=1e-12)[-1]
    family = np.where(np.abs(end[:, 1] * end[:, 2]) > np.abs(end[:, 0] * end[:, 3]), 1, 2)
    family = np.where(instance_two.loss(end) - instance_two.least_loss < 1e-6, family, 0)
    return {
        "axis": axis,
        "time": [None if np.isnan(t) else t for t in reached],
        "family": family,
        "off_line_stuck": int((np.isnan(reached) & ~on_line).sum()),
        "on_line_stuck": int((np.isnan(reached) & on_line).sum()),
        "on_line": int(on_line.sum()),
    }


def check_basin(result: Result, run: Run) -> None:
    got = [result["off_line_stuck"], result["on_line_stuck"]]
    expected = [0, result["on_line"]]
    run.check(
        "only U = −u ends at the saddle (stuck off, on the line)", expected=expected, got=got, holds=got == expected
    )


def tolerance(config: GradientFlowConfig, run: Run) -> Result:
    """Drift of the invariant against the solver's relative tolerance, for both instances."""
    rows = []
    for rtol in 10.0 ** -np.arange(3, 14):
        row: Result = {"rtol": rtol}
        for name, instance, size in config.instances:
            start = config.init_scale * run.rng(3, size).standard_normal((config.repeats, size))
            times = np.linspace(0, config.horizon_of(instance), 61)
            path = flow(instance.velocity, start, times, rtol=rtol, atol=rtol / 10)
            row[name] = np.abs(instance.invariant(path) - instance.invariant(path[:1])).max()
        rows.append(row)
    return {"rows": rows}


def spectrum(config: GradientFlowConfig, run: Run) -> Result:
    """The Hessian's eigenvalues along one flow of each instance: from the saddle's to the optimum's."""
    result: Result = {}
    for name, instance, size, unit in (
        ("I", InstanceI(np.diag(config.spectrum[:2]), config.n), 5, 1.0),
        ("II", config.instance_two, 4, 1 / config.variance**2),
    ):
        start = 1e-3 * run.rng(4, size).standard_normal((1, size))
        times = np.linspace(0, 25 * unit, 126)
        path = flow(instance.velocity, start, times)[:, 0]
        values = np.linalg.eigvalsh(hessians(instance, path))
        result[name] = {"times": times, "eigenvalues": values.T, "loss": instance.loss(path)}
    return result


def escape(config: GradientFlowConfig, run: Run) -> Result:
    """Time to halve the excess loss against the scale of the start: slope of t against log(1/scale), beside 1/λ².

    A flow that does not get there in 60/λ² has no time (NaN).
    """
    instance_two = config.instance_two
    directions = run.rng(5).standard_normal((config.repeats, 4))
    level = 0.5 * (instance_two.least_loss + config.variance / 2)
    rows = []
    for scale in config.scales:
        times = np.linspace(0, 60 / config.variance**2, 3001)
        loss = instance_two.loss(flow(instance_two.velocity, scale * directions, times, rtol=1e-10, atol=1e-13 * scale))
        halved = loss < level
        rows.append(np.where(halved.any(axis=0), times[halved.argmax(axis=0)], np.nan))
    times_by_seed = np.array(rows).T
    return {
        "scales": config.scales,
        "time": band(times_by_seed),
        "slope": linear_fit(np.log(1 / np.array(config.scales)), times_by_seed),
        "expected": 1 / config.variance**2,
    }


def check_escape(result: Result, run: Run) -> None:
    got, expected = result["slope"]["mean"], result["expected"]
    holds = got is not None and abs(got - expected) < 0.02 * expected
    run.check("escape time over log(1/scale)", expected=expected, got=got, holds=holds)


def stochastic(config: GradientFlowConfig, run: Run) -> Result:
    """Instance II: SGD on fresh batches against the ODE at t = step × rate, for each learning rate."""
    instance_two, repeats = config.instance_two, max(5, config.repeats // 2)
    sampler = linear_regression(np.array([[config.variance]]), config.n)
    start = np.repeat(0.3 * run.rng(6).standard_normal((1, 4)), repeats, axis=0)
    result: Result = {"rates": config.rates, "gaps": [], "curves": []}
    for i, rate in enumerate(config.rates):
        steps = round(8 / rate)
        path = sgd(sampler, run.rng(7, i), start, rate, steps, config.batch)
        times = rate * np.arange(steps + 1)
        exact = flow(instance_two.velocity, start[:1], times)
        result["gaps"].append(np.sqrt(((path - exact) ** 2).sum(-1)).max(axis=0))
        stride = max(1, steps // 80)
        result["curves"].append({"times": times[::stride], "sgd": band(instance_two.loss(path[::stride]).T)})
        result["ode"] = {"times": times[::stride], "loss": instance_two.loss(exact[::stride, 0])}
    gaps = np.array(result.pop("gaps")).T
    return result | {"gap": band(gaps), "slope": loglog(config.rates, gaps)}


def general(config: GradientFlowConfig, run: Run) -> Result:
    """The full system in d = 2, with all parameters and with separate keys and queries, on Gaussian and other data."""
    covariance = np.diag(config.spectrum[:2])
    data = {
        "gaussian_exact": gaussian_moments(covariance, config.n),
        "student_t_estimated": estimated_moments(heavy_tailed(config.n), run.rng(8), config.prompts // 20),
    }
    instance_one, times = InstanceI(covariance, config.n), np.linspace(0, config.patience, 321)
    result: Result = {"times": times, "least_loss": instance_one.least_loss, "data": {}}
    for i, (name, moments) in enumerate(data.items()):
        plain = config.init_scale * run.rng(9, i).standard_normal((config.repeats, 9))
        joint = flow(moments.velocity, plain, times)
        split = flow(
            lambda theta, moments=moments: moments.keys_queries_velocity(theta, 3),  # type: ignore[misc]
            3 * config.init_scale * run.rng(10, i).standard_normal((config.repeats, 3 + 9 + 6)),
            times,
        )
        result["data"][name] = joint_parameters(moments, joint) | separate_keys_queries(moments, split)
    return result


def check_general(result: Result, run: Run) -> None:
    for name, data_result in result["data"].items():
        got = max(data_result["drift"], data_result["keys_queries_drift"])
        run.check(
            f"invariants of the full system, {figures.DATA_LABELS[name]}",
            expected="<= 1e-9",
            got=got,
            holds=got <= 1e-9,
        )
    lowest = result["data"]["gaussian_exact"]["lowest_eigenvalue_where_stuck"]
    if lowest is not None:  # some flows of W end above L*
        name = "the full system, Gaussian, where flows of W are stuck: lowest Hessian eigenvalue"
        run.check(name, expected=">= -1e-4", got=lowest, holds=lowest >= -1e-4)


def monte_carlo(config: GradientFlowConfig, run: Run) -> Result:
    """The loss formulas against the loss of simulated prompts, at random parameters."""
    rows = []
    for name, instance, size in config.instances:
        covariance = np.diag(config.spectrum) if name == "I" else np.array([[config.variance]])
        H, x, y = prompts(linear_regression(covariance, config.n), run.rng(11, size), config.prompts // 4)
        for repeat in range(5):
            theta = 0.4 * run.rng(12, size, repeat).standard_normal(size)
            v, W = _parameters(theta, len(covariance), name)
            errors = 0.5 * (np.einsum("a,sab,bc,sc->s", v, H, W, x, optimize=True) - y) ** 2
            spread = errors.std() / np.sqrt(len(errors))
            rows.append({"name": name, "loss": instance.loss(theta), "simulated": errors.mean(), "error": spread})
    return {"rows": rows}


def _parameters(theta: np.ndarray, d: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """v [d+1] and W [d+1, d] of the full system for an instance's theta."""
    if name == "II":
        return theta[:2], theta[2:, None]
    return np.append(np.zeros(d), theta[0]), np.vstack([theta[1:].reshape(d, d), np.zeros((1, d))])


def check_monte_carlo(result: Result, run: Run) -> None:
    worst = max(abs(row["loss"] - row["simulated"]) / row["error"] for row in result["rows"])
    run.check("simulated loss less formula, in standard errors", expected="< 4", got=worst, holds=worst < 4)


STUDIES = {
    "flows": Study(flows, figures.flows, check_flows, figures.flows_panels, (9, 4)),
    "critical": Study(critical, figures.critical, check_critical),
    "phase": Study(phase, figures.phase, check_phase, figures.phase_panels, (9, 4.2)),
    "basin": Study(basin, figures.basin, check_basin, None, (9, 4)),
    "tolerance": Study(tolerance, figures.tolerance),
    "spectrum": Study(spectrum, figures.spectrum, None, figures.spectrum_panels, (9, 4)),
    "escape": Study(escape, figures.escape, check_escape, figures.escape_panels),
    "sgd": Study(stochastic, figures.stochastic, None, figures.stochastic_panels, (9, 4)),
    "general": Study(general, figures.general, check_general, None, (9, 4)),
    "monte_carlo": Study(monte_carlo, figures.monte_carlo, check_monte_carlo),
}
