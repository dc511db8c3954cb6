"""The chain-of-thought studies: the data of each figure and the claims that are checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from theory.cot import figures
from theory.cot.data import SLIDES, Chain, training_batch, training_steps, violating_chain
from theory.cot.experiment import CotConfig, evaluate, trained
from theory.cot.model import Models, columns, dense_loss, queries, train
from theory.cot.rates import rates, scaling
from theory.cot.three_layers import layers
from theory.lab import Result, Study, band, draw_speed, first_below, required_fit
from theory.patterns import orthonormal_combinations
from theory.training import training_curves, training_speed
from training.run import Run

READINGS: dict[str, dict[str, list[float]]] = {  # read by eye from the paper's figures, at 100 test examples
    "alpha": {"cot": [3e-2, 3e-3, 1.6e-3, 1e-3], "icl": [2e-2, 6e-3, 4e-3, 1.7e-3]},
    "tau": {"cot": [1.2e-2, 1.8e-3, 1e-3, 1e-3]},
    "rho": {"cot": [2.8e-2, 9e-3, 8e-3, 1.8e-3]},
    "tau_o": {"icl": [2.8e-2, 5e-3, 4e-3, 2.5e-3]},
    "rho_o": {"icl": [4e-2, 1e-2, 6.5e-3, 3.8e-3]},
}


def mechanism(config: CotConfig, run: Run) -> Result:
    """The training loss, and the attention of a first step on testing prompts, over training."""
    _, rows = trained(config, run)
    return training_curves(rows)


def check_mechanism(result: Result, run: Run) -> None:
    same = result["curves"]["same_step_same_pattern"]["mean"]
    other_patterns = result["curves"]["same_step_other_pattern"]["mean"]
    run.check("attention on the same step and pattern", expected="> 0.9", got=same[-1], holds=same[-1] > 0.9)
    got = [other_patterns[0], max(other_patterns), other_patterns[-1]]
    holds = max(other_patterns) > 1.2 * other_patterns[0] and other_patterns[-1] < 0.5 * other_patterns[0]
    run.check(
        "attention on the same step, other patterns: start, peak, end", expected="rises, falls", got=got, holds=holds
    )


def _sweep(name: str, values: tuple[float, ...], kinds: tuple[str, ...], key: int) -> Study[CotConfig]:
    """Error against the number of test examples for each value of one of α', τ, ρ, τ_o, ρ_o."""

    def compute(config: CotConfig, run: Run) -> Result:
        models, _ = trained(config, run)
        result: Result = {"name": name, "values": values, "lengths": config.lengths, "readings": READINGS[name]}
        for kind in kinds:
            rows = []
            for j, value in enumerate(values):
                chain, alpha = _varied(config, name, kind, value)
                errors = evaluate(config, run, models, kind, chain, alpha, config.lengths, 10 * key + j)
                facts = {"tau": chain.tau, "rho": chain.rho, "tau_o": chain.tau_o, "rho_o": chain.rho_o}
                rows.append(band(errors) | {"value": value, "chain": facts})
                run.metrics({"study": name, "kind": kind, name: value, "error_at_100": rows[-1]["mean"][-1]})
            result[kind] = rows
        return result

    size = (4.5 * len(kinds), 3.8)
    return Study(compute, figures.sweep, None, figures.sweep_panels, size, partial(_chains, {name: values}, kinds))


def _chains(sweeps: Mapping[str, Sequence[float]], kinds: Sequence[str], config: CotConfig) -> None:
    """Make every chain of the sweeps. ValueError, with the value at which it stands, if the config allows no such."""
    for name, values in sweeps.items():
        for kind, value in itertools.product(kinds, values):
            try:
                _varied(config, name, kind, value)
            except ValueError as error:
                raise ValueError(f"at its {name}={value:g}, {error}") from error


def _varied(config: CotConfig, name: str, kind: str, value: float) -> tuple[Chain, float]:
    if name == "alpha":
        return (config.chain() if kind == "cot" else config.output_chain()), value
    chain_of = config.chain if name in ("tau", "rho") else config.output_chain
    return chain_of(**{name: value}), config.test_alpha


def condition(config: CotConfig, run: Run) -> Result:
    """CoT and ICL where Condition 1 holds, and where it fails for every start."""
    models, _ = trained(config, run)
    result: Result = {"lengths": config.lengths, "curves": {}}
    for i, (name, chain) in enumerate((("with", config.chain()), ("without", violating_chain(config.patterns)))):
        for j, kind in enumerate(("cot", "icl")):
            errors = evaluate(config, run, models, kind, chain, 0.8, config.lengths, 100 + 2 * i + j)
            result["curves"][f"{kind}_{name}"] = band(errors)
        result[name] = {"tau": chain.tau, "rho": chain.rho, "holds": chain.condition_1.mean()}
    return result


def _condition_fits(config: CotConfig) -> None:
    chain = violating_chain(config.patterns)
    _check_steps(chain, config)


def _check_steps(chain: Chain, config: CotConfig) -> None:
    """ValueError if a chain has positions whose codes no model is trained on."""
    if len(chain.matrices) > config.steps:
        raise ValueError(f"its chain has {len(chain.matrices)} steps, more than the models learn: steps={config.steps}")


def check_condition(result: Result, run: Run) -> None:
    cot, icl = (result["curves"][f"{kind}_without"]["mean"] for kind in ("cot", "icl"))
    holds = cot[-1] < 0.6 * cot[0] and icl[-1] > 0.5
    expected = "CoT falls, ICL stays above 0.5"
    run.check("without Condition 1, first and last", expected=expected, got=[cot[0], cot[-1], icl[-1]], holds=holds)


def matrices(config: CotConfig, run: Run) -> Result:
    """CoT and ICL on the config's matrices. The default, the slides', violates Condition 1 for one of two starts."""
    models, _ = trained(config, run)
    chain = Chain(np.array(config.transitions))
    curves = {
        kind: band(evaluate(config, run, models, kind, chain, 0.8, config.lengths, 110 + j))
        for j, kind in enumerate(("cot", "icl"))
    }
    facts = {"tau": chain.tau, "tau_o": chain.tau_o, "rho": chain.rho, "condition_1": chain.condition_1}
    slides = {"B": SLIDES.product, "tau": SLIDES.tau, "tau_o": SLIDES.tau_o}
    return {"lengths": config.lengths, "curves": curves, "slides": slides} | facts


def _matrices_fit(config: CotConfig) -> None:
    chain = Chain(np.array(config.transitions))
    _check_steps(chain, config)
    orthonormal_combinations(np.random.default_rng(0), config.M, chain.patterns, config.coefficient_sum)


def check_matrices(result: Result, run: Run) -> None:
    slides = result["slides"]
    expected: Result = {"B": [[0.56, 0.44], [0.64, 0.36]], "tau": 0.36, "tau_o": 0.56}
    holds = all(np.allclose(slides[name], value, atol=1e-12) for name, value in expected.items())
    run.check("the slides' B, τ and τ_o", expected=expected, got=slides, holds=holds)
    cot, icl = (result["curves"][kind]["mean"] for kind in ("cot", "icl"))
    got = [cot[0], cot[-1], min(icl)]
    if not all(result["condition_1"]):
        holds = cot[-1] < 0.4 * cot[0] and min(icl) > 0.3
        run.check("CoT falls where ICL stays at a floor", expected="CoT falls, ICL > 0.3", got=got, holds=holds)


REQUIRED = {  # exponents of the theorems' l_ts ≥ Ω((α'τρ)⁻²), an upper bound
    "alpha": (0.3, 0.45, 0.65, 1.0),
    "tau": (0.2, 0.28, 0.4, 0.55),
    "rho": (0.35, 0.47, 0.62, 0.8),
}


def required(config: CotConfig, run: Run, error: float = 0.02) -> Result:
    """Test examples to a CoT error of 0.02 against α', τ and ρ, each model's own log-log slope, beside −2."""
    models, _ = trained(config, run)
    lengths = tuple(sorted({round(x) for x in np.geomspace(3, 240, 20)}))
    fewer_prompts = config.model_copy(update={"prompts": config.required_prompts})
    result: Result = {"error": error, "fits": {}}
    for i, (name, values) in enumerate(REQUIRED.items()):
        needed, measured_values = [], []
        for j, value in enumerate(values):
            chain, alpha = _varied(config, name, "cot", value)
            key = 200 + 10 * i + j
            measure = partial(evaluate, fewer_prompts, run, models, "cot", chain, alpha, lengths, key)
            errors = run.step(f"required-{name}-{j}", partial(_listed, measure))
            needed.append([first_below(lengths, row, error) for row in errors])
            measured_values.append({"alpha": alpha, "tau": chain.tau, "rho": chain.rho}[name])
        by_model = np.array(needed).T
        result["fits"][name] = required_fit(measured_values, by_model, -2, "examples")
    return result


def _listed(measure: Callable[[], np.ndarray]) -> list[list[float]]:
    return measure().tolist()


def speed(config: CotConfig, run: Run, steps: int = 15) -> Result:
    """Milliseconds a run and SGD step: runs as one batch, the same code run by run, plain autograd run by run."""
    transitions = training_steps(0, config.M)

    def train_runs(count: int) -> None:
        setting = config.setting(torch.full((count,), config.alpha))
        train(Models.start(setting), setting, transitions, lambda s: s, 0, steps, lambda *_: None)

    train_runs(1)
    return training_speed(train_runs, partial(_train_plainly, config, steps), steps)


def _train_plainly(config: CotConfig, steps: int) -> None:
    """SGD of one run by autograd on `dense_loss`, on prompts of the same distribution."""
    setting = config.setting(torch.full((1,), config.alpha))
    models, generator = Models.start(setting), torch.Generator().manual_seed(0)
    transitions, query_columns = training_steps(0, config.M), queries(config.d, config.M, config.steps).T
    Q, K = models.Q[0].requires_grad_(), models.K[0].requires_grad_()
    for _ in range(steps):
        batch = training_batch(generator, transitions, config.steps, setting.lengths, setting.alphas, config.batch)
        query = query_columns[batch.query_step[0] * config.M + batch.query[0]]
        target = torch.nn.functional.one_hot(batch.target[0], config.d)
        loss = dense_loss(Q, K, columns(batch, config.d, config.M)[0], batch.live[0], query, target)
        dQ, dK = torch.autograd.grad(loss, (Q, K))
        with torch.no_grad():
            Q -= config.rate * dQ
            K -= config.rate * dK


STUDIES = {
    "attention": Study(mechanism, figures.mechanism, check_mechanism, figures.mechanism_panels),
    "alpha": _sweep("alpha", (0.4, 0.6, 0.8, 1.0), ("cot", "icl"), 1),
    "tau": _sweep("tau", (0.4, 0.5, 0.6, 0.7), ("cot",), 2),
    "rho": _sweep("rho", (0.5, 0.6, 0.7, 0.8), ("cot",), 3),
    "tau_o": _sweep("tau_o", (0.3, 0.4, 0.5, 0.6), ("icl",), 4),
    "rho_o": _sweep("rho_o", (0.3, 0.4, 0.5, 0.6), ("icl",), 5),
    "condition": Study(
        condition, figures.condition, check_condition, figures.condition_panels, requires=_condition_fits
    ),
    "matrices": Study(matrices, figures.matrices, check_matrices, requires=_matrices_fit),
    "required": Study(required, figures.required, None, None, (12, 3.8), partial(_chains, REQUIRED, ("cot",))),
    "rates": Study(rates, figures.rates, None, figures.rates_panels, (9, 3.8)),
    "scaling": Study(scaling, figures.scaling, None, None, (9, 3.8)),
    "layers": Study(layers, figures.layers, None, figures.layers_panels),
    "speed": Study(speed, draw_speed),
}
