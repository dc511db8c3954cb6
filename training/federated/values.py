"""`iro run federated.values`: a value function trained on the clients' private rollouts.

Each client has private prompts (openings of film reviews), samples the frozen model on them and grades the completions.
The server receives updates of a linear value function, and decodes with the result. Clients also share sums: of rewards
and their squares, of each block's variance, and the number of their completions that hold each token.

Compared on held-out prompts at equal numbers of base tokens: samples, the best sample by the reward itself, and guided
search by the federated value function and by a value function fitted to the pooled data (ridge, `value_heads.fit`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from training.federated.buffered import FederatedSettings, explain_divergence
from training.federated.delays import LARGE, official
from training.federated.rules import RULES
from training.federated.simulator import Simulator
from training.intervals import band
from training.run import Job, JobConfig, Run, derive_seed, rng_of

if TYPE_CHECKING:
    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.graders.base import Grader
    from training.iro.data import Prompt
    from value_heads.features import Block, FeatureSpec
    from value_heads.fit import HeadFit, Rows

PROMPTS, ROLLOUTS, HELD_OUT, FEDERATED, DELAYS, BOOTSTRAP = range(6)  # streams of random numbers
ROWS = 16  # sampled rows per prompt, for every method
TRAINING_PROMPTS, HELD_OUT_PROMPTS = 4000, 1000  # of the film reviews
MAX_SEEDS = 1000
METHODS = ("base", "best-of-16", "federated", "pooled")


class FederatedValuesConfig(JobConfig):
    """The clients, their prompts and rollouts, and the server."""

    seeds: int = Field(5, ge=1, le=MAX_SEEDS, description="Repetitions with separate prompts.")
    clients: int = Field(8, ge=2, description="Clients, each with prompts of its own.")
    prompts_per_client: int = Field(5, ge=2, description="A client's prompts. The last of each selects the settings.")
    rollouts_per_prompt: int = Field(8, ge=2, description="Plain samples of each prompt.")
    heldout_prompts: int = Field(
        8, ge=2, le=HELD_OUT_PROMPTS, description="Prompts of the comparison, which no client has."
    )
    max_tokens: int = Field(24, ge=4, description="Maximum length of a completion.")
    counted_tokens: int = Field(500, ge=1, description="How many of the most common tokens get a weight of their own.")
    rule: Literal["fadas", "fadas-min", "fadas-divide", "fedbuff", "fedadam", "fedams", "fedavg"] = Field(
        "fadas-divide", description="How the server uses the clients' updates."
    )
    rates: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        (0.003, 0.01, 0.03), min_length=1, description="Server steps to try."
    )
    penalties: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        (0.01, 0.1), min_length=1, description="Weights of |b|² in standard units, to try."
    )
    rounds: int = Field(100, ge=1, description="Steps of the server.")
    concurrency: int = Field(4, ge=1, description="Clients at work at once.")
    buffer_size: int = Field(2, ge=1, description="Client updates of one step of the server.")
    local_steps: int = Field(10, ge=1, description="Steps of SGD of a client update.")
    local_rate: float = Field(0.1, gt=0, allow_inf_nan=False, description="Step size of SGD at a client.")
    batch_size: int = Field(64, ge=1, description="Examples of a step of SGD at a client.")

    @model_validator(mode="after")
    def _enough_clients(self) -> FederatedValuesConfig:
        if self.concurrency > self.clients:
            raise ValueError(f"concurrency {self.concurrency} is more than the {self.clients} clients there are")
        return self

    @model_validator(mode="after")
    def _enough_prompts(self) -> FederatedValuesConfig:
        prompts = self.clients * self.prompts_per_client
        if prompts > TRAINING_PROMPTS:
            raise ValueError(f"clients times prompts_per_client is {prompts}, above the {TRAINING_PROMPTS} prompts")
        return self

    @property
    def repetition_seeds(self) -> range:
        """One for each repetition; none is of a run with another ``seed``."""
        first = MAX_SEEDS * self.seed
        return range(first, first + self.seeds)


class ClientRows(NamedTuple):
    """A client's rows in standard units, centred within each prompt and chunk."""

    features: Tensor  # [N, F]
    targets: Tensor  # [N]


def run(config: FederatedValuesConfig, run: Run) -> dict[str, Any]:
    from iro_server.cli.demo.sentiment import sentiment_grader_source
    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.engines.prepare import prepare_model
    from iro_server.graders.parsing import parse_grader

    spec = {"type": "python", "name": "sentiment", "source": sentiment_grader_source()}
    with parse_grader(spec) as grader, EmbeddedEngine(prepare_model()) as engine:
        seeds = [Seed(config, run, engine, grader, seed).evaluate() for seed in config.repetition_seeds]
    summary = summarise(config, seeds)
    agreement = summary["correlation"]["federated with pooled"]["mean"]
    run.check(
        "the federated value's correlation with the pooled one", expected="> 0.5", got=agreement, holds=agreement > 0.5
    )
    if config.seeds > 1:
        low = summary["differences"]["federated - base"]["interval"][0]
        run.check("held-out reward, federated value less base", expected="interval above 0", got=low, holds=low > 0)
    return {"summary": summary, "per_seed": seeds}


class Seed:
    """One repetition. ``engine`` is the frozen model, ``grader`` the reward."""

    def __init__(
        self, config: FederatedValuesConfig, run: Run, engine: EmbeddedEngine, grader: Grader, seed: int
    ) -> None:
        from training.iro.config import default_feature_spec

        self.config, self.run, self.engine, self.grader, self.seed = config, run, engine, grader, seed
        self.spec = default_feature_spec(engine.info, config.max_tokens)
        self.training, self.held_out = self.prompts()

    def prompts(self) -> tuple[list[list[Prompt]], list[Prompt]]:
        """Of each client, and the held-out prompts."""
        from iro_server.cli.demo.data import prompt_rows
        from iro_server.engines.prompts import item_prompt_ids
        from training.iro.data import Prompt

        train, held_out = prompt_rows(TRAINING_PROMPTS, HELD_OUT_PROMPTS)
        per_client, clients = self.config.prompts_per_client, self.config.clients
        sampled = rng_of(self.seed, PROMPTS).choice(TRAINING_PROMPTS, clients * per_client, replace=False).tolist()
        tested = (
            rng_of(self.seed, PROMPTS, 1).choice(HELD_OUT_PROMPTS, self.config.heldout_prompts, replace=False).tolist()
        )
        rows = [(i, train[i]) for i in sampled] + [(TRAINING_PROMPTS + i, held_out[i]) for i in tested]
        prompts = [Prompt(i, tuple(item_prompt_ids(self.engine.tokenizer, row)), row) for i, row in rows]
        parts = [prompts[i * per_client : (i + 1) * per_client] for i in range(clients)]
        return parts, prompts[len(sampled) :]

    def roll_out(self, name: str, prompts: Sequence[Prompt], params: Any, stack: Any, keep: bool) -> tuple[str, str]:
        """Completions of prompts and their rewards, as two steps. Gives the steps' names."""
        from training.iro.rollouts import Batch, roll_out, rollout_sampling, stored

        names = (f"{self.seed}-{name}-rollouts", f"{self.seed}-{name}-rewards")
        stream = HELD_OUT if prompts[0].index >= TRAINING_PROMPTS else ROLLOUTS
        seeds = [derive_seed(self.seed, stream, prompt.index) for prompt in prompts]
        sampling, spec = rollout_sampling(1.0, self.engine.info), self.spec if keep else None
        batch = Batch(prompts, seeds, sampling, params, self.config.max_tokens, stack, spec=spec)
        self.run.step(names[0], lambda: stored(roll_out(self.engine, batch)))
        self.run.step(names[1], partial(self.grade, names[0], prompts))
        return names

    def grade(self, rollouts: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
        from iro_server.graders.base import Sample
        from training.iro.rollouts import completions_of

        groups = completions_of(self.run, rollouts)
        texts = [str(self.engine.tokenizer.decode(row, skip_special_tokens=True)) for group in groups for row in group]
        items = [prompt.item for prompt, group in zip(prompts, groups, strict=True) for _ in group]
        pairs = [(Sample(text), item) for text, item in zip(texts, items, strict=True)]
        grades = iter([grade.reward for grade in self.grader.grade_many(pairs)])
        return {"rewards": [[next(grades) for _ in group] for group in groups]}

    def fit(self) -> dict[str, Any]:
        """Weights [F] of the federated, the pooled and each client's value function."""
        from iro_server.decoding.base import SearchParams
        from training.iro.config import block_scales
        from training.iro.fit import Scale, Shards
        from training.iro.rollouts import commonest_tokens, completions_of
        from value_heads.fit import Moments, standard_units

        plain = SearchParams(beam_width=1, num_successors=self.config.rollouts_per_prompt, chunk_length=None)
        with self.run.progress(f"Seed {self.seed}: rollouts of", self.config.clients + 1) as advance:
            names = []
            for client, prompts in enumerate(self.training):
                names.append(self.roll_out(f"client-{client}", prompts[:-1], plain, None, True))
                advance()
            choosing = self.roll_out("choosing", [prompts[-1] for prompts in self.training], plain, None, True)
            advance()

        def compute() -> dict[str, Any]:
            rewards = np.array([r for _, name in names for group in self.run.load(name)["rewards"] for r in group])
            scale = Scale(float(rewards.mean()), float(rewards.std()))
            completions = (
                row for rollouts, _ in names for group in completions_of(self.run, rollouts) for row in group
            )
            counted = commonest_tokens(completions, self.config.counted_tokens)
            spec = self.spec.model_copy(update={"counted": counted})
            rows, judges = (list(Shards(self.run, steps, scale, spec)) for steps in (names, [choosing]))
            scales = block_scales(spec)
            pooled, alone = ridge_fits(spec, rows, judges, scales)
            judge = Moments(judges, within=True)
            variance = Moments(rows, within=True).centred()[0].diagonal().clamp(min=0)
            units = standard_units(spec, variance, scales).float()
            clients = [_centred(client_rows, units) for client_rows in rows]
            tried = {}
            for penalty in self.config.penalties:
                for rate in self.config.rates:
                    weight = federated(self.config, clients, rate, penalty, self.seed) / units
                    tried[judge.correlation(weight.double())] = (weight, rate, penalty)
            weight, rate, penalty = tried[max(tried)]
            chosen = {"rate": rate, "penalty": penalty, "pooled": pooled.chosen, "alone": [fit.chosen for fit in alone]}
            return {
                "counted": list(counted),
                "weights": {"federated": weight, "pooled": pooled.head.weight},
                "alone": [fit.head.weight for fit in alone],
                "chosen": chosen,
                "at_edge": edges(chosen, {"rate": self.config.rates, "penalty": self.config.penalties}),
            }

        return self.run.step(f"{self.seed}-fit", compute)

    def evaluate(self) -> dict[str, Any]:
        """Rewards of each held-out prompt by each method, and their correlations with each value function."""
        from iro_server.decoding.base import SearchParams
        from training.iro.fit import Scale, Shards
        from value_heads import ValueStack
        from value_heads.fit import Moments
        from value_heads.heads import LinearHead

        fitted = self.fit()
        spec = self.spec.model_copy(update={"counted": tuple(fitted["counted"])})
        stacks = {name: ValueStack([LinearHead(spec, w, 0.0)], [1.0]) for name, w in fitted["weights"].items()}
        sampled = SearchParams(beam_width=1, num_successors=ROWS, chunk_length=None)
        names = self.roll_out("base", self.held_out, sampled, None, True)
        guided = SearchParams(beam_width=2, num_successors=ROWS // 2, chunk_length=4)
        rewards = {name: self.roll_out(name, self.held_out, guided, stack, False)[1] for name, stack in stacks.items()}
        base = self.run.load(names[1])["rewards"]
        heldout_rewards = {
            "base": [float(np.mean(group)) for group in base],
            "best-of-16": [max(group) for group in base],
        }
        heldout_rewards |= {
            name: [group[0] for group in self.run.load(step)["rewards"]] for name, step in rewards.items()
        }
        judge = Moments(list(Shards(self.run, [names], Scale(), spec)), within=True)
        correlations = {name: judge.correlation(weight.double()) for name, weight in fitted["weights"].items()}
        correlations["alone"] = float(np.mean([judge.correlation(weight.double()) for weight in fitted["alone"]]))
        a, b = (fitted["weights"][name].double() for name in ("federated", "pooled"))
        spread = (a @ judge.xx @ a) * (b @ judge.xx @ b)
        correlations["federated with pooled"] = float(a @ judge.xx @ b / spread.sqrt())
        row = {
            "seed": self.seed,
            "rewards": heldout_rewards,
            "correlation": correlations,
            "chosen": fitted["chosen"],
            "at_edge": fitted["at_edge"],
        }
        means = {name: float(np.mean(values)) for name, values in heldout_rewards.items()}
        self.run.step(f"{self.seed}-report", lambda: self.run.metrics({"seed": self.seed, **means}, f"{means}"))
        return row


def ridge_fits(
    spec: FeatureSpec, rows: Sequence[Rows], choosing: Sequence[Rows], scales: Mapping[Block, float]
) -> tuple[HeadFit, list[HeadFit]]:
    """The fit to the pooled ``rows``, and one to each client's. Each selects its penalty on ``choosing``."""
    from value_heads.fit import fit_ridge

    fit = partial(fit_ridge, spec, heldout=choosing, within=True, block_scales=scales)
    return fit(train=rows), [fit(train=[client_rows]) for client_rows in rows]


def edges(chosen: Mapping[str, Any], grids: Mapping[str, Sequence[float]]) -> dict[str, list[bool]]:
    """By setting, for each choice whether it is the smallest or largest of several; ridge penalties are ``ALPHAS``."""
    from value_heads.fit import ALPHAS

    at_edge = {}
    for name, choice in chosen.items():
        grid, values = grids.get(name, ALPHAS), choice if isinstance(choice, list) else [choice]
        at_edge[name] = [len(grid) > 1 and value in (min(grid), max(grid)) for value in values]
    return at_edge


def _centred(rows: Rows, units: Tensor) -> ClientRows:
    _, group = rows.groups.unique(return_inverse=True)

    sizes = torch.bincount(group)

    def less_mean(values: Tensor) -> Tensor:
        sums = values.new_zeros(len(sizes), *values.shape[1:]).index_add(0, group, values)
        return values - (sums / sizes.view(-1, *[1] * (values.ndim - 1)))[group]

    return ClientRows(less_mean(rows.features.float()) / units, less_mean(rows.targets.float()))


def federated(
    config: FederatedValuesConfig, rows: Sequence[ClientRows], rate: float, penalty: float, seed: int
) -> Tensor:
    """b [F] in standard units after the configured rounds on mean (y - x·b)² + penalty |b|², over all clients."""

    def train(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        cohort = zip(clients, seeds, strict=True)
        return [(_steps(config, rows[c], params, penalty, seed), len(rows[c].targets)) for c, seed in cohort]

    settings = FederatedSettings(
        clients=config.clients,
        concurrency=config.concurrency,
        buffer_size=config.buffer_size,
        seed=derive_seed(seed, FEDERATED),
    )
    delays = official(config.clients, LARGE, rng_of(seed, DELAYS))
    zero = torch.zeros(rows[0].features.shape[1])
    simulator = Simulator(settings, RULES[config.rule](lr=rate), train, delays, zero)
    with explain_divergence(f"{config.rule} with the rate {rate:g} and the penalty {penalty:g}", "local_rate or rates"):
        simulator.run(config.rounds)
    return simulator.params


def _steps(config: FederatedValuesConfig, rows: ClientRows, start: Tensor, penalty: float, seed: int) -> Tensor:
    """Δ of the configured local steps."""
    generator = torch.Generator().manual_seed(seed)
    b = start
    for _ in range(config.local_steps):
        pick = torch.randint(len(rows.targets), (config.batch_size,), generator=generator)
        x = rows.features[pick]
        b = b - config.local_rate * (x.T @ (x @ b - rows.targets[pick]) / len(pick) + penalty * b)
    return b - start


def summarise(config: FederatedValuesConfig, seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds and prompts, with 95 % intervals: ``_interval``."""
    rewards = {name: np.array([seed["rewards"][name] for seed in seeds]) for name in METHODS}  # [seeds, prompts]
    pairs = [("federated", "base"), ("federated", "best-of-16"), ("federated", "pooled"), ("pooled", "best-of-16")]
    differences = {f"{a} - {b}": rewards[a] - rewards[b] for a, b in pairs}
    rng = rng_of(config.seed, BOOTSTRAP)
    correlations = {name: np.array([seed["correlation"][name] for seed in seeds]) for name in seeds[0]["correlation"]}
    return {
        "rewards": {name: _interval(values, rng) for name, values in rewards.items()},
        "differences": {name: _interval(values, rng) for name, values in differences.items()},
        "correlation": {name: _interval(values[:, None], rng) for name, values in correlations.items()},
    }


def _interval(values: np.ndarray, rng: np.random.Generator, resamples: int = 4000) -> dict[str, Any]:
    """Mean of [seeds, prompts] and its 95 % interval: the bootstrap's over seeds and, within them, prompts, or
    Student's over the seeds' means where that reaches further."""
    seeds, prompts = values.shape
    who = rng.integers(seeds, size=(resamples, seeds))
    which = rng.integers(prompts, size=(resamples, seeds, prompts))
    means = values[who[:, :, None], which].mean((1, 2))
    low, high = np.percentile(means, (2.5, 97.5))
    student = band(values.mean(axis=1))
    interval = [min(float(low), student["low"]), max(float(high), student["high"])]
    return {"mean": float(values.mean()), "interval": interval}


def draw(folder: Path) -> None:
    seeds = json.loads((folder / "result.json").read_text())["per_seed"]
    rewards = {name: band([np.mean(seed["rewards"][name]) for seed in seeds]) for name in METHODS}
    draw_rewards({"rewards": rewards}, folder / "figures" / "rewards.png")


def draw_rewards(content: dict[str, Any], path: Path) -> None:
    """Means over seeds, with Student intervals: ``content["rewards"]``, also that of a results file."""
    from matplotlib.figure import Figure

    cells = [content["rewards"][name] for name in METHODS]
    means = [cell["mean"] for cell in cells]
    spread = [[cell["mean"] - cell["low"] for cell in cells], [cell["high"] - cell["mean"] for cell in cells]]
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.bar(METHODS, means, yerr=spread, capsize=4, color=["0.7", "0.7", "C0", "C1"])
    axes.set_ylabel("held-out reward (logit of sentiment)")
    axes.set_title("means, 95 % Student intervals over seeds", fontsize=9)
    figure.savefig(path, dpi=130)


JOB = Job(
    name="federated.values",
    summary="A value function trained federatedly by FADAS on private rollouts, and decoding with it",
    Config=FederatedValuesConfig,
    run=run,
    presets={
        "smoke": {
            "seeds": 1,
            "clients": 3,
            "prompts_per_client": 2,
            "rollouts_per_prompt": 4,
            "heldout_prompts": 2,
            "max_tokens": 8,
            "counted_tokens": 50,
            "rounds": 60,
            "concurrency": 2,
            "rates": (0.01,),
        },
        "paper": {},
    },
    draw=draw,
)
