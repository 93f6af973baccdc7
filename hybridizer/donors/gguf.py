"""GGUF files, dequantised to safetensors through transformers and its reader, the package `gguf`."""

from __future__ import annotations

from pathlib import Path

from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.models.quiet import without_bars


def dequantise_gguf(file: Path, folder: Path) -> None:
    """Write the model in `file` into the existing `folder` as config, float32 safetensors, and tokenizer files.

    float32 holds every dequantised value exactly (block scales are float16, products of them are not). Raises
    CheckpointError for an architecture transformers does not read, or a damaged file.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    try:
        with without_bars():
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, IndexError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(
            Problem(
                str(file),
                f"transformers cannot read this GGUF file: {type(error).__name__}: {str(error)[:300]}",
                "Use the original safetensors checkpoint, or a GGUF of an architecture transformers supports.",
            )
        ) from error
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    config = AutoConfig.for_model(**settings)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig.from_model_config(config)
    with without_bars():
        plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
