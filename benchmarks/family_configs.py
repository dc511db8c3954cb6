"""Configurations so small that a model of any decoder family is built in a moment, by the names families use."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from iro_server import JsonObject

VOCABULARY = 128
SPAN = 12  # tokens of a window or chunk: longer than the rows of the engine's own check

SMALL: JsonObject = {
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"], VOCABULARY),
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "backbone_hidden_size"], 64),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"], 6),
    **dict.fromkeys(["encoder_layers", "num_decoder_layers", "num_encoder_layers", "depth"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["num_decoder_attention_heads", "num_encoder_attention_heads", "swa_num_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "swa_num_key_value_heads", "num_global_key_value_heads"], 2),
    **dict.fromkeys(["head_dim", "swa_head_dim", "global_head_dim", "kv_channels", "dim_head"], 16),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dff", "dim_ff"], 96),
    **dict.fromkeys(["ffn_hidden_size", "d_inner", "n_inner", "intermediate_size_mlp", "dense_intermediate_size"], 96),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"], 32),
    **dict.fromkeys(["moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"], 32),
    **dict.fromkeys(["expert_ffn_hidden_size", "hidden_size_per_layer_input", "router_hidden_size"], 32),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(
        [
            "num_experts_per_tok",
            "num_experts_per_token",
            "moe_topk",
            "moe_k",
            "n_group",
            "topk_group",
            "zero_expert_num",
        ],
        2,
    ),
    **dict.fromkeys(["first_k_dense_replace", "num_dense_layers"], 1),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"], 256),
    **dict.fromkeys(["sliding_window", "sliding_window_size", "attention_window_size", "window_size"], SPAN),
    **dict.fromkeys(["attention_chunk_size", "index_topk", "keep_window_size", "local_attention"], SPAN),
    **dict.fromkeys(["floor_scale", "log_scaling_n_floor"], SPAN),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "o_lora_rank"], 16),
    **dict.fromkeys(["qk_nope_head_dim", "v_head_dim", "index_head_dim", "query_pre_attn_scalar"], 16),
    **dict.fromkeys(["qk_rope_head_dim", "rotary_dim", "laurel_rank", "adapter_rank", "time_step_rank"], 8),
    **dict.fromkeys(["index_n_heads", "linear_num_heads", "linear_num_value_heads"], 4),
    **dict.fromkeys(["linear_num_key_heads", "mamba_n_groups", "n_groups", "n_mamba_heads", "mamba_ngroups"], 2),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"], 16),
    **dict.fromkeys(["mamba_d_state", "ssm_state_size", "state_size"], 8),
    **dict.fromkeys(["mamba_n_heads", "mamba_num_heads"], 8),
    **dict.fromkeys(["mamba_d_head", "mamba_head_dim"], 16),
    **dict.fromkeys(["chunk_size", "mamba_chunk_size", "block_size"], 8),
    **dict.fromkeys(["logits_scaling", "embedding_multiplier", "lm_head_multiplier"], 2.0),
    **dict.fromkeys(["logit_scale", "residual_multiplier", "attention_multiplier"], 0.3),
    **dict.fromkeys(["final_logit_softcapping", "attn_logit_softcapping"], 2.0),
    **dict.fromkeys(["n_shared_experts", "num_shared_experts", "moe_num_shared_experts"], 1),
    "mamba_d_ssm": 128,
    "image_size": 28,
    "patch_size": 14,
    "is_decoder": True,
    "use_sliding_window": True,
    "max_window_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DOTS3_NOTE = {
    "head_dim": 24,
    "num_key_value_heads": 4,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 24,
    "swa_qk_nope_head_dim": 16,
    "swa_v_head_dim": 16,
}
QWEN4 = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 12,
    "indexer_compress_ratio": 4,
}
MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": SPAN,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "llama_4_scaling_beta": 0.5,
}
CHANGES: dict[str, JsonObject] = {  # what a family's validation asks for, and layers of each of its kinds
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "dots3_note_text": DOTS3_NOTE,
    "gemma3n_text": {"num_hidden_layers": 10, "num_kv_shared_layers": 5},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "kimi_linear": {"n_group": 1, "topk_group": 1},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 8},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 3,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "ministral3": {"rope_parameters": MINISTRAL3_ROPE},
    "phimoe": {"sliding_window": 256},  # the published model's, as long as its longest text
    "qwen2_moe": {"use_sliding_window": False},  # as published
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "reformer": {"axial_pos_embds": False, "attention_head_size": 16},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "bailing_hybrid": {"n_group": 2, "topk_group": 2},
    "bamba": {"attn_layer_indices": [1, 4]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 3},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"full_attn_idxs": [1, 4]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 3},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 3},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 3},
}
NOT_BUILT: dict[str, str] = {
    "blt": "five parts, over bytes, whose widths must fit together",
    "dots3_note": "its parts' layers are described one by one; dots3_note_text is its text part",
    "gemma3n": "its vision part needs the package timm; gemma3n_text is its text part",
    "gemma4_assistant": "drafts for another model, whose states it reads",
    "gemma4_unified_assistant": "drafts for another model, whose states it reads",
    "musicgen": "transformers builds no causal language model from its default configuration",
    "musicgen_melody": "transformers builds no causal language model from its default configuration",
}


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """The family's default configuration with everything that counts or measures made small."""
    kind = CONFIG_MAPPING[family]
    default = kind()
    values = small_values(default)
    for name in kind.sub_configs:
        if isinstance(part := getattr(default, name, None), PreTrainedConfig):
            values[name] = {"model_type": part.model_type} | small_values(part)
    for name, value in {**CHANGES.get(family, {}), **changes}.items():
        nested = isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = values[name] | value if nested else value
    return kind(**values)


def small_values(default: PreTrainedConfig) -> JsonObject:
    names = default.to_dict()
    values = {name: value for name, value in SMALL.items() if name in names}
    if "kv_lora_rank" in names:  # latent attention: as many key-value heads as heads, whose sizes follow
        values["num_key_value_heads"] = values["num_attention_heads"]
        values.pop("head_dim", None)
    return values
