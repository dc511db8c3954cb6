"""What a prepared model directory says about its model, without loading the weights."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from iro_server.engines.base import ModelInfo
from iro_server.engines.prepare import model_hash, template_hash


class Description:
    """What an engine of a model directory knows of its model, where another process has the weights."""

    def __init__(self, model_dir: Path, name: str | None = None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self.info = describe(model_dir, name, self.tokenizer)


def describe(model_dir: Path, name: str | None, tokenizer: PreTrainedTokenizerBase) -> ModelInfo:
    """``name`` None: the directory's. ModelError where the weights are missing or not those that were prepared."""
    config = AutoConfig.from_pretrained(model_dir)
    try:
        eos = GenerationConfig.from_pretrained(model_dir).eos_token_id
    except OSError:  # a model without generation_config.json
        eos = config.eos_token_id
    return ModelInfo(
        name=name or model_dir.name,
        model_hash=model_hash(model_dir),
        template_hash=template_hash(tokenizer),
        eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        max_length=config.max_position_embeddings,
    )
