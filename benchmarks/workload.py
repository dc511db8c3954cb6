"""The search, the prompt and the value functions that the benchmarks of decoding share."""

from __future__ import annotations

from dataclasses import replace

import torch

from iro_server.decoding.base import SearchParams
from iro_server.engines.base import ModelInfo
from training.iro.config import default_feature_spec
from value_heads import LinearHead, ValueStack
from value_heads.length_features import NUM_LENGTH_FEATURES
from value_heads.prompt_features import FEATURES
from value_heads.tilt import Tilt, zero_tilt

BEAM = SearchParams(beam_width=4, num_successors=4, chunk_length=16)
ROWS, PROMPT_TOKENS = BEAM.rows, 40
TILT_RANK = 16
PASSAGE = (
    "I had wanted to see this film for years, and last night a friend finally lent me her copy. It opens slowly, with "
    "a long walk along the shore of a lake, and nothing much is said for the first ten minutes or so of it"
)


def linear_heads(info: ModelInfo, count: int) -> ValueStack:
    """So many linear heads on the trainer's features, as iterations leave them: each counts tokens of its own, a
    third of them new. Their weights do not matter to speed or size: small random ones."""
    generator = torch.Generator().manual_seed(0)
    heads = []
    for t in range(count):
        counted = {"counted": tuple(range(500 * t, 500 * t + 1500))}
        spec = default_feature_spec(info, 64).model_copy(update=counted)
        weight = 1e-3 * torch.randn(spec.width(info.hidden_size), generator=generator)
        heads.append(LinearHead(spec, weight, 0.0))
    return ValueStack(heads, [1.0] * count)


def random_tilt(
    vocabulary: int, width: int, stop_ids: tuple[int, ...], seed: int, words: bool = True, rank: int = TILT_RANK
) -> Tilt:
    """A bias and a map of the state; with ``words`` gates, lengths and a sharpness too. Its numbers do not matter to
    speed: small random ones."""
    generator = torch.Generator().manual_seed(seed)

    def small(*shape: int) -> torch.Tensor:
        return 1e-3 * torch.randn(*shape, generator=generator)

    return replace(
        zero_tilt(vocabulary, width, (), stop_ids),
        bias=small(vocabulary),
        state_factor=small(rank, width + 1),
        token_factor=small(rank, width),
        gates=small(len(FEATURES), width + 1) * words,
        direction=small(width),
        length_factor=small(rank, NUM_LENGTH_FEATURES) * words,
        length_stop=small(NUM_LENGTH_FEATURES) * words,
        sharpness=1.0 * words,
    )
