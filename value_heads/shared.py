"""The frozen transformer that value functions adapt: one copy per process, shared by all bundles of a base model.

Each bundle has its own adapters. Beyond MOST_ADAPTERS, the least recently used are moved off the model to memory.
``peft`` is imported with the first model: it takes seconds, and a server without such bundles does without it.
"""

from __future__ import annotations

import gc
import hashlib
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from value_heads.scoring import ScoreQueue
from value_heads.whole_models import load_whole_model

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import PreTrainedModel

MOST_ADAPTERS = 32  # on one model at a time

State = dict[str, Tensor]


@dataclass(eq=False)
class Adapter:
    """A LoRA adapter of one shared model.

    ``state``: its weights while it is off the model. ``pinned``: it stays on the model, because it is being trained.
    """

    name: str
    rank: int
    alpha: int
    state: State | None = None
    pinned: bool = False


class SharedModel:
    """A causal transformer read from ``model_dir``, cut to its first ``num_layers`` (None: all), frozen.

    Hold ``lock`` from ``activate`` to the end of the forward pass: the active adapter is the model's, not the caller's.
    """

    def __init__(
        self, model_dir: Path | str, num_layers: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> None:
        model = load_frozen_model(
            model_dir, num_layers, torch.float32 if dtype in (torch.float32, torch.float64) else "auto"
        )
        self.hash = weights_hash(model)  # before it is rounded to ``dtype``
        self.model = model
        _place(model, device, dtype or model.dtype)
        self.num_layers: int = model.config.num_hidden_layers
        linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
        self.targets = sorted({name.rpartition(".")[2] for name in linear})
        self.lock = threading.RLock()
        # One worker: the event loop must not wait on a forward pass, and one at a time uses all cores.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="value-backbone")
        self.queue = ScoreQueue()
        self._numbers = count()
        self._placed: OrderedDict[str, weakref.ref[Adapter]] = OrderedDict()  # least recently used first
        self._active: str | None = None

    @property
    def adapters(self) -> int:
        """The number of adapters on the model."""
        return len(self._placed)

    def new_adapter(self, rank: int, alpha: int, state: State | None = None) -> Adapter:
        """An adapter with the weights ``state``, or a new one that leaves the model unchanged."""
        adapter = Adapter(f"adapter{next(self._numbers)}", rank, alpha, state)
        if state is None:
            with self.lock:
                self.activate(adapter)
        return adapter

    def activate(self, adapter: Adapter) -> None:
        """Use this adapter in the next forward pass."""
        if adapter.name == self._active:
            return
        self.forget_unowned()
        if adapter.name not in self._placed:
            self._inject(adapter)
        self._placed.move_to_end(adapter.name)
        for module in self._layers():
            module.set_adapter(adapter.name)
        self._active = adapter.name
        for name, reference in list(self._placed.items())[:-1]:
            unused = reference()
            if len(self._placed) > MOST_ADAPTERS and unused is not None and not unused.pinned:
                unused.state = self.state_of(unused)
                self._remove(name)

    def forget_unowned(self) -> None:
        """Remove the adapters of deleted bundles from the model."""
        with self.lock:
            for name in [name for name, adapter in self._placed.items() if adapter() is None]:
                self._remove(name)

    def state_of(self, adapter: Adapter) -> State:
        """A copy of the adapter's weights in CPU memory."""
        from peft import get_peft_model_state_dict

        with self.lock:
            state = adapter.state
            if state is None:
                state = get_peft_model_state_dict(self.model, adapter_name=adapter.name)
            return {name: weight.detach().cpu().clone() for name, weight in state.items()}

    def load(self, adapter: Adapter, state: State) -> None:
        """Restore weights that ``state_of`` returned."""
        from peft import set_peft_model_state_dict

        with self.lock:
            if adapter.name in self._placed:
                set_peft_model_state_dict(self.model, state, adapter_name=adapter.name)
            else:
                adapter.state = state

    def _inject(self, adapter: Adapter) -> None:
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
        from peft.tuners.tuners_utils import cast_adapter_dtype

        config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=self.targets)
        # Fresh weights are drawn; weights that are loaded must not move the process's random numbers.
        with warnings.catch_warnings(), nullcontext() if adapter.state is None else torch.random.fork_rng([]):
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are the point
            inject_adapter_in_model(config, self.model, adapter_name=adapter.name)
        cast_adapter_dtype(self.model, adapter.name)  # 16-bit adapters would be rounded at each step of a fit
        if adapter.state is not None:
            set_peft_model_state_dict(self.model, adapter.state, adapter_name=adapter.name)
            adapter.state = None
        self._placed[adapter.name] = weakref.ref(adapter)

    def _remove(self, name: str) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Adapter .* was active")  # the next pass activates its own
            for module in self._layers():
                module.delete_adapter(name)
        del self.model.peft_config[name]
        del self._placed[name]
        self._active = None if name == self._active else self._active

    def _layers(self) -> Iterator[BaseTunerLayer]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return (module for module in self.model.modules() if isinstance(module, BaseTunerLayer))


_MODELS: weakref.WeakValueDictionary[tuple[str, int | None, str, torch.dtype | None], SharedModel]
_MODELS = weakref.WeakValueDictionary()
_LOADING = threading.Lock()


def shared_model(
    model_dir: Path | str,
    num_layers: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> SharedModel:
    """The process's copy of this model, loaded on first use and freed with its last user.

    Without ``device`` and ``dtype`` as in the embedded engine: on a GPU in the data type of its weights, else on the
    CPU in float32.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float32 if device.type == "cpu" else None)
    key = (str(Path(model_dir).resolve()), num_layers, str(device), dtype)
    with _LOADING:
        model = _MODELS.get(key)
        if model is None:
            model = _MODELS[key] = SharedModel(model_dir, num_layers, device, dtype)
        return model


def shared_models() -> list[SharedModel]:
    """All models loaded in this process."""
    return list(_MODELS.values())


def free_memory() -> None:
    """Free the memory of deleted bundles, on the GPU too."""
    gc.collect()
    for model in shared_models():
        model.forget_unowned()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_frozen_model(
    model_dir: Path | str, num_layers: int | None, dtype: torch.dtype | str = torch.float32
) -> PreTrainedModel:
    """The model cut to its first ``num_layers``; 0: embeddings only. ValueError if weights are missing."""
    cut: dict[str, Any] = {} if num_layers is None else {"num_hidden_layers": num_layers}
    model = load_whole_model(AutoModel, model_dir, dtype=dtype, **cut)
    frozen_model: PreTrainedModel = model.requires_grad_(False).eval()
    return frozen_model


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the frozen weights as float32: the same on every device, adapters or not."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if "lora_" not in name:
            digest.update(name.replace(".base_layer", "").encode())
            digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _place(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move the model to a device and round its weights; buffers such as rotary frequencies keep their precision."""
    for weight in model.parameters():
        weight.data = weight.data.to(device, dtype)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
