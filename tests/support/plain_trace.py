"""A reference implementation of LayerTracer, one prompt and one layer at a time, without code of hybridizer."""

from __future__ import annotations

import math

import torch


def plain_trace(model, norm, head, prompts, masked_prompts):
    """JS and target probabilities of every prompt, (n, L+1) each, as lists; `head` makes logits of normed states."""
    return zip(
        *(plain_prompt(model, norm, head, ids, masked) for ids, masked in zip(prompts, masked_prompts, strict=True)),
        strict=True,
    )


@torch.no_grad()
def plain_prompt(model, norm, head, ids, masked):
    clean, final = plain_rows(model, norm, head, ids)
    other, _ = plain_rows(model, norm, head, masked)
    target = int(final.argmax())
    return [plain_js(p, q) for p, q in zip(clean, other, strict=True)], [float(p[target]) for p in clean]


def plain_rows(model, norm, head, ids):
    """P(0)..P(L) of one prompt in float64, and the model's own P(L)."""
    output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    own = torch.softmax(output.logits[0, -1].double(), -1)
    states = output.hidden_states[:-1]  # the last one is normed already
    if model.config.model_type == "mamba":
        states = (model.get_input_embeddings()(torch.tensor([ids])), *states[:-1])  # Mamba reports no h(0)
    rows = [torch.softmax(head(norm(state[0, -1])).double(), -1) for state in states]
    return [*rows, own], own


def plain_js(p, q):
    m = (p + q) / 2
    return sum(float((x * (x / m).log()).nan_to_num().sum()) for x in (p, q)) / 2 / math.log(2)


def plain_boundary_scores(js):
    """S(1)..S(L-1) from the JS of every prompt."""
    n, num_layers = len(js), len(js[0]) - 1
    mean = [sum(row[layer] for row in js) / n for layer in range(num_layers + 1)]
    delta = [abs(mean[layer] - mean[layer - 1]) for layer in range(1, num_layers + 1)]
    return [sum(delta[:b]) / b - sum(delta[b:]) / (num_layers - b) for b in range(1, num_layers)]
