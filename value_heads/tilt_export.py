"""A tilt as other servers apply it: a LoRA adapter of the output head, and numbers for single tokens.

A(s, a) = <B[a], A s> + static[a] + what depends on the prompt + sharpness log pi_0(a|s). The first part is an adapter
(A: ``lora_A``, B: ``lora_B``), the second a bias; the third, the gates on the prompt's and the response's words, no
fixed file can hold; the fourth is a temperature (``Tilt.temperature``).
Axes in tensor names: V vocabulary, D width, r rank, N states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from value_heads.file_modes import give_mode_of
from value_heads.tilt import STOP, Tilt, token_products
from value_heads.tilt_rank import truncation

PENALTY = 1e-3  # of the direction's ridge regression, relative to the states' mean square
HELDOUT_SHARE = 4  # one state in so many measures the direction's error


@dataclass(frozen=True, eq=False)
class HeadAdapter:
    """Adds lora_B (lora_A s) + static to the logits. ``lora_A``: [r, D]; ``lora_B``: [V, r]; ``static``: [V]."""

    lora_A: Tensor
    lora_B: Tensor
    static: Tensor

    def additions(self, states_ND: Tensor) -> Tensor:
        """[N, V]."""
        return states_ND @ self.lora_A.T @ self.lora_B.T + self.static


def head_adapter(tilt: Tilt, head_VD: Tensor) -> HeadAdapter:
    """What of the tilt depends on no word of the prompt or the response. Exact. Token factors and the stop gate count
    as ranks; ``static`` is centred, which changes no distribution."""
    token_rV = token_products(tilt, head_VD)
    stops = torch.zeros(len(tilt.bias), 1)
    stops[list(tilt.stop_ids)] = 1.0
    rows, columns = torch.cat([tilt.state_factor, tilt.gates[STOP:]]).float(), torch.cat([token_rV.T, stops], 1)
    static = tilt.bias + columns @ rows[:, -1]
    used = (rows[:, :-1] != 0).any(1)
    return HeadAdapter(rows[used, :-1].contiguous(), columns[:, used].contiguous(), static - static.median())


def exported_part(tilt: Tilt) -> Tilt:
    """The tilt that ``head_adapter`` holds, at its temperature: without words and lengths."""
    gates = torch.zeros_like(tilt.gates)
    gates[STOP] = tilt.gates[STOP]
    return replace(tilt, gates=gates, word_sets=(), length_factor=None, length_stop=None)


def bias_at_mean_state(tilt: Tilt) -> Tensor:
    """[V], centred: what the tilt adds at the mean state, without words and lengths. Of tilts that were fitted apart,
    the sum of each one's at the mean of its own states.

    A fit standardises states: factors add 0 at their mean (``tilt_fit.TiltParameters``). So does the stop gate but for
    a constant that a tilt does not keep apart; it is left out where the gate reads the state.
    """
    bias = tilt.bias.clone()
    if not stop_gate_reads_state(tilt):
        bias[list(tilt.stop_ids)] += tilt.gates[STOP, -1]
    return bias - bias.median()


def stop_gate_reads_state(tilt: Tilt) -> bool:
    return bool(tilt.gates[STOP, :-1].any())


def constant_direction(states_ND: Tensor) -> tuple[Tensor, Tensor]:
    """u [D] of which <u, s> is nearly 1 at every state, by ridge regression, and the root mean square of <u, s> - 1 on
    states that it was not fitted on. An adapter without a bias spends a rank on it.

    Reconstruction: a final norm leaves the state's length nearly constant, and no direction exactly so.
    """
    states_ND = states_ND.double()
    heldout_N = torch.arange(len(states_ND)) % HELDOUT_SHARE == 0
    fitted = states_ND[~heldout_N]
    gram_DD = fitted.T @ fitted / len(fitted)
    penalty = PENALTY * gram_DD.diagonal().mean()
    u_D = torch.linalg.solve(gram_DD + penalty * torch.eye(len(gram_DD), dtype=torch.float64), fitted.mean(0))
    error = (states_ND[heldout_N] @ u_D - 1).square().mean().sqrt()
    return u_D.float(), error.float()


def without_static(adapter: HeadAdapter, direction_D: Tensor) -> HeadAdapter:
    """The static part as one more rank: off by the direction's error at a state, times the static part."""
    return HeadAdapter(
        torch.cat([adapter.lora_A, direction_D[None]]),
        torch.cat([adapter.lora_B, adapter.static[:, None]], 1),
        torch.zeros_like(adapter.static),
    )


def compressed(adapter: HeadAdapter, rank: int) -> tuple[HeadAdapter, float]:
    """The adapter with ``rank`` ranks at most: its largest singular values. And what that leaves out: the root mean
    square of the missing additions over states of equal variance in all directions, divided by that of all additions.

    A constant added to all logits of a state changes no distribution, and is taken out first.
    """
    if len(adapter.lora_A) <= rank:
        return adapter, 0.0
    columns = adapter.lora_B - adapter.lora_B.mean(0)
    of_states, of_tokens, missing, size = truncation(adapter.lora_A, columns, rank)
    smaller = HeadAdapter((of_states @ adapter.lora_A).contiguous(), columns @ of_tokens.T, adapter.static)
    return smaller, missing / max(size, 1e-30)


def rms_additions(adapter: HeadAdapter, state_length: float) -> float:
    """Root mean square of what the adapter adds, but for its static part, over states of this length in all directions
    alike, in logits, without the constant that it adds to all of a state's."""
    columns = adapter.lora_B - adapter.lora_B.mean(0)
    squares = (columns.T @ columns * (adapter.lora_A @ adapter.lora_A.T)).sum().clamp(min=0)
    return state_length * math.sqrt(float(squares) / (len(columns) * adapter.lora_A.shape[1]))


def write_peft(adapter: HeadAdapter, folder: Path, base_model: str, module: str) -> Path:
    """An adapter folder that ``peft`` and vLLM load. ``module``: the output head's name in the model. A static part
    becomes LoRA's bias, which vLLM does not take."""
    from peft import LoraConfig  # on first use: it takes seconds

    rank, has_bias = len(adapter.lora_A), bool(adapter.static.any())
    lora_A, lora_B = adapter.lora_A, adapter.lora_B
    if rank == 0:
        rank, lora_A, lora_B = 1, torch.zeros(1, lora_A.shape[1]), torch.zeros(len(lora_B), 1)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=[module], task_type="CAUSAL_LM", lora_bias=has_bias)
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    config.save_pretrained(str(folder))
    prefix = f"base_model.model.{module}"
    tensors = {f"{prefix}.lora_A.weight": lora_A, f"{prefix}.lora_B.weight": lora_B}
    if has_bias:
        tensors[f"{prefix}.lora_B.bias"] = adapter.static
    weights = folder / "adapter_model.safetensors"
    save_file({name: value.float().contiguous() for name, value in tensors.items()}, weights)
    give_mode_of(folder / "adapter_config.json", [weights])
    return folder


def logit_bias(static_V: Tensor, count: int) -> dict[int, float]:
    """The strongest entries of a static tilt: OpenAI's API takes 300 of them."""
    strongest = static_V.abs().topk(min(count, len(static_V))).indices
    return {token: float(static_V[token]) for token in strongest.sort().values.tolist() if static_V[token] != 0}
