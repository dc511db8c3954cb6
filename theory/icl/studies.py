"""The in-context classification studies: the data of each figure and the claims that are checked."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from theory.icl import figures
from theory.icl.classical import LEARNERS, classical_error
from theory.icl.data import draw, in_domain
from theory.icl.experiment import IclConfig, evaluate, place_of, prompts_of, trained
from theory.icl.model import Models, Setting, dense_loss, misclassified, prefix_outputs, train
from theory.icl.pruning import ORDERS, pruned, row_norms
from theory.icl.three_layers import S1_READINGS, layers
from theory.lab import Result, Study, band, draw_speed, first_below, loglog, plain, required_fit
from theory.training import steps_to_level, training_curves, training_speed
from training.run import Run

READINGS: dict[str, Any] = {  # read by eye from the paper's figures, at context length 20
    "alpha": {"in_domain": [7e-2, 4.8e-2, 2e-2], "out_of_domain": [7e-2, 4.8e-2, 1e-2]},
    "classical": {
        "0.8": {
            "in_context": 1e-3,
            "logistic": 1.5e-3,
            "3-NN": 2e-3,
            "1-NN": 2.7e-3,
            "Gaussian SVM": 5.5e-3,
            "linear SVM": 1.2e-2,
        },
        "0.6": {
            "in_context": 1.5e-3,
            "logistic": 3.5e-3,
            "3-NN": 9e-3,
            "1-NN": 7e-3,
            "Gaussian SVM": 1.4e-2,
            "linear SVM": 3.5e-2,
        },
    },
}


def mechanism(config: IclConfig, run: Run) -> Result:
    """Over training: |W_Q p| of out-of-domain patterns, attention on the query's pattern, angles of the top neurons."""
    _, rows = trained(config, run)
    return training_curves(rows)


def check_mechanism(result: Result, run: Run) -> None:
    shown = result["curves"]["attention"]["mean"]
    holds = shown[-1] > 0.85 > shown[0]
    run.check(
        "attention on the query's pattern, start and end", expected="> 0.85", got=[shown[0], shown[-1]], holds=holds
    )
    norm = result["curves"]["query_norm"]["mean"]
    holds = norm[-1] > 1.5 * norm[0]
    run.check("|W_Q p| grows", expected="> 1.5 times", got=[norm[0], norm[-1]], holds=holds)


def unseen(config: IclConfig, run: Run) -> Result:
    """Errors on unseen in-domain tasks and out of domain against the context length."""
    models, _ = trained(config, run)
    result: Result = {"lengths": config.lengths, "places": {}}
    for key, place in enumerate(("unseen", "mean", "orthonormal")):
        errors = evaluate(config, run, models, config.data(), place, config.alpha, 10 + key)
        result["places"][place] = {name: band(values) for name, values in errors.items()}
    return result


def check_unseen(result: Result, run: Run) -> None:
    error = result["places"]["unseen"]["error"]
    lengths = result["lengths"]
    length = 20 if 20 in lengths else lengths[-1]
    mean, high = (error[name][lengths.index(length)] for name in ("mean", "high"))
    name = f"error on unseen tasks, context {length} (mean, and its upper 95 %)"
    run.check(name, expected="mean <= 1e-3", got=[mean, high], holds=mean <= 1e-3)


def tasks_seen(config: IclConfig, run: Run) -> Result:
    """Error on unseen tasks against the number of training tasks, from M1 on, in-domain."""
    counts = [k * config.M1 for k in range(1, config.M1 - 1)]
    rows = [band(run.step(f"tasks-{count}", partial(_errors_after_training, count, config, run))) for count in counts]
    return {"counts": counts, "lengths": config.lengths, "rows": rows}


def _errors_after_training(count: int, config: IclConfig, run: Run) -> list[list[float]]:
    """Errors on unseen tasks [models, lengths] after training on ``count`` tasks."""
    setting = config.setting(torch.full((config.rate_models,), config.alpha), count)
    models = Models.start(setting, run.derive_seed(20, count))
    models = train(models, setting, lambda s: run.derive_seed(21, count, s), 0, config.iterations, lambda *_: None)
    trained_config = config.model_copy(update={"tasks": count})
    return plain(evaluate(trained_config, run, models, config.data(), "unseen", config.alpha, 30 + count)["error"])


def s1(config: IclConfig, run: Run) -> Result:
    """Out-of-domain error by the coefficient sum S_1, for both constructions of the patterns."""
    models, _ = trained(config, run)
    values = (0.5, 0.7, 0.9, 1.1, 1.3)
    result: Result = {"values": values, "lengths": config.lengths, "readings": S1_READINGS, "kinds": {}}
    for i, kind in enumerate(("mean", "orthonormal")):
        errors = [
            evaluate(config, run, models, config.data(), kind, config.alpha, 100 + 10 * i + j, value)["error"]
            for j, value in enumerate(values)
        ]
        result["kinds"][kind] = [band(value_errors) for value_errors in errors]
    return result


def alpha(config: IclConfig, run: Run) -> Result:
    """In- and out-of-domain error by α'."""
    models, _ = trained(config, run)
    values = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    result: Result = {"values": values, "lengths": config.lengths, "readings": READINGS["alpha"], "places": {}}
    for i, (name, place) in enumerate((("in_domain", "unseen"), ("out_of_domain", "mean"))):
        errors = [
            evaluate(config, run, models, config.data(), place, value, 200 + 10 * i + j)["error"]
            for j, value in enumerate(values)
        ]
        result["places"][name] = [band(value_errors) for value_errors in errors]
    return result


def required(config: IclConfig, run: Run, error: float = 0.02) -> Result:
    """Context to an error of 0.02 against α', unseen tasks and out of domain, and training context against α."""
    models, _ = trained(config, run)
    lengths = tuple(sorted({round(x) for x in np.geomspace(2, 60, 24)}))
    fewer_prompts = config.model_copy(update={"prompts": min(config.prompts, 1000), "lengths": lengths})
    result: Result = {"error": error, "fits": {}}
    for i, place in enumerate(("unseen", "mean")):
        needed = []
        for j, value in enumerate(config.test_alphas):
            errors = evaluate(fewer_prompts, run, models, config.data(), place, value, 600 + 10 * i + j)["error"]
            needed.append([first_below(lengths, row, error) for row in errors])
        result["fits"][place] = required_fit(config.test_alphas, np.array(needed).T, -1, "context")
    rows = [run.step(f"required-{n}", partial(_errors_by_length, n, fewer_prompts, run)) for n in config.train_lengths]
    errors = np.array(rows).reshape(len(rows), len(config.train_alphas), -1).T  # [models, α, lengths]
    needed = [[first_below(config.train_lengths, curve, error) for curve in by_alpha] for by_alpha in errors]
    result["fits"]["training"] = required_fit(config.train_alphas, needed, -1, "training context")
    return result


def _errors_by_length(length: int, config: IclConfig, run: Run) -> list[float]:
    """Errors on unseen tasks, context 30, after training on prompts of ``length``: [α · models]."""
    alphas = torch.tensor(config.train_alphas).repeat_interleave(config.rate_models)
    setting = config.model_copy(update={"length": length}).setting(alphas)
    models = Models.start(setting, run.derive_seed(70, length))
    models = train(
        models, setting, lambda s: run.derive_seed(71, length, s), 0, config.iterations, lambda *_: run.stop_if_asked()
    )
    tested = config.model_copy(update={"lengths": (30,)})
    return plain(evaluate(tested, run, models, config.data(), "unseen", config.alpha, 700 + length)["error"][:, 0])


def classical(config: IclConfig, run: Run) -> Result:
    """In-context learning against learners trained on each prompt's examples, on the same out-of-domain prompts."""
    models, _ = trained(config, run)
    result: Result = {"lengths": (5, 10, 20), "readings": READINGS["classical"], "kinds": {}}
    for k, kind in enumerate(("mean", "orthonormal")):
        result["kinds"][kind] = {}
        for j, value in enumerate((0.8, 0.6)):
            key = 1000 * (300 + 10 * k + j)
            rows = [
                run.step(
                    f"classical-{k}-{j}-{i}",
                    partial(_classical_errors, config, run, models.single(i), kind, value, key, i),
                )
                for i in range(len(models.Q))
            ]
            result["kinds"][kind][f"{value:g}"] = {name: band([row[name] for row in rows]) for name in rows[0]}
    return result


def _classical_errors(
    config: IclConfig, run: Run, model: Models, kind: str, alpha: float, key: int, index: int
) -> Result:
    """Errors at contexts of 5, 10 and 20 of one model and of each classical learner, on the same prompts."""
    data, lengths = config.data(), [5, 10, 20]
    domain, pairs, relevant = place_of(config, run, data, kind, 1.0, index)
    batch = prompts_of(run, data, pairs, alpha, max(lengths), config.classical_prompts, key + index, relevant)
    tokens, labels = domain.tokens(batch, data)[0], batch.label[0]
    outputs = prefix_outputs(model, tokens, lengths)
    x, y = tokens[..., : data.d].numpy(), labels.numpy()
    in_context_errors = {"in_context": misclassified(outputs, labels[:, -1:]).mean(0).tolist()}
    return in_context_errors | {name: [classical_error(name, x, y, length) for length in lengths] for name in LEARNERS}


def pruning(config: IclConfig, run: Run) -> Result:
    """Hinge loss and 0/1 error when neurons are pruned, smallest, random or largest rows first; the rows' norms."""
    models, _ = trained(config, run, pruning=True)
    data = config.data(config.pruning_beta)
    fractions = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8)
    result: Result = {"fractions": fractions, "norms": band(row_norms(models).numpy()), "orders": {}}
    short = config.model_copy(update={"lengths": (config.length,), "prompts": min(config.prompts, 2000)})
    for order in ORDERS:
        generator = torch.Generator().manual_seed(run.derive_seed(40))
        rows = [
            evaluate(short, run, pruned(models, fraction, order, generator), data, "unseen", config.alpha, 400)
            for fraction in fractions
        ]
        result["orders"][order] = {
            name: band(np.concatenate([row[name] for row in rows], axis=1)) for name in ("hinge", "error")
        }
    return result


def check_pruning(result: Result, run: Run) -> None:
    index = result["fractions"].index(0.4)
    got = {order: result["orders"][order]["hinge"]["mean"][index] for order in ORDERS}
    holds = got["small"] < got["random"] < got["large"]
    run.check("hinge loss, 40 % pruned", expected="small < random < large", got=got, holds=holds)


def rates(config: IclConfig, run: Run, level: float = 0.05) -> Result:
    """Steps to a training loss of 0.05 against α and β, the seeds of a value trained as one batch."""
    result: Result = {"level": level, "expected": -2 / 3, "fits": {}}
    for name, values in (("alpha", config.rate_alphas), ("beta", config.rate_betas)):
        needed = []
        for j, value in enumerate(values):
            alpha, beta = (value, config.beta) if name == "alpha" else (config.alpha, value)
            setting = config.setting(torch.full((config.rate_models,), alpha), beta=beta)
            key = j + (10 if name == "beta" else 0)
            needed.append(run.step(f"rates-{name}-{j}", partial(_steps_to_loss, config, run, setting, key, level)))
        fit = {"needed": band(np.array(needed).T), "slope": loglog(values, np.array(needed).T)}
        result["fits"][name] = {"values": values} | fit
    return result


def scaling(config: IclConfig, run: Run, level: float = 0.05) -> Result:
    """Steps to a training loss of 0.05 against M1, beside the slope of the theorem's M1 √log M1 at the same values.

    There are 2 M1 training tasks, and d is the same for all.
    """
    values, needed = np.array(config.rate_patterns), []
    d = max(config.d, int(values.max()) + config.M2)
    for value in config.rate_patterns:
        varied = config.model_copy(update={"M1": value, "tasks": 2 * value, "d": d})
        setting = varied.setting(torch.full((config.rate_models,), config.alpha))
        needed.append(run.step(f"scaling-{value}", partial(_steps_to_loss, config, run, setting, 20 + value, level)))
    expected = round(loglog(values, values * np.sqrt(np.log(values)))["mean"], 2)
    return {"error": level, "fits": {"M1": required_fit(values, np.array(needed).T, expected, "steps")}}


def _steps_to_loss(config: IclConfig, run: Run, setting: Setting, key: int, level: float) -> list[float]:
    """Steps until the training loss, over ten steps, is at the level [R]; NaN if never."""
    losses: list[Tensor] = []
    models = Models.start(setting, run.derive_seed(50, key))
    train(
        models,
        setting,
        lambda s: run.derive_seed(51, key, s),
        0,
        config.rate_iterations,
        lambda step, models, loss: losses.append(loss),
    )
    return steps_to_level(torch.stack(losses), level).tolist()


def speed(config: IclConfig, run: Run) -> Result:
    """Milliseconds a run and SGD step over a whole training: as one batch, run by run, plain autograd run by run."""
    steps = config.iterations

    def train_runs(count: int) -> None:
        setting = config.setting(torch.full((count,), config.alpha))
        train(Models.start(setting, 0), setting, lambda s: s, 0, steps, lambda *_: None)

    return training_speed(train_runs, partial(_train_plainly, config, steps), steps)


def _train_plainly(config: IclConfig, steps: int) -> None:
    """SGD of one run by autograd on `dense_loss`, on prompts of the same distribution."""
    setting = config.setting(torch.full((1,), config.alpha))
    models, generator = Models.start(setting, 0).single(0), torch.Generator().manual_seed(0)
    domain = in_domain(setting.data)
    for _ in range(steps):
        batch = draw(generator, setting.data, setting.pairs, setting.lengths, setting.alphas, setting.batch)
        parameters = [parameter.requires_grad_() for parameter in models.parameters]
        loss = dense_loss(models, domain.tokens(batch, setting.data)[0], batch.label[0, :, -1])
        gradients = torch.autograd.grad(loss, parameters)
        models = Models(*(p.detach() - setting.rate * g for p, g in zip(parameters, gradients, strict=True)))


STUDIES = {
    "mechanism": Study(mechanism, figures.mechanism, check_mechanism, figures.mechanism_panels, (9, 6)),
    "unseen": Study(unseen, figures.unseen, check_unseen, figures.unseen_panels),
    "tasks": Study(tasks_seen, figures.tasks_seen),
    "s1": Study(s1, figures.s1, None, figures.s1_panels, (9, 3.8)),
    "alpha": Study(alpha, figures.alpha, None, figures.alpha_panels, (9, 3.8)),
    "classical": Study(classical, figures.classical, None, figures.classical_panels, (9, 7)),
    "pruning": Study(pruning, figures.pruning, check_pruning, figures.pruning_panels, (12, 3.8)),
    "rates": Study(rates, figures.rates, None, None, (9, 3.8)),
    "scaling": Study(scaling, figures.scaling, None, None, (5, 3.8)),
    "required": Study(required, figures.required, None, None, (12, 3.8)),
    "layers": Study(layers, figures.layers, None, None, (9, 3.8)),
    "speed": Study(speed, draw_speed),
}
