"""Loads a finished model folder with transformers as a user would, and runs the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybridizer.core.errors import DonorError, Problem, VerificationError
from hybridizer.models.faults import library_faults
from hybridizer.models.limits import call_within
from hybridizer.models.parts import MODEL_FAULTS, find_parts, first_floating
from hybridizer.models.quiet import without_bars

LOAD_FAULTS = (OSError, MemoryError, *MODEL_FAULTS)
MAX_PROMPT_TOKENS = 4096
MAX_PROMPT_CHARACTERS = 200_000
PROMPT_SECONDS = 20.0
GENERATION_SECONDS = 60.0


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

    fix = "Compare its config.json and tensors with those of the donors, and report it if they agree."
    with (
        reporting_faults(folder, "transformers does not load it", fix),
        without_bars(),
        without_logs(),
    ):  # missing names are returned in the report
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, trust_remote_code=remote_code, output_loading_info=True
        )
    lists = (
        tuple(sorted(str(key) for key in report[kind]))
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    )
    return Loaded(model.eval(), *lists)


@contextmanager
def reporting_faults(folder: Path, what: str, fix: str) -> Iterator[None]:
    """Turn what transformers raises inside the block into a VerificationError about `folder`; its logs are silent."""
    try:
        with without_logs(), library_faults():  # what the log lines say is in the error or in the loading report
            yield
    except LOAD_FAULTS as error:
        found = f"{what}: {type(error).__name__}: {str(error).strip()[:400]}"
        raise VerificationError(Problem(str(folder), found, fix)) from error


def copy_tensors_(model: Any) -> None:
    """Move every tensor of `model` out of its file's mapping into memory of its own, where it is aligned.

    In a mapped file a tensor starts wherever the header ends. Kernels take other paths for other alignments, and sums
    of the same numbers then differ in the last bits (8.9e-07 in the logits of a tiny jetmoe).
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()


def compute_logits(model: Any, ids: Sequence[int], folder: Path) -> Any:
    """The logits (1, time, vocabulary) of one forward pass over token ids, without a cache.

    Raises VerificationError, about `folder`, when the model does not run.
    """
    with reporting_faults(folder, "it does not compute", "Check its config.json."), torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits


def input_gaps(model: Any, layers: Sequence[int], ids: Sequence[int], folder: Path) -> dict[int, float]:
    """For each of `layers`, the largest difference between its input and its output in a pass over `ids`; 0: equal.

    Raises VerificationError, about `folder`, when the layers are not found or the model does not run.
    """
    gaps: dict[int, float] = {}

    def compare(layer: int) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            taken, given = first_floating((*args, *kwargs.values())), first_floating(output)
            assert taken is not None and given is not None, layer
            gaps[layer] = 0.0 if torch.equal(taken, given) else float((taken - given).abs().max())

        return hook

    try:
        parts = find_parts(model)
    except DonorError as error:
        raise VerificationError(*(Problem(str(folder), p.what, p.fix) for p in error.problems)) from error
    hooks = [parts.layers[layer].register_forward_hook(compare(layer), with_kwargs=True) for layer in layers]
    try:
        compute_logits(model, ids, folder)
    finally:
        for hook in hooks:
            hook.remove()
    return gaps


def generate_text(folder: Path, model: Any, prompt: str, num_tokens: int, *, remote_code: bool = False) -> str | None:
    """The greedy continuation of `prompt`, at most `num_tokens`; None when the folder has no tokenizer.

    The prompt goes through the chat template where there is one, which gets 20 seconds and may give 4096 tokens, fewer
    where the model takes fewer. Generation ends after a minute with the tokens that there are. Raises
    VerificationError when the tokenizer, its template or the generation config does not work.
    """
    from hybridizer.models.load import max_tokens

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        return None
    fix = "Repair the host's tokenizer files, chat template or generation_config.json."
    with reporting_faults(folder, "it cannot generate", fix):
        tokenizer, inputs = call_within(PROMPT_SECONDS, lambda: _encode_prompt(folder, prompt, remote_code))
        length, longest = inputs["input_ids"].shape[1], max_tokens(model.config) or MAX_PROMPT_TOKENS
        if length > min(MAX_PROMPT_TOKENS, longest - num_tokens):
            room = f"the model takes {longest}, and at most {MAX_PROMPT_TOKENS} are tried here"
            raise ValueError(f"the chat template makes {length} tokens of {prompt!r}; {room}")
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        options = {"max_new_tokens": num_tokens, "do_sample": False, "num_beams": 1, "pad_token_id": padding or 0}
        with torch.no_grad():
            output = model.generate(**inputs, **options, max_time=GENERATION_SECONDS)
        return str(tokenizer.decode(output[0, length:], skip_special_tokens=True))


def _encode_prompt(folder: Path, prompt: str, remote_code: bool) -> tuple[Any, dict[str, Any]]:
    """The tokenizer in `folder`, and `prompt` as its inputs, through the chat template where there is one."""
    from hybridizer.models.encode import encode_prompts
    from hybridizer.models.load import load_tokenizer

    tokenizer = load_tokenizer(folder, remote_code)
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"the chat template makes {len(prompt)} characters of a question of one line")
    ids = torch.tensor(encode_prompts(tokenizer, [prompt]))
    return tokenizer, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
