"""Tiny GGUF files of the llama architecture, with a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, HEADS, KV_HEADS, INNER, VOCABULARY, LAYERS = 32, 4, 2, 48, 40, 2


def tiny_tensors(seed: int = 0, layers: int = LAYERS) -> dict[str, np.ndarray]:
    """The tensors of a tied llama of 2 layers, float32, by the names that llama.cpp gives them."""
    generator = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    kv = HIDDEN // HEADS * KV_HEADS
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (HIDDEN,),
            f"blk.{layer}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k.weight": (kv, HIDDEN),
            f"blk.{layer}.attn_v.weight": (kv, HIDDEN),
            f"blk.{layer}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_norm.weight": (HIDDEN,),
            f"blk.{layer}.ffn_gate.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_down.weight": (HIDDEN, INNER),
        }
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def tiny_settings() -> dict[str, Any]:
    """The header of that llama."""
    return {
        "llama.block_count": LAYERS,
        "llama.context_length": 64,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 100_000.0,
        "llama.rope.dimension_count": HIDDEN // HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": VOCABULARY,
    }


def write_gguf(
    path: Path,
    change: Callable[[dict[str, Any], dict[str, np.ndarray]], None] | None = None,
    *,
    tokenizer: bool = True,
) -> Path:
    """Write the tiny llama to `path`, after `change` edited the header and the tensors."""
    from gguf import GGUFWriter

    settings, tensors = tiny_settings(), tiny_tensors()
    if change is not None:
        change(settings, tensors)
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    _add(writer, settings)
    if tokenizer:
        letters = [chr(code) for code in range(ord("a"), ord("a") + VOCABULARY - 4)]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(["<unk>", "<s>", "</s>", *letters, "ab"])
        writer.add_token_types([3, 3, 3, *([1] * (len(letters) + 1))])
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
