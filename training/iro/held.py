"""The schema that a job's completions are held to while they are sampled."""

from __future__ import annotations

import json
import logging
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from iro_server.engines.describe import Description
from iro_server.engines.grammars import SchemaRefused, grammars_of
from iro_server.graders.response_format import parse_response_format
from training.iro.config import AlignConfig

log = logging.getLogger("iro.align")


def held_schema(config: AlignConfig, model: Description) -> str | None:
    """That of ``response_format``, as JSON. None where the engine takes no schema or resumes none from chunk to chunk,
    or where the schema cannot be held to: completions without the format get the reward 0 then."""
    if config.response_format is None or not (model.info.adjusts and model.info.resumes):
        return None
    return _schema(json.dumps(config.response_format), model.tokenizer, model.info.eos_ids)


@lru_cache(maxsize=16)
def _schema(response_format: str, tokenizer: PreTrainedTokenizerBase, eos_ids: tuple[int, ...]) -> str | None:
    definition = parse_response_format(json.loads(response_format)).schema_to_fit
    if definition is None:
        return None
    schema = json.dumps(definition)
    try:
        grammars_of(tokenizer, eos_ids).start(schema)
    except SchemaRefused as error:
        log.warning("completions are not held to the response format: %s", error)
        return None
    return schema
