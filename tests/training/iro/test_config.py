from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from iro_server.engines.base import ModelInfo
from training.iro.config import AlignConfig, default_feature_spec
from value_heads import FeatureSpec
from value_heads.features import HEAD_STATE

URL = "http://127.0.0.1:8001"


def test_over_http_value_functions_read_embeddings_or_a_backbone_of_their_own(config: AlignConfig) -> None:
    given = config.model_dump(exclude={"value_model", "feature_spec", "engine_urls"})
    assert AlignConfig(**given).value_model == "linear"
    remote = AlignConfig(**given, engine_urls=[URL])
    assert (remote.value_model, remote.engine_urls) == ("auto", (f"{URL}/v1",))
    towards_next = {**given, "return_lambda": 0.9, "engine_urls": [URL]}
    assert AlignConfig(**towards_next).value_model == "linear"
    with pytest.raises(ValidationError, match="return_lambda below 1"):
        AlignConfig(**towards_next, value_model="auto")
    assert AlignConfig(**given, engine_urls=[URL], feature_spec=FeatureSpec(summed=(0,))).feature_spec
    assert AlignConfig(**given, engine_urls=[URL], feature_spec=FeatureSpec(averaged=(HEAD_STATE,))).feature_spec
    with pytest.raises(ValidationError, match="layers 0, the embedding, and -10 alone"):
        AlignConfig(**given, engine_urls=[URL], feature_spec=FeatureSpec(summed=(0, 3)))


def test_without_hidden_states_heads_read_the_embedding_and_numbers_of_the_output_heads_state() -> None:
    info = ModelInfo("m", "", "", (), num_layers=30, hidden_size=8, max_length=64)
    assert default_feature_spec(info, 16).averaged == default_feature_spec(info, 16).layers == (20,)
    for head_values, layers in ((0, (0,)), (3, (0,)), (4, (HEAD_STATE, 0))):
        assert default_feature_spec(replace(info, hidden=False, head_values=head_values), 16).layers == layers


def test_a_key_is_no_part_of_a_config(config: AlignConfig) -> None:
    assert config.endpoints("secret").key == "secret"
    assert "secret" not in repr(config.endpoints("secret"))
    with pytest.raises(ValidationError, match="IRO_ENGINE_KEY"):
        AlignConfig(**config.model_dump(exclude={"engine_urls"}), engine_urls=["http://me:secret@10.0.0.1/v1"])
