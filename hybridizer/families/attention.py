"""How the config of each family encodes which layers use full, sliding-window or linear attention, or none.

`layer_types`, where a config has it, is read first in every family that supports it. The encodings after it are what
the family used before it had that list, or still assumes without it: the rule of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from hybridizer.families import rules
from hybridizer.families.encodings import Config, Encoding, Indexed, Letters, Listed, Nested, Values, integer
from hybridizer.families.rules import FULL, LINEAR, MOE, SLIDING, always, by_place, sliding_unless_every
from hybridizer.families.traits import Trait

# What transformers before 5 called the layer types; it still reads the old names.
OLD_NAMES = {
    "mamba": LINEAR,
    "attention": FULL,
    "deepseek_sparse_attention": "indexed_attention",
    "qwen_sparse_attention": "indexed_attention",
}
LAYER_TYPES = Listed("layer_types", old_names=OLD_NAMES)
BLOCK_TYPES = Listed("layers_block_type", old_names=OLD_NAMES)
INDEXED, HYBRID, HYBRID_SLIDING = "indexed_attention", "hybrid", "hybrid_sliding"


def _fixed(style: str, rule: Callable[[int], str]) -> Encoding:
    return by_place(style, lambda layer, num_layers, config: rule(layer))


def _full_every(step: int) -> Encoding:
    return _fixed(f"by a full layer after every {step - 1}", lambda i: SLIDING if (i + 1) % step else FULL)


def _full_first_of(step: int) -> Encoding:
    return _fixed(f"by a full layer before every {step - 1}", lambda i: SLIDING if i % step else FULL)


def _linear_unless_every(default: int, full: str = FULL) -> Encoding:
    return rules.every("full_attention_interval", default, full, LINEAR)


def _one_kind(layer: int, num_layers: int, config: Config) -> str:
    window = config.get("sliding_window") and config.get("use_sliding_window", True)
    return SLIDING if window else FULL


ONE_KIND = by_place("not at all: every layer has the same attention", _one_kind)


def _exaone(layer: int, num_layers: int, config: Config) -> str:
    pattern = config.get("sliding_window_pattern", 4)
    if config.get("sliding_window", 4096) is None or not pattern:
        return FULL
    if isinstance(pattern, str):  # "LLLG": local or global, repeated
        return SLIDING if pattern[layer % len(pattern)] == "L" else FULL
    return SLIDING if (layer + 1) % integer(config, "sliding_window_pattern", 4) else FULL


def _cohere2_moe(layer: int, num_layers: int, config: Config) -> str:
    prefix = integer(config, "first_k_dense_replace", 0)
    if layer < prefix:
        step, place = integer(config, "prefix_dense_sliding_window_pattern", 1), layer
    else:
        step, place = integer(config, "sliding_window_pattern", 4), layer - prefix
    return SLIDING if (place + 1) % max(step, 1) else FULL


def _qwen2_moe(layer: int, num_layers: int, config: Config) -> str:
    windowed = config.get("use_sliding_window") and layer < integer(config, "max_window_layers", 28)
    return SLIDING if windowed and layer % 2 == 0 else FULL


def _olmo_hybrid(layer: int, num_layers: int, config: Config) -> str:
    return FULL if (layer + 1) % 4 == 0 or layer + 1 == num_layers < 4 else LINEAR


def has_rope(config: Config, layer: int) -> bool:
    """Whether the layer has rotary positions, by `no_rope_layers` (1 means that it has) or the interval."""
    flags = config.get("no_rope_layers")
    if flags:
        return bool(flags[layer])
    return (layer + 1) % max(integer(config, "no_rope_layer_interval", 4), 1) != 0


def _llama4(layer: int, num_layers: int, config: Config) -> str:
    return "chunked_attention" if has_rope(config, layer) else FULL


def _smollm3(layer: int, num_layers: int, config: Config) -> str:
    windowed = config.get("use_sliding_window") and config.get("sliding_window")
    return SLIDING if windowed and not has_rope(config, layer) else FULL


def _at_least_one_of_each(values: Values) -> str | None:
    missing = [kind for kind in (LINEAR, FULL) if kind not in values]
    return f"only with at least one {missing[0]} layer" if missing else None


def _full_at_the_end(values: Values) -> str | None:
    return None if values[-1] == FULL else "only with a full_attention layer at the very end"


def _two_layers(values: Values) -> str | None:
    # transformers divides by the number of layers less one when it builds the model
    return None if len(values) > 1 else "only with at least two layers"


_PATTERN = sliding_unless_every("sliding_window_pattern", 4)
_EXAONE = replace(_PATTERN, value=_exaone)
_WINDOW_FROM = rules.window_from("max_window_layers", 28, "use_sliding_window")
_INKLING = _fixed("by a full layer after every 5", lambda i: HYBRID_SLIDING if (i + 1) % 6 else HYBRID)
_DEEPSEEK_V4 = {0: SLIDING, 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
_RECURRENT_GEMMA = {"recurrent": LINEAR, "attention": SLIDING}

# Families that support `layer_types`, and what they assume without it.
_WITHOUT_LIST: Mapping[str, tuple[Encoding, ...]] = {
    "afmoe": (sliding_unless_every("global_attn_every_n_layers", 4),),
    "axk2": (always(INDEXED),),
    "bailing_hybrid": (rules.every("layer_group_size", 6, FULL, LINEAR),),
    "cohere2": (_PATTERN,),
    "cohere2_moe": (replace(_PATTERN, value=_cohere2_moe),),
    "cohere_compass_text": (always(FULL),),
    "cwm": (_full_first_of(4),),
    "deepseek_v32": (always(INDEXED),),
    "deepseek_v4": (Listed("compress_ratios", names=_DEEPSEEK_V4),),
    "dots1": (rules.window_from("max_window_layers", 62, None),),
    "dots3_note_text": (),
    "exaone4": (_EXAONE,),
    "exaone_moe": (_EXAONE,),
    "flint": (by_place("by its place", lambda i, n, _: FULL if i < 2 or i % 4 == 1 or i == n - 1 else SLIDING),),
    "gemma2": (_full_every(2),),
    "gemma3_text": (
        sliding_unless_every("sliding_window_pattern", 6),
        sliding_unless_every("_sliding_window_pattern", 6),  # transformers 5 writes it and never reads it
    ),
    "gemma3n_text": (_full_every(5),),
    "gemma4_text": (_full_every(6),),
    "gemma4_unified_text": (_full_every(6),),
    "glm_moe_dsa": (always(INDEXED),),
    "gpt_oss": (_full_every(2),),
    "granite_swa": (_full_first_of(4),),
    "granitemoe_swa": (_full_first_of(4),),
    "granitemoehybrid": (BLOCK_TYPES, always(LINEAR)),
    "hy_v4": (always(INDEXED),),
    "inkling_text": (Indexed("local_layer_ids", HYBRID_SLIDING, HYBRID), _INKLING),
    "inkling2_text": (_INKLING,),
    "kimi_linear": (
        Nested("linear_attn_config", Indexed("full_attn_layers", FULL, LINEAR, first=1)),
        Nested("linear_attn_config", Indexed("kda_layers", LINEAR, FULL, first=1)),
        _fixed("by a full layer at 4, 8, 12, ...", lambda i: FULL if i and i % 4 == 0 else LINEAR),
    ),
    "kolibri1": (_full_every(5),),
    "laguna": (always(FULL),),
    "lfm2": (Indexed("full_attn_idxs", FULL, "conv"), always(FULL)),
    "lfm2_moe": (Indexed("full_attn_idxs", FULL, "conv"),),
    "lfm3": (_fixed("by its place", lambda i: FULL if i % 4 == 2 else SLIDING if i and i % 4 == 0 else "conv"),),
    "llama4_text": (by_place("by the layers that have rotary positions", _llama4),),
    "mellum": (always(FULL),),
    "mimo_v2_flash": (
        Listed("hybrid_layer_pattern", names={1: SLIDING, 0: FULL}),
        _fixed("by full layers at 0, 5, 11, ...", lambda i: SLIDING if i and (i + 1) % 6 else FULL),
    ),
    "minimax": (
        Listed("attn_type_list", names={1: FULL, 0: LINEAR}),
        _fixed("by full and linear layers in turn", lambda i: LINEAR if i % 2 else FULL),
    ),
    "minimax_m3_vl_text": (
        Nested("sparse_attention_config", Listed("sparse_attention_freq", names={1: "minimax_m3_sparse", 0: FULL})),
        always(FULL),
    ),
    "modernbert-decoder": (rules.every("global_attn_every_n_layers", 3, FULL, SLIDING, from_first=True),),
    "olmo3": (_full_every(4),),
    "olmo_hybrid": (by_place("by a full layer after every 3", _olmo_hybrid),),
    "qwen2": (_WINDOW_FROM,),
    "qwen2_moe": (by_place("by windows in turn", _qwen2_moe),),
    "qwen3": (_WINDOW_FROM,),
    "qwen3_5_moe_text": (_linear_unless_every(4),),
    "qwen3_5_text": (_linear_unless_every(4),),
    "qwen3_next": (_linear_unless_every(4),),
    "qwen4_exp_text": (_linear_unless_every(4, INDEXED),),
    "smollm3": (by_place("by the layers without rotary positions", _smollm3),),
    "vaultgemma": (_full_every(2),),
    "zaya": (always(HYBRID),),
}
# Families with encodings of their own only.
_OWN_WAY: Mapping[str, tuple[Encoding, ...]] = {
    "bamba": (Indexed("attn_layer_indices", FULL, LINEAR), always(LINEAR)),
    "falcon_h1": (always(HYBRID),),
    "falcon_mamba": (always("mamba"),),
    "gpt_neo": (Listed("attention_layers"), rules.runs("attention_types", [[["global", "local"], 12]])),
    "jamba": (rules.period("attn_layer_period", "attn_layer_offset", (8, 4), FULL, "mamba"),),
    "mamba": (always("mamba"),),
    "mamba2": (always("mamba2"),),
    "minimax_m2": (Listed("attn_type_list", names={1: FULL, 0: LINEAR}), always(FULL)),
    "nemotron_h": (BLOCK_TYPES, Letters("hybrid_override_pattern", {"M": LINEAR, "E": MOE, "*": FULL, "-": "mlp"})),
    "recurrent_gemma": (rules.cycle("block_types", ("recurrent", "recurrent", "attention"), _RECURRENT_GEMMA),),
    "rwkv": (always("rwkv"),),
    "xlstm": (always("mlstm"),),
    "zamba": (BLOCK_TYPES,),
    "zamba2": (BLOCK_TYPES,),
}
_ORDER_RULES: Mapping[str, Callable[[Values], str | None]] = {
    "gemma4_text": _full_at_the_end,
    "gemma4_unified_text": _full_at_the_end,
    "olmo_hybrid": _at_least_one_of_each,
    "rwkv": _two_layers,
}
KNOWN = frozenset({*_WITHOUT_LIST, *_OWN_WAY})


def attention_of(family: str) -> Trait:
    """The kind of attention of each layer, in the encodings of `family`; one kind for all where it has no encoding."""
    encodings = _OWN_WAY.get(family) or (LAYER_TYPES, *_WITHOUT_LIST.get(family, (ONE_KIND,)))
    trait = Trait("attention", encodings, shown=True)
    return replace(trait, rule=_ORDER_RULES[family]) if family in _ORDER_RULES else trait
