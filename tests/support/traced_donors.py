"""Tiny donors for the tracer's tests: a model in memory with its tokenizer and parts, and probes to trace it on."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from hybridizer.models.load import load_causal_lm
from hybridizer.models.parts import find_parts
from hybridizer.trace.probes import Probe, ProbeSet
from hybridizer.trace.record import RecordedDonor
from support.tiny import make_tiny, tiny_tokenizer

# One or more of every kind: scaled embeddings and logits, soft caps, tuples as outputs, several residual streams, keys
# and values shared between layers, mixtures of experts, convolutions, and state spaces pure and mixed.
FAMILIES = (
    "llama", "gpt2", "gemma2", "gemma3n_text", "cohere", "granite", "bloom", "opt", "mixtral",
    "deepseek_v4", "mamba", "mamba2", "rwkv", "jamba", "lfm2", "zamba2", "qwen3_next",
)  # fmt: skip

PROBES = ProbeSet(
    name="tiny.jsonl",
    sha256="0" * 64,
    probes=tuple(
        Probe(prompt, target)
        for prompt, target in [
            ("hot is not ", "c"),
            ("big is not ", "s"),
            ("up is the opposite of ", "d"),
            ("in and", None),
            ("the day and the ", "n"),
            ("wet is not ", "d"),
            ("old is not", None),
        ]
    ),
)


def load_tiny(family: str, folder: Path, **overrides):
    """A tiny random donor as (model, tokenizer, parts), in float32."""
    make_tiny(family, folder, **overrides)
    tiny_tokenizer(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # families warn of kernels that are not installed
        model, tokenizer = load_causal_lm(folder, torch.float32)
        return model, tokenizer, find_parts(model)


def spread(model, scale: float = 6.0):
    """Make every weight matrix `scale` times larger, so that a random model's predictions differ from each other."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return model


def traced(parts) -> RecordedDonor:
    return RecordedDonor("tiny", "sha256:0", "tiny", parts.num_layers)
