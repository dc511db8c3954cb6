"""One steered session on vLLM: its adapter, and the logit_bias of each row's next chunk.

What a tilt reads of the prompt's and the response's words is set for ``WORDS_CHUNK`` tokens at most, from the row as
they begin; in this process it changes with each token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from iro_server.engines.adapter_holds import Adapter
from iro_server.engines.vllm_adapters import StaticTilt
from value_heads.prompt_features import RunningFeatures, TokenGroups
from value_heads.tilt import Tilt

WORDS_CHUNK = 8  # tokens of one request
LEAST_BIAS = 1e-4  # smaller entries are not sent
MOST_BIAS = 100.0  # vLLM clamps there


class SteeredPrompt:
    """The rows of one session. ``groups``: of the model's vocabulary."""

    def __init__(
        self, tilt: Tilt, strength: float, static: StaticTilt, groups: TokenGroups, prompt_ids: Sequence[int]
    ) -> None:
        self.adapter: Adapter | None = static.adapter
        self.reads_words = "words" in tilt.parts
        vocabulary = len(tilt.bias)
        self._static_V = torch.zeros(vocabulary) if static.logit_bias is None else static.logit_bias
        gates_F = tilt.gates[:, -1].float() * strength
        self._gates_F = torch.cat([gates_F[:-1], torch.zeros(1)])  # a stop token's is in the static part
        stop_ids = torch.tensor(tilt.stop_ids, dtype=torch.int64)
        self.features = RunningFeatures(groups, prompt_ids, tilt.ignored, stop_ids)

    def logit_bias(self, row: int) -> dict[str, float]:
        """Of the next chunk of a row."""
        addition_1V = self._static_V.clone()[None]
        self.features.part(slice(row, row + 1)).add(addition_1V, self._gates_F[None])
        bias_V = addition_1V[0].clamp(-MOST_BIAS, MOST_BIAS)
        tokens = (bias_V.abs() >= LEAST_BIAS).nonzero()[:, 0]
        pairs = zip(tokens.tolist(), bias_V[tokens].tolist(), strict=True)
        return {str(token): round(bias, 5) for token, bias in pairs}

    def follow(self, parents: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """The rows are now these tokens after these rows."""
        self.features.follow(parents, tokens)
