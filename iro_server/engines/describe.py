"""What a prepared model directory says about its model, without loading the weights."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from iro_server.engines.base import ModelInfo
from iro_server.engines.prepare import model_hash, template_hash

LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length")


class Description:
    """What an engine of a model directory knows of its model, where another process has the weights."""

    def __init__(self, model_dir: Path, name: str | None = None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self.info = describe(model_dir, name, self.tokenizer)


def describe(model_dir: Path, name: str | None, tokenizer: PreTrainedTokenizerBase) -> ModelInfo:
    """``name`` None: the directory's. ModelError where the weights are missing or not those that were prepared."""
    config = AutoConfig.from_pretrained(model_dir)
    text = config.get_text_config(decoder=True)  # of a model that also sees or hears, the part that writes
    try:
        eos = GenerationConfig.from_pretrained(model_dir).eos_token_id
    except OSError:  # a model without generation_config.json
        eos = getattr(config, "eos_token_id", None) or getattr(text, "eos_token_id", None)
    return ModelInfo(
        name=name or model_dir.name,
        model_hash=model_hash(model_dir),
        template_hash=template_hash(tokenizer),
        eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        max_length=max_length(text, tokenizer),
    )


def max_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of prompt and completion together; the tokenizer's, for a model without a limit of its own."""
    lengths = (getattr(config, name, None) for name in LENGTHS)
    return int(next((length for length in lengths if length), tokenizer.model_max_length))
