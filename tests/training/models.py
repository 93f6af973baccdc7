"""Tiny models in memory for the training tests, and the parts of them."""

import warnings
from types import SimpleNamespace

import torch
from tiny import tiny_config

MAX_PARAMETERS = 400_000


def tiny_model(model_type="llama", seed=0, **overrides):
    """A random float32 model of the family; its size is asserted."""
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, **overrides))
    assert sum(p.numel() for p in model.parameters()) < MAX_PARAMETERS
    return model.train()


def llama_parts(model):
    """The parts of a Llama-shaped model."""
    body = model.model
    return SimpleNamespace(embedding=body.embed_tokens, layers=body.layers, final_norm=body.norm, head=model.lm_head)
