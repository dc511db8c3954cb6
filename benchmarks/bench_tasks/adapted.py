"""Samples of the frozen model with a trained adapter, and how likely they are by the frozen model itself."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bench_tasks.answers import Answer, answer_of, best_of
from benchmarks.bench_tasks.piece import Piece

if TYPE_CHECKING:
    from torch import Tensor

    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.engines.endpoints import Precision
    from iro_server.engines.frozen_model import FrozenModel
    from training.iro.data import Prompt
    from value_heads.tilt import BoundTilt, Tilt


@dataclass(frozen=True)
class Adapted:
    """Plain samples of the adapted model at the temperature, and with the repetition penalty, of ``tilt``. ``engine``:
    the adapted model's; its user closes it. ``piece``: with the frozen model's engine."""

    piece: Piece
    engine: EmbeddedEngine
    tilt: Tilt | None = None

    @property
    def adapted_piece(self) -> Piece:
        """The piece with the adapted model's engine. It has no alignment job of its own."""
        return replace(self.piece, engine=self.engine)

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        """Log-probabilities are those of the frozen model; KL from it is exact at each state."""
        params = best_of(1).model_copy(update={"strength": 1.0})
        results = self.adapted_piece.search(prompts, params, None, seed, self.tilt)
        answers = []
        for prompt, result in zip(prompts, results, strict=True):
            logprobs, kl = self.rescored(prompt, result.finals[0].tokens)
            answers.append(replace(answer_of(result.finals[0], result), logprobs=logprobs, kl=kl))
        return answers

    @cached_property
    def bound(self) -> BoundTilt | None:
        from value_heads.prompt_features import TokenGroups
        from value_heads.tilt import BoundTilt

        if self.tilt is None:
            return None
        head_VD = self.engine.frozen.head_weight
        return BoundTilt(self.tilt, head_VD, TokenGroups.of_tokenizer(self.engine.tokenizer, len(head_VD)))

    def rescored(self, prompt: Prompt, tokens: Sequence[int]) -> tuple[list[float], float]:
        """Of a sample: each token's log-probability under the frozen model at temperature 1, and the sum over states
        of KL(q || frozen) in nats, where q is what the tokens were drawn from."""
        import torch

        with torch.no_grad():
            logprobs_TV = logits_along(self.piece.engine.frozen, prompt, tokens)[1].log_softmax(-1)
            states_TD, logits_TV = logits_along(self.engine.frozen, prompt, tokens)
            if self.bound is not None:
                logits_TV = logits_TV + self.bound.along(prompt.token_ids, tokens, states_TD, logits_TV.float())
            drawn_TV = logits_TV.log_softmax(-1)
            kl = (drawn_TV.exp() * (drawn_TV - logprobs_TV)).sum()
            logprobs_T = logprobs_TV.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        return logprobs_T.tolist(), float(kl)


def logits_along(frozen: FrozenModel, prompt: Prompt, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The states [T, D] before each token of a sample, and the logits [T, V] at these, float64 on the CPU."""
    from training.iro.head_states import head_states

    (states_TD,) = head_states(frozen, prompt.token_ids, [tokens])
    head = frozen.head_weight
    states_TD = states_TD.to(head.device, head.dtype)
    return states_TD, frozen.logits(states_TD).double().cpu()


def adapted_engine(adapter: Path, precision: Precision) -> EmbeddedEngine:
    """An engine of the default model with the PEFT adapter in a folder merged into its weights."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.engines.prepare import prepare_model

    with tempfile.TemporaryDirectory() as folder:
        model: Any = PeftModel.from_pretrained(frozen_model(), adapter)
        model.merge_and_unload().save_pretrained(folder)
        del model
        AutoTokenizer.from_pretrained(prepare_model()).save_pretrained(folder)
        return EmbeddedEngine(folder, precision=precision)


def frozen_model() -> Any:
    """A copy of the default model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from iro_server.engines.prepare import prepare_model

    return AutoModelForCausalLM.from_pretrained(prepare_model(), dtype=torch.float32)
