"""What the layers of each causal-LM family of transformers 5.23 may differ in, and which of them cannot be moved.

Made by reading every configuration_*.py for lists and rules over layers and every modeling_*.py for what depends on a
layer's place; tests/families/test_families.py and scripts/family_table.py compare it with the real models. A family
that is in none of the tables is unknown: its layers cannot be moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hybridizer.families import attention, mlp
from hybridizer.families.encodings import (
    UNSET,
    Computed,
    Config,
    Encoding,
    Letters,
    Listed,
    OneOrList,
    Overrides,
    integer,
)
from hybridizer.families.rules import always, by_place, every, residual_scale
from hybridizer.families.traits import Trait

# Families whose layers are all alike, have no per-layer settings in the config, and do not depend on their place.
_PLAIN_NAMES = """
    apertus arcee aria_text biogpt bitnet bloom codegen cohere ctrl dbrx doge ernie4_5 falcon flex_olmo gemma glm glm4
    gpt-sw3 gpt_bigcode gpt_neox gptj granite granitemoe granitemoeshared helium hunyuan_v1_dense hyperclovax internlm3
    iquestcoder jais2 jetmoe llama longcat_flash ministral ministral3 mistral mixtral mpt nanochat nemotron olmo olmo2
    olmoe openai-gpt opt persimmon phi phi3 phimoe seed_oss solar_open stablelm starcoder2 xglm youtu
"""
PLAIN = frozenset(_PLAIN_NAMES.split())


def _by_place(name: str, style: str, value: Callable[[int, int, Config], object], chained: str = "") -> Trait:
    return Trait(name, (by_place(style, value),), chained=frozenset({chained} - {""}))


def _one_or_list(key: str) -> Trait:
    return Trait(f"`{key}`", (OneOrList(key), always(UNSET)))


def _rope_theta(layer: int, num_layers: int, config: Config) -> float:
    parameters = config.get("rope_parameters")
    theta = (parameters if isinstance(parameters, Mapping) else config).get("rope_theta", 10000.0)
    if not isinstance(theta, int | float):
        raise ValueError(f"`rope_theta` is {theta!r}, where a number is expected.")
    return theta


def _num_heads(layer: int, num_layers: int, config: Config) -> int:
    return integer(config, "num_attention_heads", 1)


# `no_rope_layers` is 1 for a layer with rotary positions, despite its name.
_ROPE = Trait(
    "rotary positions",
    (
        Listed("no_rope_layers", names={1: "rope", 0: "no rope"}),
        every("no_rope_layer_interval", 4, "no rope", "rope"),
    ),
)
_ROPE_THETA = Trait("rope_theta", (Listed("layer_rope_theta"), by_place("by one `rope_theta`", _rope_theta)))
_OVERRIDES = Trait("overrides", (Overrides(), always("{}")))
_OWN_OVERRIDES = Trait("overrides", (Overrides(), always(UNSET)))  # derived from the layer types


def _indexer(*encodings: Encoding) -> Trait:
    """A "shared" layer reuses the token selection of the last "full" layer before it."""
    return Trait("indexer", (Listed("indexer_types"), *encodings), chained=frozenset({"shared"}))


def _glm_indexer(layer: int, num_layers: int, config: Config) -> str:
    step = max(integer(config, "index_topk_freq", 1), 1)
    return "shared" if max(layer - integer(config, "index_skip_topk_offset", 2) + 1, 0) % step else "full"


_MORE: Mapping[str, tuple[Trait, ...]] = {
    "diffllama": (_by_place("lambda_init", "by a function of the layer's place", lambda i, *_: i),),
    "dots3_note_text": (_OWN_OVERRIDES,),
    "gemma3n_text": (_one_or_list("intermediate_size"), _one_or_list("activation_sparsity_pattern")),
    "gemma4_text": (_OWN_OVERRIDES,),
    "gemma4_unified_text": (_OWN_OVERRIDES,),
    "glm_moe_dsa": (
        _indexer(
            Letters("index_topk_pattern", {"F": "full", "S": "shared"}),
            Computed(("index_topk_freq", "index_skip_topk_offset"), "by a step (`index_topk_freq`)", _glm_indexer),
        ),
    ),
    "gpt2": (
        _by_place(
            "attention scale",
            "by the layer's place (`scale_attn_by_inverse_layer_idx`)",
            lambda i, _, config: i if config.get("scale_attn_by_inverse_layer_idx") else "alike",
        ),
    ),
    "gpt_neox_japanese": (
        _by_place(
            "attention bias", "by the last layer alone having one", lambda i, n, _: "yes" if i == n - 1 else "no"
        ),
    ),
    "granite_swa": (_ROPE_THETA,),
    "granitemoe_swa": (_ROPE_THETA,),
    "hunyuan_v1_moe": tuple(
        _one_or_list(key) for key in ("num_experts", "moe_topk", "moe_intermediate_size", "num_shared_expert")
    ),
    "hy_v4": (
        _indexer(
            by_place("by full layers at 0, 1, 5, 9, ...", lambda i, *_: "shared" if i and (i - 1) % 4 else "full")
        ),
    ),
    "laguna": (
        Trait(
            "attention heads",
            (
                Listed("num_attention_heads_per_layer"),
                by_place("by one `num_attention_heads`", _num_heads),
            ),
        ),
    ),
    "llama4_text": (_ROPE,),
    "minicpm3": (Trait("residual scale", (residual_scale(),)),),
    "modernbert-decoder": (
        _by_place("first norm", "by layer 0 alone having none", lambda i, *_: "yes" if i else "no"),
    ),
    "rwkv": (_by_place("input norm", "by layer 0 alone having one", lambda i, *_: "no" if i else "yes"),),
    "smollm3": (_ROPE,),
    "zaya": (_by_place("router", "by layer 0 alone starting a chain", lambda i, *_: "next" if i else "first", "next"),),
}


def read_traits(family: str) -> tuple[Trait, ...]:
    """What layers of `family` may differ in: its own traits, and those that transformers supports in every family."""
    own, mlp_trait = _MORE.get(family, ()), mlp.mlp_of(family)
    overrides = () if _OWN_OVERRIDES in own else (_OVERRIDES,)
    return (*own, attention.attention_of(family), *([mlp_trait] if mlp_trait else []), *overrides)


def is_known(family: str) -> bool:
    """Whether the family is in one of the tables."""
    return family in PLAIN or family in attention.KNOWN or family in mlp.KNOWN or family in _MORE


def why_bound(family: str, config: Config) -> str | None:
    """Why layers of this model cannot be moved to another place or model; None when they can."""
    reason = None
    if not is_known(family):
        reason = "the family is not in hybridizer's tables, so it is not known how its layers depend on their place"
    elif family in ("zamba", "zamba2"):
        reason = "its hybrid layers share one attention block"
    elif family == "inkling2_text":
        reason = "they attend to the residuals of all blocks before them (`n_layers_per_attn_res_block`)"
    elif family == "qwen4_exp_text" and config.get("ple_layer_ids"):
        reason = "their n-gram embeddings are hashed by the layer's place (`ple_layer_ids`)"
    elif family == "gemma3n_text" or (family == "gemma4_text" and config.get("hidden_size_per_layer_input", 256)):
        reason = "each reads columns of its own in embeddings that belong to the whole model (per-layer embeddings)"
    elif family.startswith("gemma4") and config.get("num_kv_shared_layers"):
        reason = "later layers reuse keys and values of earlier ones (`num_kv_shared_layers`)"
    return reason
