"""Loads a finished model folder with transformers as a user would, and runs the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.core.errors import Problem, VerificationError
from hybridizer.models.faults import library_faults
from hybridizer.models.parts import MODEL_FAULTS
from hybridizer.models.quiet import without_bars

LOAD_FAULTS = (OSError, *MODEL_FAULTS)


@dataclass(frozen=True)
class Loaded:
    """A loaded model and the tensor names that the loader reported as missing, unexpected, or of another shape."""

    model: Any
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


@contextmanager
def without_logs() -> Iterator[None]:
    """Suppress the log lines of transformers inside the block: what they report is returned as values and errors."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def load_reporting(folder: Path, *, remote_code: bool = False) -> Loaded:
    """The causal LM in `folder` in its own dtype, loaded offline. Raises VerificationError when it does not load."""
    from transformers import AutoModelForCausalLM

    try:
        with without_bars(), without_logs(), library_faults():  # missing names are returned in the report
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", local_files_only=True, trust_remote_code=remote_code, output_loading_info=True
            )
    except LOAD_FAULTS as error:
        what = f"transformers does not load it: {type(error).__name__}: {str(error).strip()[:400]}"
        raise VerificationError(
            Problem(str(folder), what, "This should not have been published; report it.")
        ) from error
    lists = (
        tuple(sorted(str(key) for key in report[kind]))
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    )
    return Loaded(model.eval(), *lists)


def compute_logits(model: Any, ids: Sequence[int]) -> Any:
    """The logits (1, time, vocabulary) of one forward pass over token ids, without a cache."""
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits


def generate_text(folder: Path, model: Any, prompt: str, num_tokens: int, *, remote_code: bool = False) -> str | None:
    """The greedy continuation of `prompt`, at most `num_tokens`; None when the folder has no tokenizer.

    The chat template is applied to the prompt where there is one. Raises VerificationError when the tokenizer, its
    template or the generation config does not work.
    """
    import torch

    from hybridizer.models.load import load_tokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        return None
    try:
        with without_logs(), library_faults():
            tokenizer = load_tokenizer(folder, remote_code)
            if tokenizer.chat_template:
                messages = [{"role": "user", "content": prompt}]
                prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            options = {"max_new_tokens": num_tokens, "do_sample": False, "num_beams": 1, "pad_token_id": padding or 0}
            with torch.no_grad():
                output = model.generate(**inputs, **options)
            return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    except LOAD_FAULTS as error:
        what = f"it cannot generate: {type(error).__name__}: {str(error).strip()[:400]}"
        fix = "Repair the host's tokenizer files, chat template or generation_config.json."
        raise VerificationError(Problem(str(folder), what, fix)) from error
