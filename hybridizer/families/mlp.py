"""How the config of each family encodes which layers have a dense MLP and which a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping

from hybridizer.families import rules
from hybridizer.families.encodings import Encoding, Indexed, Listed
from hybridizer.families.rules import DENSE, MOE, always, by_place
from hybridizer.families.traits import Trait

MLP_TYPES = Listed("mlp_layer_types", names={"sparse": MOE})
_FLAGS = Listed("moe_layer_freq", names={1: MOE, 0: DENSE})
_DENSE_FIRST_LAYER = by_place(
    "by a dense layer at the start", lambda layer, num_layers, config: MOE if layer else DENSE
)


def _first_dense(default: int, key: str = "first_k_dense_replace") -> Encoding:
    return rules.first(key, default, DENSE, MOE)


_ENCODINGS: Mapping[str, tuple[Encoding, ...]] = {
    "afmoe": (_first_dense(1, "num_dense_layers"),),
    "axk1": (MLP_TYPES, _first_dense(1)),
    "axk2": (MLP_TYPES, _first_dense(1)),
    "bailing_hybrid": (MLP_TYPES, _first_dense(2)),
    "cohere2_moe": (MLP_TYPES, _first_dense(0)),
    "deepseek_v2": (_first_dense(0),),
    "deepseek_v3": (_first_dense(3),),
    "deepseek_v32": (MLP_TYPES, _first_dense(3)),
    "deepseek_v4": (Listed("mlp_layer_types"), rules.first("num_hash_layers", 3, "hash_moe", MOE)),
    "dots1": (_first_dense(0),),
    "dots3_note_text": (MLP_TYPES, _FLAGS, _first_dense(1)),
    "ernie4_5_moe": (rules.sparse_range(),),
    "exaone_moe": (MLP_TYPES, _first_dense(1)),
    "flint": (rules.sparse_step((0, 1)),),
    "glm4_moe": (_first_dense(1),),
    "glm4_moe_lite": (MLP_TYPES, _first_dense(1)),
    "glm_moe_dsa": (MLP_TYPES, _first_dense(3)),
    "hy_v3": (MLP_TYPES, _first_dense(1)),
    "hy_v4": (MLP_TYPES, _first_dense(1)),
    "inkling_text": (MLP_TYPES, _first_dense(0, "dense_mlp_idx")),
    "jamba": (rules.period("expert_layer_period", "expert_layer_offset", (2, 1), MOE, DENSE),),
    "kimi_linear": (MLP_TYPES, _first_dense(1)),
    "laguna": (MLP_TYPES, _DENSE_FIRST_LAYER),
    "lfm2_moe": (_first_dense(2, "num_dense_layers"),),
    "llama4_text": (
        Indexed("moe_layers", MOE, DENSE),
        rules.every("interleave_moe_layer_step", 1, MOE, DENSE),
    ),
    "mellum": (MLP_TYPES, always(MOE)),
    "mimo_v2_flash": (MLP_TYPES, _FLAGS, _DENSE_FIRST_LAYER),
    "minimax_m3_vl_text": (MLP_TYPES, _FLAGS, always(MOE)),
    "qwen2_moe": (rules.sparse_step(()),),
    "qwen3_moe": (rules.sparse_step(()),),
    "qwen3_next": (rules.sparse_step(()),),
}
KNOWN = frozenset(_ENCODINGS)


def mlp_of(family: str) -> Trait | None:
    """Dense or mixture of experts for each layer, in the encodings of `family`; None where all layers are alike."""
    return Trait("mlp", _ENCODINGS[family], shown=True) if family in _ENCODINGS else None
