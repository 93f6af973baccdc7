"""Hints for unknown keys: earlier names of our keys, and the names that other trainers use."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from hybridizer.core.errors import DidYouMean
from hybridizer.recipe.tree import KeyPath

# Where the key is now, and what differs where more than the name does.
RENAMED: Mapping[str, tuple[str, str]] = {
    # earlier names of ours
    "sequence": ("train.seq_len", ""),
    "rows_per_step": ("train.global_batch_size", ""),
    "rows_per_batch": ("train.micro_batch_size", ""),
    "recompute_layers": ("train.gradient_checkpointing", ""),
    "compile_layers": ("train.compile", ""),
    "heldout_share": ("train.heldout_ratio", ""),
    "warmup_share": ("train.warmup_ratio", ""),
    "final_share": ("train.min_lr_ratio", ""),
    "decay_share": ("train.decay_ratio", ""),
    "clip_norm": ("train.max_grad_norm", ""),
    "mask_share": ("trace.mask_ratio", ""),
    "noise_share": ("trace.noise_ratio", ""),
    # transformers, axolotl, torchtitan, mergekit
    "learning_rate": ("train.lr", ""),
    "num_train_epochs": ("train.tokens", "The length of training is given in tokens, such as 2M."),
    "num_epochs": ("train.tokens", "The length of training is given in tokens, such as 2M."),
    "epochs": ("train.tokens", "The length of training is given in tokens, such as 2M."),
    "steps": ("train.max_steps", "The length of training is given in `tokens`; this stops it earlier."),
    "training_steps": ("train.max_steps", "The length of training is given in `tokens`; this stops it earlier."),
    "batch_size": ("train.global_batch_size", "It is the number of rows in one optimizer step."),
    "train_batch_size": ("train.global_batch_size", "It is the number of rows in one optimizer step."),
    "per_device_train_batch_size": ("train.micro_batch_size", "It is the number of rows in memory at a time."),
    "local_batch_size": ("train.micro_batch_size", "It is the number of rows in memory at a time."),
    "gradient_accumulation_steps": (
        "train.global_batch_size",
        "It is the number of rows in one optimizer step; micro-batches accumulate up to it.",
    ),
    "max_seq_length": ("train.seq_len", ""),
    "max_length": ("train.seq_len", ""),
    "sequence_len": ("train.seq_len", ""),
    "sequence_length": ("train.seq_len", ""),
    "block_size": ("train.seq_len", ""),
    "sample_packing": ("train.packed", ""),
    "packing": ("train.packed", ""),
    "val_set_size": ("train.heldout_ratio", "It is a share of the documents."),
    "warmup_steps": ("train.warmup_ratio", "It is a share of the steps, from 0 to 1."),
    "lr_scheduler": ("train.schedule", ""),
    "lr_scheduler_type": ("train.schedule", ""),
    "cosine_min_lr_ratio": ("train.min_lr_ratio", ""),
    "adam_epsilon": ("train.eps", ""),
    "adam_beta1": ("train.betas", "It takes both: [0.9, 0.95]."),
    "adam_beta2": ("train.betas", "It takes both: [0.9, 0.95]."),
    "optim": ("train.optimizer", ""),
    "gradient_clipping": ("train.max_grad_norm", ""),
    "bf16": ("train.precision", "Write precision: bfloat16."),
    "fp16": ("train.precision", "It takes float32 or bfloat16; float16 is not supported."),
    "torch_compile": ("train.compile", ""),
    "activation_checkpointing": ("train.gradient_checkpointing", ""),
    "save_steps": ("train.checkpoint_minutes", "It is in minutes."),
    "report_to": ("train.trackers", ""),
    "datasets": ("train.data", ""),
    "dataset": ("train.data", ""),
    "lora_r": ("train.lora.rank", ""),
    "lora_alpha": ("train.lora.alpha", ""),
    "lora_dropout": ("train.lora.dropout", ""),
    "r": ("train.lora.rank", ""),
    "base_model": ("donors", ""),
    "models": ("donors", ""),
    "model": ("donors", ""),
    "torch_dtype": ("output.dtype", ""),
    "output_dir": ("name", "The folder of a run is its name under `--runs`."),
    "eval": ("evaluate", ""),
    "evaluation": ("evaluate", ""),
}


def hint(key: str, section: KeyPath, known: Collection[str]) -> str:
    """A hint for an unknown `key` in `section`, whose keys are `known`: the name that is used here.

    Names listed above come first: by letters alone `epochs` is close to `eps`. A key of another section is given with
    its whole path.
    """
    path, note = RENAMED.get(key, ("", ""))
    if path and ("." in path or not section):
        here = ".".join(map(str, section))
        meant = path.removeprefix(f"{here}.") if here else path
        return f"Did you mean '{meant}'? {note}".rstrip()
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    # Two letters in common are much of a short name: `stepss` is not `eps`.
    if close and len(close[0]) < 4 and not difflib.get_close_matches(key, close, cutoff=0.75):
        return f"Known here: {', '.join(sorted(known))}."
    return DidYouMean(key, known)
