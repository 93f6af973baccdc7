"""Low-rank adapters through peft: added to a model in place, and merged back into plain weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hybridizer.core.errors import InputError, Problem
from hybridizer.recipe.models import Lora


def add_lora_(model: nn.Module, module_names: Sequence[str], settings: Lora, seed: int = 0) -> None:
    """Put an adapter on each linear module named, by its full path in `model`; the modules keep their weights inside.

    The adapters begin with the numbers that `seed` gives, whatever this process drew before. Raises InputError when
    peft is not installed or adapts other modules than those.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        problem = Problem(
            "train.lora", "low-rank adapters need the package peft.", "pip install peft, or remove `lora`."
        )
        raise InputError(problem) from None
    if not module_names:
        what = "the layers that train have no linear modules, which adapters need."
        raise InputError(Problem("train.lora", what, "Train without LoRA."))
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=list(module_names)
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model)
    except ValueError as error:  # peft refuses some kinds of module
        what = f"peft refuses these modules: {error}"
        raise InputError(Problem("train.lora", what, "Train without LoRA.")) from error
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    if adapted != set(module_names):  # peft also adapts modules whose path ends with a name
        wrong = ", ".join(sorted(adapted ^ set(module_names))[:5])
        raise InputError(
            Problem("train.lora", f"peft adapted other modules than requested: {wrong}.", "Train without LoRA.")
        )


@torch.no_grad()
def merge_lora_(model: nn.Module) -> dict[str, Tensor]:
    """Add every adapter into the weight below it, in float32, and take it out; the changed weights by name."""
    merged = {}
    for name, module in [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_A")]:
        base = module.get_base_layer()
        base.weight.data = base.weight.data.float()
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, base)
        merged[f"{name}.weight"] = base.weight.data
    return merged
