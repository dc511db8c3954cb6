"""The check at load: the embedded engine computes what the model's own forward pass does, or refuses the model.

Two sessions with prompts of different length step in one batch: one of several beams, one of a lone row. Each row's
log-probabilities and hidden states must be those of the whole model over that row alone.
"""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from iro_server.engines.base import Engine, Sampling
from iro_server.engines.frozen_model import FrozenModel, refusal
from value_heads.threads import on_fresh_thread

# A session's mean difference: of log-probabilities in nats, of hidden states relative to their size. Rounding leaves
# SmolLM2 7e-6 in float32 and 0.07 in bfloat16; a model that is computed wrongly is off by tenths or more.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.2}
SPAN = 3  # tokens that a window or chunk of attention spans during the check
PROMPTS = (5, 3)  # tokens
ROUNDS = [[([0], 2), ([1, 0, 1], 1)], [([0], 1), ([0], 1)]]  # of each session: parents and successors
CHUNK = 2  # tokens of each round


@dataclass(frozen=True)
class SampledRows:
    """tokens_RS: prompt and completion; logprobs_RL and hidden[layer] [R, L, D]: of the completion."""

    tokens_RS: Tensor
    logprobs_RL: Tensor
    hidden: dict[int, Tensor]


def check_equality(engine: Engine, frozen: FrozenModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """ValueError, naming the architecture and the difference, where the engine's numbers are not the model's."""
    prompts = random_prompts(tokenizer, frozen.decoder.config.vocab_size)
    layers = tuple(range(1, engine.info.num_layers))  # the last is reported before the final norm, which is another
    with torch.no_grad(), frozen.short_spans(SPAN):
        try:
            sessions = on_fresh_thread(lambda: asyncio.run(_sample_together(engine, prompts, layers)))
        except NotImplementedError as error:
            raise refusal(frozen.architecture, str(error)) from error
        except Exception as error:  # whatever an unforeseen architecture raises on a flat batch
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise refusal(frozen.architecture, f"its layers do not run on a flat batch ({reason})") from error
        differences = [_differences(frozen, rows) for rows in sessions]
    tolerance = TOLERANCE.get(frozen.products, TOLERANCE[torch.float32])
    logprobs, hidden = (max(values) for values in zip(*differences, strict=True))
    if not logprobs <= tolerance:
        raise refusal(
            frozen.architecture,
            f"two requests in one batch differ from the model's own forward pass by {logprobs:.2g} nats "
            f"(at most {tolerance:g} is rounding)",
        )
    if not hidden <= tolerance:
        raise refusal(frozen.architecture, f"its layers' hidden states are off by {hidden:.2g} of their size")


def random_prompts(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[list[int]]:
    """Ordinary tokens: a placeholder of an image, say, is none."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ordinary = [token for token in range(min(len(tokenizer), vocabulary)) if token not in special]
    draw = random.Random(0)
    return [draw.choices(ordinary, k=count) for count in PROMPTS]


async def _sample_together(engine: Engine, prompts: list[list[int]], layers: tuple[int, ...]) -> list[SampledRows]:
    with engine.lockstep(len(prompts)):
        return await asyncio.gather(
            *(_sample(engine, prompt, rounds, layers) for prompt, rounds in zip(prompts, ROUNDS, strict=True))
        )


async def _sample(
    engine: Engine, prompt: list[int], rounds: list[tuple[list[int], int]], layers: tuple[int, ...]
) -> SampledRows:
    session = await engine.open(prompt, Sampling(seed=0), layers)
    tokens_RS, logprobs_RL = torch.tensor([prompt]), torch.empty(1, 0)
    hidden: dict[int, Tensor] = {}
    try:
        for parents, successors in rounds:
            chunk = await session.extend(parents, successors, CHUNK)
            rows = torch.tensor(parents).repeat_interleave(successors)
            tokens_RS = torch.cat([tokens_RS[rows], chunk.tokens_RL], dim=1)
            logprobs_RL = torch.cat([logprobs_RL[rows], chunk.logprobs_RL], dim=1)
            hidden = {
                layer: torch.cat([hidden[layer][rows], states], dim=1) if layer in hidden else states
                for layer, states in chunk.hidden.items()
            }
    finally:
        session.close()
    return SampledRows(tokens_RS, logprobs_RL, hidden)


def _differences(frozen: FrozenModel, rows: SampledRows) -> tuple[float, float]:
    """The mean of the log-probabilities, in nats, and the largest of all layers' hidden states, relative."""
    device, count = frozen.model.device, rows.logprobs_RL.shape[1]
    with frozen.reference_forward() as model:
        out = model(input_ids=rows.tokens_RS.to(device), use_cache=False, output_hidden_states=True)
    logprobs = torch.log_softmax(out.logits[:, -count - 1 : -1].float().cpu(), dim=-1)
    sampled_logprobs = logprobs.gather(2, rows.tokens_RS[:, -count:, None])[..., 0]
    hidden = [_relative_difference(states, out.hidden_states, layer) for layer, states in rows.hidden.items()]
    return float((rows.logprobs_RL - sampled_logprobs).abs().mean()), max(hidden, default=0.0)


def _relative_difference(states_RLD: Tensor, reference_hidden: tuple[Tensor, ...] | None, layer: int) -> float:
    """Infinite where the model reports no such layer, or states of another shape."""
    if reference_hidden is None or layer >= len(reference_hidden) or reference_hidden[layer].dim() != states_RLD.dim():
        return math.inf
    reference = reference_hidden[layer][:, -states_RLD.shape[1] :].float().cpu()
    return float((states_RLD - reference).norm() / reference.norm())
