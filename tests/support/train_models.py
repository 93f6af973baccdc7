"""Tiny models in memory for the training tests, and the parts of them."""

import warnings
from types import SimpleNamespace

import torch

from support.tiny import tiny_config

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


class PlainLayer(torch.nn.Module):
    """Causal attention that keeps documents apart by their positions, and a small network behind it."""

    def __init__(self, width, dropout):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(width, 2 * width), torch.nn.GELU(), torch.nn.Linear(2 * width, width)
        )
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, hidden, allowed):
        q, k, v = self.qkv(self.norm(hidden)).chunk(3, dim=-1)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return hidden + self.dropout(self.mlp(mixed))


class PlainLM(torch.nn.Module):
    """A causal language model in plain torch, for tests that start processes and cannot wait for transformers."""

    def __init__(self, num_layers=4, width=16, vocabulary=257, dropout=0.1):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.layers = torch.nn.ModuleList(PlainLayer(width, dropout) for _ in range(num_layers))
        self.norm = torch.nn.LayerNorm(width)
        self.head = torch.nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids, position_ids=None, use_cache=False):
        hidden = self.embedding(input_ids)
        allowed = torch.ones(input_ids.shape[1], input_ids.shape[1], dtype=torch.bool).tril()
        if position_ids is not None:
            document = (position_ids == 0).cumsum(-1)
            allowed = allowed & (document[:, :, None] == document[:, None, :])
        for layer in self.layers:
            hidden = layer(hidden, allowed)
        return SimpleNamespace(logits=self.head(self.norm(hidden)))


def plain_model(seed=0, dropout=0.1):
    """A PlainLM of 15,744 parameters and its parts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PlainLM(dropout=dropout)
    assert sum(p.numel() for p in model.parameters()) == 15_744
    parts = SimpleNamespace(
        embedding=model.embedding, layers=model.layers, final_norm=model.norm, head=model.head, tuple_sizes=(0,) * 4
    )
    return model, parts
