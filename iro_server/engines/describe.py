"""The description of a frozen model: from its directory, without loading the weights, or of an engine that has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from iro_server.engines.base import Engine, ModelInfo
from iro_server.engines.prepare import check_weights, model_hash, template_hash

LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length")


@dataclass(frozen=True)
class Description:
    """A frozen model as prompts and value functions need it: the weights may be in another process."""

    info: ModelInfo
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of_directory(cls, model_dir: Path, name: str | None = None) -> Description:
        """Of a prepared model. ModelError as ``describe``."""
        tokenizer = load_tokenizer(model_dir)
        return cls(describe(model_dir, name, tokenizer), tokenizer)

    @classmethod
    def of_engine(cls, engine: Engine) -> Description:
        return cls(engine.info, engine.tokenizer)


def load_tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    """ModelError for a directory without weights, of which transformers would say that its tokenizer is wrong."""
    check_weights(model_dir)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir)
    return tokenizer


def describe(model_dir: Path, name: str | None, tokenizer: PreTrainedTokenizerBase) -> ModelInfo:
    """``name`` None: the directory's. ModelError where the weights are missing or not those that were prepared."""
    config = AutoConfig.from_pretrained(model_dir)
    text = config.get_text_config(decoder=True)  # of a model that also sees or hears, the part that writes
    try:
        eos = GenerationConfig.from_pretrained(model_dir).eos_token_id
    except OSError:  # a model without generation_config.json
        eos = None
    for source in (config, text, tokenizer):
        eos = getattr(source, "eos_token_id", None) if eos in (None, []) else eos
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
