"""How identity layers learn from two starts, on tiny random models: zero projections, or zero norms behind copied ones.

    python scripts/bench_identity.py            # about two minutes of CPU time

Copies of layers 1 and 3 train alone, on bytes of one text, by AdamW. Printed after some steps: the loss, and what layer
1 adds to the residual stream as a share of its norm. Families without norms behind projections have one start.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from hybridizer.models.parts import find_parts, first_floating

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.tiny import make_tiny

NORM_AT_ZERO = {"olmo2": 0.0, "gemma2": -1.0}  # gemma2 multiplies by 1 + weight
COPIES, SHOWN = (1, 3), (0, 1, 2, 5, 20, 100)
TEXT = b"".join(b"document %d says " % i + b"the cat sat on the mat " * (i % 7 + 1) for i in range(120))


def learn(family: str, start: str, lr: float, steps: int) -> list[str]:
    """The loss and the share of layer 1 after each of the steps SHOWN, up to `steps`."""
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_pretrained(make_tiny(family, Path(folder)), dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # off the file that is removed
    layers = find_parts(model).layers
    model.requires_grad_(False)
    for number in COPIES:
        start_(layers[number], family, start)
    trained = [parameter for number in COPIES for parameter in layers[number].requires_grad_(True).parameters()]
    shares: list[float] = []
    layers[1].register_forward_hook(lambda *call: shares.append(share_of(*call)), with_kwargs=True)
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    generator, found = torch.Generator().manual_seed(0), []
    data = torch.tensor(list(TEXT)) % 250 + 4
    for step in range(steps + 1):
        starts = torch.randint(len(data) - 32, (8,), generator=generator).tolist()
        ids = torch.stack([data[begin : begin + 32] for begin in starts])
        logits = model(input_ids=ids).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        if step in SHOWN:
            found.append(f"{step}: {loss.item():.3f} ({shares[-1]:.1g})")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return found


@torch.no_grad()
def start_(layer: Any, family: str, start: str) -> None:
    """Make `layer` return its input."""
    if start == "projections":
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    else:
        layer.post_attention_layernorm.weight.fill_(NORM_AT_ZERO[family])
        layer.post_feedforward_layernorm.weight.fill_(NORM_AT_ZERO[family])


def share_of(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> float:
    """The norm of what a layer adds, as a share of the norm of what it was given."""
    taken, given = first_floating((*args, *kwargs.values())), first_floating(output)
    assert taken is not None and given is not None
    return float((given - taken).norm() / taken.norm())


def main(families: Sequence[str], rates: Sequence[float], steps: int) -> None:
    """One line for each family, start and learning rate."""
    for family in families:
        for start in ("projections", "norms") if family in NORM_AT_ZERO else ("projections",):
            for lr in rates:
                print(family, f"zero {start}", f"lr {lr:g}", *learn(family, start, lr, steps), sep="  ", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=["llama", "olmo2", "gemma2"])
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-5, 2e-4, 1e-3])
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    main(given.families, given.lr, given.steps)
