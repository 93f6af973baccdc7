"""The table of what families assume for absent keys is what the installed transformers assumes."""

from __future__ import annotations

import json

import pytest

from hybridizer.families.keys import is_harmless, read_assumptions
from support.scripts import load_script

FAMILIES = """
    bamba cohere2 deepseek_v3 falcon falcon_h1 gemma2 gemma3_text gpt2 gpt_neox gpt_oss granitemoehybrid jamba lfm2
    llama mamba2 mixtral nemotron_h olmo2 phi3 qwen2 qwen3 qwen3_moe qwen3_next
"""


@pytest.mark.parametrize("family", FAMILIES.split())
def test_the_stored_defaults_are_those_of_the_installed_transformers(family: str) -> None:
    script = load_script("family_table")
    assert json.loads(script.DEFAULTS.read_text())[family] == script.read_class(family)


def test_an_absent_key_has_the_default_of_the_family() -> None:
    assert read_assumptions("qwen3").value_of("head_dim", {}) == 128
    assert read_assumptions("llama").value_of("head_dim", {"hidden_size": 64, "num_attention_heads": 4}) == 16
    assert read_assumptions("llama").value_of("num_key_value_heads", {"num_attention_heads": 4}) == 4
    assert read_assumptions("deepseek_v3").value_of("head_dim", {"qk_rope_head_dim": 8}) == 8
    assert read_assumptions("gpt_neox").value_of("attention_bias", {}) is True
    assert read_assumptions("llama").value_of("head_dim", {"head_dim": 32}) == 32
    assert read_assumptions("a_family_of_the_future").value_of("head_dim", {}) is None


def test_a_dotted_key_is_harmless_by_its_last_part() -> None:
    assert is_harmless("attn_config.attn_pdrop") and is_harmless("image_token_id") and is_harmless("eos_token_id")
    assert not is_harmless("attn_config.clip_qkv") and not is_harmless("rms_norm_eps")
