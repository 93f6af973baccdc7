"""Configs and tensor shapes without files, for tests of code that reads no weights."""

from __future__ import annotations

from typing import Any

from hybridizer.families.reading import read_structure
from hybridizer.families.structure import Structure

WIDTH, VOCAB = 8, 32
_LAYER = {
    "input_layernorm.weight": (WIDTH,),
    "mlp.down_proj.weight": (WIDTH, 16),
    "self_attn.q_proj.weight": (WIDTH, WIDTH),
}


def llama_config(num_layers: int = 3, **changes: Any) -> dict[str, Any]:
    """A small llama config; `changes` add keys, replace them, or remove them where they are None."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": num_layers,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": VOCAB,
    }
    return {key: value for key, value in {**config, **changes}.items() if value is not None}


def llama_shapes(num_layers: int = 3, stem: str = "model.") -> dict[str, tuple[int, ...]]:
    """Names and shapes to go with it."""
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (VOCAB, WIDTH),
        f"{stem}embed_tokens.weight": (VOCAB, WIDTH),
    }
    for layer in range(num_layers):
        shapes |= {f"{stem}layers.{layer}.{suffix}": shape for suffix, shape in _LAYER.items()}
    return shapes | {f"{stem}norm.weight": (WIDTH,)}


def llama(where: str = "alpha", num_layers: int = 3, **changes: Any) -> Structure:
    """The structure of a small llama checkpoint."""
    return read_structure(llama_config(num_layers, **changes), llama_shapes(num_layers), where)
