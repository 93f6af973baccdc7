"""How the keys of a config affect layers: not at all, as another name of a key, or by a default when absent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.families.encodings import Config


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names, versions, token ids, training, output switches: layers do not depend on them.
_NOT_ABOUT_LAYERS = _words("""
    _name_or_path name_or_path transformers_version model_type architectures auto_map dtype torch_dtype use_cache
    attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled attn_impl
    _commit_hash unsloth_version unsloth_fixed transformers.js_config use_bfloat16 gradient_checkpointing
    vocab_size unpadded_vocab_size max_position_embeddings keys_to_ignore_at_inference tokenizer_class model_max_length
    return_dict output_attentions output_hidden_states output_router_logits return_last_states chunk_size_feed_forward
    is_decoder is_encoder_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder torchscript
    pruned_heads id2label label2id problem_type finetuning_task task_specific_params classifier_dropout
    classifier_activation classifier_bias prefix num_logits_to_keep special_tokens_map decoder_start_token_id
    is_llama_config cache_implementation
    initializer_range initializer_cutoff_factor init_std init_device lambda_std_dev learnable_sink_init
    embedding_initializer_range final_w_init_variance_scale w_init_variance_scale rescale_prenorm_residual
    time_step_min time_step_max time_step_floor time_step_scale time_step_init_scheme
    attention_dropout dropout activation_dropout hidden_dropout hidden_dropout_prob attention_probs_dropout_prob
    attn_pdrop embd_pdrop emb_pdrop resid_pdrop resid_dropout embed_dropout embedding_dropout residual_dropout
    mlp_dropout layerdrop router_jitter_noise input_jitter_noise moe_jitter_eps
    router_aux_loss_coef aux_loss_coef moe_loss_weight z_loss_coefficient router_z_loss_coef seq_aux aux_loss_alpha
    pretraining_tp use_mamba_kernels use_mambapy use_falcon_mambapy use_mem_eff_path use_associative_scan ep_size
    max_inference_chunksize
""")
# Before the first layer or after the last one: the host's, like its embedding and its head.
_AT_THE_ENDS = _words("""
    tie_word_embeddings tie_embedding embedding_multiplier scale_emb scale_embedding embedding_scale embedding_fraction
    logits_scaling logit_scale logits_soft_cap final_logit_softcapping output_logit_soft_cap lm_head_multiplier
    lm_head_bias dim_model_base logits_mup_width_multiplier _remove_final_layer_norm word_embed_proj_dim
    num_nextn_predict_layers num_mtp_layers chain_hidden_post_norm
""")
_HARMLESS = _NOT_ABOUT_LAYERS | _AT_THE_ENDS
_HARMLESS_STARTS = ("mtp_", "summary_", "vision_", "audio_", "image_", "video_")
_HARMLESS_ENDS = ("_token_id", "_token_index", "_loss_coef")

# Lists about the whole model, which may happen to have as many entries as the model has layers.
GLOBAL_LISTS = _words("""
    architectures eos_token_id bos_token_id pad_token_id suppress_tokens begin_suppress_tokens bad_words_ids
    keys_to_ignore_at_inference mlp_multipliers ssm_multipliers time_step_limit
    mtp_layers_block_type mtp_layer_types mtp_mlp_layer_types mtp_local_layer_ids
""")

# Two names of one key, across families or versions; the second is the name used here.
SAME_AS = {
    "n_embd": "hidden_size", "d_model": "hidden_size", "n_embed": "hidden_size",
    "n_head": "num_attention_heads", "n_heads": "num_attention_heads", "attention_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads", "n_head_kv": "num_key_value_heads",
    "num_experts": "num_local_experts", "n_routed_experts": "num_local_experts", "moe_num_experts": "num_local_experts",
    "moe_topk": "num_experts_per_tok", "moe_k": "num_experts_per_tok", "num_experts_per_token": "num_experts_per_tok",
    "num_expert_group": "n_group", "num_shared_experts": "n_shared_experts", "moe_renormalize": "norm_topk_prob",
    "n_positions": "max_position_embeddings", "n_ctx": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings", "context_length": "max_position_embeddings",
    "model_max_length": "max_position_embeddings",
    "qkv_bias": "attention_bias", "block_ff_dim": "intermediate_size", "sconv_kernel_size": "conv_kernel_size",
    "mamba_n_groups": "n_groups", "mamba_d_conv": "conv_kernel", "mamba_expand": "expand",
    "mamba_chunk_size": "chunk_size", "mamba_conv_bias": "use_conv_bias",
}  # fmt: skip


def unify(config: Config) -> dict[str, Any]:
    """`config` with every key under the name used here, whose value is taken where both names are present."""
    return {SAME_AS.get(key, key): value for key, value in config.items() if SAME_AS.get(key) not in config}


def is_harmless(key: str) -> bool:
    """Whether layers do not depend on this key; of a dotted key the last part decides."""
    key = key.rpartition(".")[2]
    return key in _HARMLESS or key.startswith(_HARMLESS_STARTS) or key.endswith(_HARMLESS_ENDS)


@dataclass(frozen=True)
class Assumptions:
    """What a family assumes for absent keys, and which keys it computes from others, ignoring the file.

    `tied` is the assumption about `tie_word_embeddings`; None for an unknown family.
    """

    assumed: Mapping[str, Any]
    derived: frozenset[str]
    tied: bool | None

    def value_of(self, key: str, config: Config) -> Any:
        """The value of `key` in `config`, or what the family assumes where it is absent, or None."""
        if key in config:
            return config[key]
        heads, width = config.get("num_attention_heads"), config.get("hidden_size")
        if key == "num_key_value_heads" and key not in self.assumed:
            return heads
        if key == "head_dim" and "qk_rope_head_dim" in config:
            return config["qk_rope_head_dim"]
        if key == "head_dim" and key not in self.assumed and isinstance(heads, int) and isinstance(width, int):
            return width // heads if heads else None
        return self.assumed.get(key)


def read_assumptions(family: str) -> Assumptions:
    """What transformers 5.23 assumes for `family`, from the table that scripts/family_table.py --defaults writes."""
    entry = json.loads(Path(__file__).with_name("defaults.json").read_text()).get(family, {})
    assumed = {SAME_AS.get(key, key): value for key, value in entry.get("assumed", {}).items()}
    return Assumptions(assumed, frozenset(entry.get("derived", ())), entry.get("tied"))
