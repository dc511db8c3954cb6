"""LoRA value functions: one adapter and one scalar head per iteration, on one frozen transformer.

They serve engines that report no hidden states.

R rows, P prompts, L new tokens, S tokens so far, T response tokens, D width.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from value_heads.scoring import Request, Search, padding_first, reordered
from value_heads.shared import Adapter, State, shared_model
from value_heads.stack import Chunk, check_betas
from value_heads.tilt import Tilt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoraBackbone:
    """Adapters and heads on the process's shared copy of the first ``num_layers`` (None: all) layers of ``model_dir``.

    V_t(s) = head_t · h_t(s) + bias_t, h_t: the final norm's output at the last token with adapter t active. Adapters
    and heads are float32 whatever the model's dtype, or float64 with it.
    """

    def __init__(
        self,
        model_dir: Path | str,
        num_layers: int | None = None,
        rank: int = 16,
        alpha: int = 32,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.shared = shared_model(model_dir, num_layers, device, dtype)
        self.rank, self.alpha = rank, alpha
        self.adapters: list[Adapter] = []
        self.heads: list[nn.Linear] = []
        # Searches are scored one at a time if true: a score's last bits depend on the batch that it is computed in.
        self.score_singly = False

    @property
    def model(self) -> PreTrainedModel:
        return self.shared.model

    @property
    def num_layers(self) -> int:
        return self.shared.num_layers

    @property
    def worker(self) -> ThreadPoolExecutor:
        return self.shared.worker

    @property
    def iterations(self) -> int:
        return len(self.heads)

    @property
    def backbone_hash(self) -> str:
        """SHA-256 of the frozen weights of the layers in use."""
        return self.shared.hash

    def add_iteration(self, state: State | None = None) -> int:
        """Add an adapter and a head with the weights ``state``, or new ones with V = 0; returns the index, from 0."""
        adapter = None if state is None else _under("adapter.", state)
        self.adapters.append(self.shared.new_adapter(self.rank, self.alpha, adapter))
        head = nn.utils.skip_init(nn.Linear, self.model.config.hidden_size, 1)
        double = self.model.dtype == torch.float64
        head = head.to(self.model.device, torch.float64 if double else torch.float32)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        if state is not None:
            head.load_state_dict(_under("head.", state))
        self.heads.append(head)
        return self.iterations - 1

    def set_bias(self, iteration: int, value: float) -> None:
        self.heads[iteration].load_state_dict({"bias": torch.tensor([value])}, strict=False)

    @contextmanager
    def training(self, iteration: int) -> Iterator[list[nn.Parameter]]:
        """The trainable parameters of an iteration, adapter and head; the adapter stays on the model meanwhile."""
        adapter = self.adapters[iteration]
        adapter.pinned = True
        try:
            with self.shared.lock:
                self.shared.activate(adapter)
                weights = [weight for weight in self.model.parameters() if weight.requires_grad]
            yield weights + list(self.heads[iteration].parameters())
        finally:
            adapter.pinned = False

    def values(
        self,
        iteration: int,
        tokens_RS: Tensor,
        cache: DynamicCache | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """V [R, S] at every token, given the keys and values in ``cache``, which grows by S tokens.

        ``valid`` [R, cached + S] bool: false at padding, which stands before a row's cached tokens and after its new
        ones (``padding_first``). Rows padded only on the right do not need it, because causal attention never reads
        later positions.
        """
        device, head = self.model.device, self.heads[iteration]
        places = {}
        if valid is not None and not bool(valid.all()):
            positions = (valid.cumsum(1) - 1).clamp_min(0)[:, -tokens_RS.shape[1] :]
            places = {"attention_mask": valid.to(device), "position_ids": positions.to(device)}
        with self.shared.lock:
            self.shared.activate(self.adapters[iteration])
            output = self.model(
                input_ids=tokens_RS.to(device), past_key_values=cache, use_cache=cache is not None, **places
            )
        values: Tensor = head(output.last_hidden_state.to(head.weight.dtype))
        return values.squeeze(-1)

    def response_values(
        self, iteration: int, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> Tensor:
        """V [R, T] at every token of ``responses``, where ``responses[r]`` answers ``prompts[r]``.

        Each prompt is read once for all its responses. Values at padding are meaningless.
        """
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        rows = torch.tensor([places[tuple(prompt)] for prompt in prompts])
        prompts_PS, known_PS = _padded(list(places))
        responses_RT, known_RT = _padded(responses)
        read = DynamicCache()
        self.values(iteration, prompts_PS, read)
        known_PS, order_PS = padding_first(known_PS)
        repeated, layers, index = DynamicCache(), cast(Any, read.layers), rows.to(self.model.device)
        for number, layer in enumerate(layers):
            keys, values = (reordered(states, order_PS)[index] for states in (layer.keys, layer.values))
            repeated.update(keys, values, number)
        return self.values(iteration, responses_RT, repeated, torch.cat([known_PS[rows], known_RT], dim=1))

    def iteration_state(self, iteration: int) -> State:
        """Adapter and head weights, by name."""
        adapter = self.shared.state_of(self.adapters[iteration])
        head = self.heads[iteration].state_dict()
        state = {f"adapter.{name}": weight for name, weight in adapter.items()}
        return state | {f"head.{name}": weight.detach().cpu().clone() for name, weight in head.items()}

    def load_iteration(self, iteration: int, state: State) -> None:
        """Restore weights that ``iteration_state`` returned."""
        self.shared.load(self.adapters[iteration], _under("adapter.", state))
        self.heads[iteration].load_state_dict(_under("head.", state))


class LoraValues:
    """Sum_t V_t / beta_t over a backbone's first len(betas) iterations; a Scorer that needs no hidden states. ``tilt``:
    as of a ``ValueStack``."""

    layers: tuple[int, ...] = ()

    def __init__(self, backbone: LoraBackbone, betas: Sequence[float], tilt: Tilt | None = None):
        self.tilt = tilt
        check_betas(betas, len(betas))
        if len(betas) > backbone.iterations:
            raise ValueError(f"{len(betas)} betas for a backbone of {backbone.iterations} iterations")
        self.backbone, self.betas = backbone, tuple(betas)

    def with_betas(self, betas: Sequence[float]) -> LoraValues:
        check_betas(betas, len(self.betas))
        return LoraValues(self.backbone, betas, self.tilt)

    def with_tilt(self, tilt: Tilt | None) -> LoraValues:
        return LoraValues(self.backbone, self.betas, tilt)

    def start(self, prompt_ids: Sequence[int]) -> LoraState:
        return LoraState(self, prompt_ids)


class LoraState:
    """The rows of one search. Concurrent searches are scored in one batch (``scoring``)."""

    def __init__(self, values: LoraValues, prompt_ids: Sequence[int]):
        self.backbone = values.backbone
        self.search = Search(values.betas, [list(prompt_ids)])

    async def score(self, parents: Sequence[int], num_successors: int, chunk: Chunk) -> Tensor:
        """Sum_t V_t / beta_t [R] at each row's last counted token; rows parent-major, a stopped row no parent."""
        request = Request(self.backbone, self.search, parents, num_successors, chunk.tokens_RL, chunk.lengths_R)
        queue = self.backbone.shared.queue
        queue.add(request)
        self.backbone.worker.submit(queue.drain)
        return await asyncio.wrap_future(request.done)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids [R, S], padded with 0 on the right, and a mask [R, S] bool that is true at tokens."""
    tokens_RS = pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True)
    lengths_R = torch.tensor([len(row) for row in rows])
    return tokens_RS, torch.arange(tokens_RS.shape[1]) < lengths_R[:, None]


def _under(prefix: str, state: State) -> State:
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
