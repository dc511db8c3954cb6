"""Whether any of the frozen model's states tells a good answer from a bad one: ``python -m benchmarks.probes --json``.

Samples of the frozen model to training and held-out prompts of a task, graded. A probe is a ridge regression of the
reward, less its mean over a prompt's samples, on one layer's state: at the answer's fourth token, where a search
decides first, at its last one, or averaged over all. A quarter of the training prompts chooses its penalty. Reported
on held-out prompts: the correlation within a prompt, and the reward of the sample that the probe picks among
``--samples``. Beside them a network on the layer that the training prompts prefer, and rules without training: the
likeliest sample, the most frequent text. What no probe sees, value functions of these states hardly learn from as many
samples.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.quality_report import interval_of_seeds
from benchmarks.record import command_line, computed_once, finish
from benchmarks.research.claims import estimate
from benchmarks.tables import interval_text, table
from benchmarks.tasks import TASKS
from benchmarks.tasks.task import Split, Task
from iro_server import JsonObject
from training.run import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

    from iro_server.engines.embedded import EmbeddedEngine

ALPHAS = np.logspace(0, 5, 11)
HIDDEN_UNITS = 64
AT_ONCE = 8  # prompts
PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "fourth": lambda states_TD: states_TD[:4][-1],
    "last": lambda states_TD: states_TD[-1],
    "mean": lambda states_TD: states_TD.mean(0),
}
EMBEDDINGS = "layer 0, mean"  # of the answer's tokens
CONTROLS = ("one sample", "best by the grader", "likeliest", "most frequent text")

Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Samples:
    """P prompts, N samples of each: ``rewards_PN``, ``logprobs_PN`` of the whole answer, ``texts``, and by layer and
    place the ``states`` [P, N, D]."""

    rewards_PN: np.ndarray
    logprobs_PN: np.ndarray
    texts: list[list[str]]
    states: dict[tuple[int, str], np.ndarray]


def sample(engine: EmbeddedEngine, task: Task, split: Split, prompts: int, count: int, seed: int) -> Samples:
    """Of the frozen model."""
    from benchmarks.bench_tasks.answers import best_of
    from iro_server.decoding.search import guided_search
    from iro_server.engines.prompts import item_prompt_ids
    from iro_server.graders.base import Sample
    from iro_server.graders.parsing import parse_grader
    from training.iro.rollouts import rollout_sampling

    rows, layers = task.prompts(split, prompts, seed), tuple(range(engine.info.num_layers + 1))
    sampling = rollout_sampling(1.0, engine.info)

    async def answers(number: int) -> list[tuple[list[int], float, dict[tuple[int, str], np.ndarray]]]:
        result = await guided_search(
            engine,
            item_prompt_ids(engine.tokenizer, rows[number]),
            best_of(count),
            replace(sampling, seed=derive_seed(seed, number)),
            task.max_tokens,
            keep_hidden=layers,
        )
        return [
            (
                final.tokens,
                sum(final.logprobs),
                {
                    (layer, name): place(final.hidden[layer]).numpy()
                    for layer in layers
                    for name, place in PLACES.items()
                },
            )
            for final in result.finals
        ]

    async def answer_all(
        places: Sequence[int],
    ) -> list[list[tuple[list[int], float, dict[tuple[int, str], np.ndarray]]]]:
        return await asyncio.gather(*map(answers, places))

    sampled = []
    for start in range(0, len(rows), AT_ONCE):
        places = range(start, min(start + AT_ONCE, len(rows)))
        with engine.lockstep(len(places)):
            sampled += asyncio.run(answer_all(places))
    texts = [
        [str(engine.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens, *_ in group] for group in sampled
    ]
    with parse_grader(task.grader()) as grader:
        pairs = [(Sample(text), row) for row, group in zip(rows, texts, strict=True) for text in group]
        rewards = [grade.reward for grade in grader.grade_many(pairs)]
    names = sampled[0][0][2]
    return Samples(
        np.array(rewards).reshape(len(rows), count),
        np.array([[logprob for _, logprob, _ in group] for group in sampled]),
        texts,
        {name: np.array([[states[name] for *_, states in group] for group in sampled]) for name in names},
    )


def centred(numbers: np.ndarray) -> np.ndarray:
    """Less the mean over a prompt's samples: [P, N] or [P, N, D] as rows."""
    less = numbers - numbers.mean(1, keepdims=True)
    return less.reshape(-1, *numbers.shape[2:])


def fit_ridge(states_PND: np.ndarray, rewards_PN: np.ndarray) -> tuple[Predict, float]:
    """The probe, and the correlation of its held-out training prompts that chose its penalty."""
    from sklearn.linear_model import Ridge

    held = max(1, len(states_PND) // 4)
    scale = centred(states_PND).std(0) + 1e-6

    def fitted(prompts: slice, alpha: float) -> Predict:
        model = Ridge(alpha=alpha, fit_intercept=False).fit(
            centred(states_PND[prompts]) / scale, centred(rewards_PN[prompts])
        )
        return lambda states: states @ (model.coef_ / scale)

    quality = {
        alpha: correlation(fitted(slice(held, None), alpha)(states_PND[:held]), rewards_PN[:held]) for alpha in ALPHAS
    }
    best = max(quality, key=lambda alpha: quality[alpha])
    return fitted(slice(None), best), quality[best]


def fit_network(states_PND: np.ndarray, rewards_PN: np.ndarray, seed: int) -> Predict:
    from sklearn.neural_network import MLPRegressor

    scale = centred(states_PND).std(0) + 1e-6
    model = MLPRegressor(hidden_layer_sizes=(HIDDEN_UNITS,), early_stopping=True, random_state=seed, alpha=1.0)
    model.fit(centred(states_PND) / scale, centred(rewards_PN))

    def predict(states: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(centred(states) / scale)).reshape(states.shape[:2])

    return predict


def correlation(values_PN: np.ndarray, rewards_PN: np.ndarray) -> float:
    """Within a prompt; 0 where all are alike."""
    values, rewards = centred(values_PN), centred(rewards_PN)
    norm = float(np.linalg.norm(values) * np.linalg.norm(rewards))
    return float(values @ rewards) / norm if norm else 0.0


def picked(scores_PN: np.ndarray, rewards_PN: np.ndarray) -> list[float]:
    """[P]: the reward of each prompt's sample of the highest score, the first of equal ones."""
    rewards: list[float] = np.take_along_axis(rewards_PN, scores_PN.argmax(1)[:, None], 1)[:, 0].tolist()
    return rewards


def frequencies(texts: Sequence[str]) -> list[int]:
    """How many samples begin with the same line."""
    lines = [text.strip().partition("\n")[0].strip() for text in texts]
    counts = Counter(lines)
    return [counts[line] for line in lines]


def measured(engine: EmbeddedEngine, task: Task, seed: int, args: argparse.Namespace) -> JsonObject:
    """Of one task and seed: rewards of each prompt's pick, and correlations, of each probe and control."""
    train = sample(engine, task, "train", args.prompts, args.samples, seed)
    test = sample(engine, task, "held_out", args.heldout_prompts, args.samples, seed)
    rewards = test.rewards_PN
    picks = {
        "one sample": rewards.mean(1).tolist(),
        "best by the grader": rewards.max(1).tolist(),
        "likeliest": picked(test.logprobs_PN, rewards),
        "most frequent text": picked(np.array(list(map(frequencies, test.texts))), rewards),
    }
    correlations = {"likeliest": correlation(test.logprobs_PN, rewards)}
    chosen, most = None, -np.inf
    for name, states in train.states.items():
        predict, quality = fit_ridge(states, train.rewards_PN)
        label = f"layer {name[0]}, {name[1]}"
        values = predict(test.states[name])
        picks[label], correlations[label] = picked(values, rewards), correlation(values, rewards)
        if quality > most:
            chosen, most = name, quality
    assert chosen is not None
    values = fit_network(train.states[chosen], train.rewards_PN, seed)(test.states[chosen])
    picks["network"], correlations["network"] = picked(values, rewards), correlation(values, rewards)
    chosen_label = f"layer {chosen[0]}, {chosen[1]}"
    picks["chosen layer"], correlations["chosen layer"] = picks[chosen_label], correlations[chosen_label]
    return {"task": task.name, "seed": seed, "chosen": chosen_label, "picks": picks, "correlations": correlations}


def measured_once(engine: EmbeddedEngine, task: Task, seed: int, args: argparse.Namespace) -> JsonObject:
    path = args.out / f"{task.name}-{args.prompts}x{args.samples}-{seed}.json"
    options = {"heldout_prompts": args.heldout_prompts}
    content: JsonObject = computed_once(path, partial(measured, engine, task, seed, args), options)
    return content


def summary(rows: Sequence[JsonObject]) -> list[JsonObject]:
    """Of each task: reward of the pick with its interval over seeds and prompts, and correlation over seeds, also less
    that of the token embeddings at the same seed."""
    results = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        correlations = [row["correlations"] for row in of_task]
        cells = {
            name: {"reward": interval_of_seeds(np.array([row["picks"][name] for row in of_task]))}
            for name in of_task[0]["picks"]
        }
        for name in correlations[0]:
            cells[name]["correlation"] = estimate([seed[name] for seed in correlations])
            cells[name]["difference"] = estimate([seed[name] - seed[EMBEDDINGS] for seed in correlations])
        results.append({"task": task, "chosen": [row["chosen"] for row in of_task], "probes": cells})
    return results


def probes(content: JsonObject) -> str:
    """Rules without training, the best layer by training prompts, the token embeddings, the layer that value functions
    read by default, the last one, by task."""
    lines = []
    for cell in content["tasks"]:
        last = max(int(name.split()[1].rstrip(",")) for name in cell["probes"] if name.startswith("layer"))
        named = [f"layer {layer}, {place}" for layer in (0, round(last * 2 / 3), last) for place in PLACES]
        for name in (*CONTROLS, "chosen layer", *named, "network"):
            probe, texts = cell["probes"][name], ["", ""]
            if "correlation" in probe:
                texts = [interval_text(probe["correlation"]), interval_text(probe["difference"], "+")]
            if name == EMBEDDINGS:
                texts[1] = ""
            lines.append([f"{cell['task']}, {name}", interval_text(probe["reward"]), *texts])
    head = ["task, and what picks among the samples", "reward", "correlation within a prompt", f"less {EMBEDDINGS}"]
    return table(head, lines)


def report(numbers: JsonObject) -> None:
    print(probes(numbers))


def main() -> None:
    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.engines.prepare import prepare_model

    parser = command_line("probes", __doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["arithmetic", "instructions"])
    parser.add_argument("--prompts", type=int, default=192, help="training prompts of a seed")
    parser.add_argument("--heldout-prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16, help="of each prompt")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    with EmbeddedEngine(prepare_model()) as engine:
        rows = [measured_once(engine, TASKS[name], seed, args) for name in args.tasks for seed in range(args.seeds)]
    finish(args, {"tasks": summary(rows), "rows": rows}, report, seeds=list(range(args.seeds)))


if __name__ == "__main__":
    main()
