"""Value functions with a backbone of their own: one frozen transformer, a LoRA adapter and a scalar head an iteration.

For engines that report no hidden states. R rows, L new tokens, S tokens so far, D hidden width.
"""

from __future__ import annotations

import asyncio
import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModel, DynamicCache, PreTrainedModel
from transformers.utils import logging

from value_heads.scoring import Request, ScoreQueue, Search
from value_heads.stack import Chunk, check_betas


class LoraBackbone(nn.Module):
    """A causal transformer read from ``model_dir``, cut to its first ``num_layers`` (None: all), frozen, in float32.

    V_t(s) = head_t · h_t(s) + bias_t, h_t: the final norm's output at the last token with adapter t active.
    """

    def __init__(self, model_dir: Path | str, num_layers: int | None = None, rank: int = 16, alpha: int = 32):
        super().__init__()
        self.model = frozen(model_dir, num_layers)
        self.num_layers: int = self.model.config.num_hidden_layers
        self.rank, self.alpha = rank, alpha
        linear = (name for name, module in self.model.named_modules() if isinstance(module, nn.Linear))
        self.targets = sorted({name.rpartition(".")[2] for name in linear})
        self.heads = nn.ModuleList()
        # One worker: adapters are switched on the shared model, and the event loop must not wait on a forward pass.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="value-backbone")
        self.queue = ScoreQueue(self)
        self.alone = (
            False  # whether searches are scored one by one: a score's last bits depend on what shares its batch
        )

    @property
    def iterations(self) -> int:
        return len(self.heads)

    @cached_property
    def backbone_hash(self) -> str:
        """SHA-256 over the frozen weights that are left after the cut."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.model.named_parameters()):
            if "lora_" not in name:
                digest.update(name.replace(".base_layer", "").encode())
                digest.update(weight.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def add_iteration(self) -> int:
        """A fresh adapter and a head that starts at V = 0; returns its number, from 0."""
        iteration = self.iterations
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=self.targets)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are the point
            inject_adapter_in_model(config, self.model, adapter_name=_name(iteration))
        head = nn.Linear(self.model.config.hidden_size, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.heads.append(head.to(self.model.device))
        return iteration

    def set_bias(self, iteration: int, value: float) -> None:
        self.heads[iteration].load_state_dict({"bias": torch.tensor([value])}, strict=False)

    def parameters_of(self, iteration: int) -> list[nn.Parameter]:
        """What is trained in one iteration: its adapter, now the active one, and its head."""
        self._activate(iteration)
        adapter = [weight for weight in self.model.parameters() if weight.requires_grad]
        return adapter + list(self.heads[iteration].parameters())

    def values(
        self,
        iteration: int,
        tokens_RS: Tensor,
        cache: DynamicCache | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """V [R, S] at every token, on top of what ``cache`` holds (and grows by).

        ``valid`` [R, cached + S], bool: what is no padding, where that stands before or among what is read. Rows padded
        on the right alone need none: causal attention keeps padding from reaching what stands before it.
        Switches the shared model's adapter, so one thread at a time (searches use ``worker``).
        """
        self._activate(iteration)
        device = self.model.device
        places = {}
        if valid is not None and not bool(valid.all()):
            positions = (valid.cumsum(1) - 1).clamp_min(0)[:, -tokens_RS.shape[1] :]
            places = {"attention_mask": valid.to(device), "position_ids": positions.to(device)}
        output = self.model(
            input_ids=tokens_RS.to(device), past_key_values=cache, use_cache=cache is not None, **places
        )
        return self.heads[iteration](output.last_hidden_state).squeeze(-1)

    def _activate(self, iteration: int) -> None:
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.set_adapter(_name(iteration))

    def iteration_state(self, iteration: int) -> dict[str, Tensor]:
        """Adapter and head weights, by name."""
        adapter = get_peft_model_state_dict(self.model, adapter_name=_name(iteration))
        state = {f"adapter.{name}": weight for name, weight in adapter.items()}
        state |= {f"head.{name}": weight for name, weight in self.heads[iteration].state_dict().items()}
        return {name: weight.detach().clone() for name, weight in state.items()}

    def load_iteration(self, iteration: int, state: dict[str, Tensor]) -> None:
        """Undo of ``iteration_state``."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}

        set_peft_model_state_dict(self.model, part("adapter."), adapter_name=_name(iteration))
        self.heads[iteration].load_state_dict(part("head."))


class LoraValues:
    """Sum_t V_t / beta_t over a backbone's first len(betas) iterations; a Scorer that wants no hidden layers."""

    layers: tuple[int, ...] = ()

    def __init__(self, backbone: LoraBackbone, betas: Sequence[float]):
        check_betas(betas, len(betas))
        if len(betas) > backbone.iterations:
            raise ValueError(f"{len(betas)} betas for a backbone of {backbone.iterations} iterations")
        self.backbone, self.betas = backbone, tuple(betas)

    def with_betas(self, betas: Sequence[float]) -> LoraValues:
        check_betas(betas, len(self.betas))
        return LoraValues(self.backbone, betas)

    def start(self, prompt_ids: Sequence[int]) -> LoraState:
        return LoraState(self, prompt_ids)


class LoraState:
    """One search's rows. Scores of concurrent searches are computed together (``scoring``)."""

    def __init__(self, values: LoraValues, prompt_ids: Sequence[int]):
        self.backbone = values.backbone
        self.search = Search(values.betas, [list(prompt_ids)])

    async def score(self, parents: Sequence[int], num_successors: int, chunk: Chunk) -> Tensor:
        """Sum_t V_t / beta_t [R] at each row's last counted token; rows parent-major, a stopped row no parent."""
        request = Request(self.search, parents, num_successors, chunk.tokens_RL, chunk.lengths_R)
        self.backbone.queue.add(request)
        self.backbone.worker.submit(self.backbone.queue.drain)
        return await asyncio.wrap_future(request.done)


def frozen(model_dir: Path | str, num_layers: int | None) -> PreTrainedModel:
    """The model in float32, cut to its first so many layers; 0: it only embeds. ValueError if weights are missing."""
    cut = {} if num_layers is None else {"num_hidden_layers": num_layers}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the layers cut off would be reported as unexpected
    try:
        model, report = AutoModel.from_pretrained(model_dir, dtype=torch.float32, output_loading_info=True, **cut)
    finally:
        logging.set_verbosity(verbosity)
    if report["missing_keys"]:
        raise ValueError(
            f"{model_dir} lacks weights of a {num_layers}-layer backbone: {sorted(report['missing_keys'])}"
        )
    return model.requires_grad_(False).eval()


def _name(iteration: int) -> str:
    return f"iteration{iteration}"
