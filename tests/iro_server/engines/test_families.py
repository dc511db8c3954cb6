"""Every decoder family that transformers has: the embedded engine computes it as transformers does, or refuses it.

The comparison is with a second copy of the model, loaded and run by transformers alone, and independent of the engine's
own check at load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

from benchmarks.families import EXACT, PROMPTS, judge, reference_logprobs, save_model
from benchmarks.family_configs import NOT_BUILT, SPAN, VOCABULARY, tiny_config
from iro_server.engines import attention, equality
from iro_server.engines.attention import Softmax
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.frozen_model import FrozenModel, data_type

ROOT = Path(__file__).parents[3]
RUN = [
    *("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "gemma3", "granite", "granitemoe"),
    *("cohere", "cohere2", "olmo2", "phi3", "glm4", "mixtral", "smollm3"),
]
REFUSED = ["lfm2", "bamba", "qwen3_next", "deepseek_v3", "gpt_oss", "bloom", "mamba"]


@pytest.mark.parametrize("family", RUN)
def test_common_families_run_exactly(family: str) -> None:
    verdict = judge(family)
    assert verdict.outcome == "exact", verdict


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_a_flat_batch_would_mix_up_are_refused(family: str) -> None:
    assert judge(family).outcome == "refused"


@pytest.mark.slow(1)
@pytest.mark.parametrize("family", sorted({*CAUSAL} - {*RUN, *REFUSED, *NOT_BUILT}))
def test_every_other_family_is_exact_or_refused(family: str) -> None:
    verdict = judge(family)
    assert verdict.outcome in ("exact", "refused"), verdict


@pytest.mark.parametrize("family", RUN)
def test_what_is_compared_depends_on_earlier_tokens(family: str, tmp_path: Path) -> None:
    """A tiny model that ignored its context would be computed exactly by any engine."""
    save_model(family, tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    rows = torch.randint(3, VOCABULARY - 8, (1, sum(PROMPTS)), generator=torch.Generator().manual_seed(0))
    other = rows.clone()
    other[0, -5] = 3
    assert (reference_logprobs(model, rows, 3) - reference_logprobs(model, other, 3)).abs().max() > 100 * EXACT


def test_a_refusal_says_what_differs_and_what_to_do(tmp_path: Path) -> None:
    save_model("bamba", tmp_path)
    with pytest.raises(ValueError, match=r"BambaForCausalLM: .* by [\d.]+ nats .*vLLM.*--engine-url"):
        EmbeddedEngine(tmp_path)


@pytest.mark.parametrize(
    "broken",
    [
        lambda softmax: Softmax(softmax.scaling, None, softmax.softcap),
        lambda softmax: Softmax(softmax.scaling, softmax.window, None),
        lambda softmax: Softmax(softmax.scaling * 1.01, softmax.window, softmax.softcap),
        lambda softmax: Softmax(softmax.scaling, softmax.window and softmax.window + 1, softmax.softcap),
    ],
    ids=["no window", "no soft cap", "another scaling", "a window of one more"],
)
def test_the_check_at_load_notices_wrong_attention(broken: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Even of a window that is longer than the rows it samples."""
    save_model("gemma2", tmp_path)
    assert sum(PROMPTS) > SPAN > max(equality.PROMPTS) + 2 * equality.CHUNK
    EmbeddedEngine(tmp_path).close()
    monkeypatch.setattr(attention, "Softmax", lambda *args: broken(Softmax(*args)))
    with pytest.raises(ValueError, match="nats"):
        EmbeddedEngine(tmp_path)


@pytest.mark.parametrize("family", ["granite", "cohere", "gemma2"])
def test_the_check_at_load_notices_a_missing_logit_scale(family: str, tmp_path: Path, monkeypatch: Any) -> None:
    save_model(family, tmp_path)
    monkeypatch.setattr(FrozenModel, "logits", lambda self, states: self.model.get_output_embeddings()(states).float())
    with pytest.raises(ValueError, match="nats"):
        EmbeddedEngine(tmp_path)


def test_data_types() -> None:
    """Float32 on a CPU; on a GPU that of the weights, bfloat16 where the configuration does not say."""
    config = tiny_config("gemma3")
    assert (data_type(config, "cpu"), data_type(config, "cuda")) == (torch.float32, torch.bfloat16)
    config.dtype = torch.float16
    assert data_type(config, "cuda") == torch.float16
    config.text_config.dtype = torch.float32
    assert data_type(config, "cuda") == torch.float32


def test_long_rope_runs_up_to_where_its_frequencies_change(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, **factors}
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 32}
    assert judge("phi3", **changes).outcome == "exact"
    save_model("phi3", tmp_path, **changes)
    with EmbeddedEngine(tmp_path) as engine:
        assert engine.info.max_length == 32


async def test_a_model_that_also_sees_reports_its_text_part(tmp_path: Path) -> None:
    save_model("gemma3", tmp_path)
    text = tiny_config("gemma3").get_text_config()
    with EmbeddedEngine(tmp_path) as engine:
        assert (engine.info.num_layers, engine.info.hidden_size) == (text.num_hidden_layers, text.hidden_size)
        session = await engine.open([3, 4], Sampling(seed=0), layers=(0, text.num_hidden_layers))
        chunk = await session.extend([0], 2, 3)
    assert chunk.hidden[0].shape == chunk.hidden[text.num_hidden_layers].shape == (2, 3, text.hidden_size)


def test_every_family_has_a_recorded_verdict_and_none_is_wrong() -> None:
    rows = json.loads((ROOT / "results/families/default.json").read_text())["families"]
    assert {row["outcome"] for row in rows} <= {"exact", "refused", "not built"}
    assert {row["family"] for row in rows if row["outcome"] == "not built"} == {*NOT_BUILT}
