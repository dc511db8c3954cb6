from __future__ import annotations

import pytest
from pydantic import ValidationError

from training.iro.config import AlignConfig

URL = "http://127.0.0.1:8001"


def test_over_http_value_functions_have_a_backbone_of_their_own(config: AlignConfig) -> None:
    given = config.model_dump(exclude={"value_model", "feature_spec", "engine_urls"})
    assert AlignConfig(**given).value_model == "linear"
    remote = AlignConfig(**given, engine_urls=[URL])
    assert (remote.value_model, remote.engine_urls) == ("lora", (f"{URL}/v1",))
    for value_model in ("linear", "mlp"):
        with pytest.raises(ValidationError, match="hidden states"):
            AlignConfig(**given, engine_urls=[URL], value_model=value_model)


def test_a_key_is_no_part_of_a_config(config: AlignConfig) -> None:
    assert config.endpoints("secret").key == "secret"
    assert "secret" not in repr(config.endpoints("secret"))
    with pytest.raises(ValidationError, match="IRO_ENGINE_KEY"):
        AlignConfig(**config.model_dump(exclude={"engine_urls"}), engine_urls=["http://me:secret@10.0.0.1/v1"])
