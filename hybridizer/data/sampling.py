"""Texts that a model writes: sampled from prompts in batches, resumable, the same for the same seed and device."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from hybridizer.checkpoint.publish import lock
from hybridizer.core.errors import InputError, Problem
from hybridizer.core.files import new_file
from hybridizer.core.journal import Journal
from hybridizer.core.progress import Monitor
from hybridizer.core.records import write_json
from hybridizer.recipe.generate import Generate

ROWS: Final = 16  # texts in a batch
TEXTS, RECORD = "texts.jsonl", "generated.json"
_BATCH_SEEDS: Final = 1_000_003
_WORK: Final = "generation (same donor, prompts and settings)"


@dataclass(frozen=True)
class Writer:
    """The donor that writes: its name in messages, its folder, and whether its own code may run."""

    name: str
    folder: Path
    remote_code: bool = False


def read_prompts(prompts: str | Sequence[str], folder: Path) -> tuple[str, ...]:
    """The prompts of a recipe: those listed, or those of a file relative to `folder`.

    Raises InputError for a file that is not there or has a line without a prompt.
    """
    if not isinstance(prompts, str):
        return tuple(prompts)
    path = folder / prompts
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(prompts, f"cannot be read: {error}.", "Check the path of the prompts.")) from None
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found.append(_prompt_of(line, f"{prompts}:{number}") if path.suffix == ".jsonl" else line)
    if not found:
        raise InputError(Problem(prompts, "holds no prompt.", "Write one prompt per line."))
    return tuple(found)


def _prompt_of(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise InputError(Problem(where, "no text in the field 'prompt'.", 'Write {"prompt": "..."}.'))
    return prompt


def write_texts(writer: Writer, prompts: Sequence[str], settings: Generate, folder: Path, monitor: Monitor) -> None:
    """Fill `folder` with TEXTS, one record per text, and RECORD; nothing is done where they are there.

    A text is its prompt and what the model adds until its end token. Each batch is on disk when it is finished, and an
    interrupted run resumes after the last one. Raises DonorError for a donor that does not load, InputError for
    prompts that leave no room for an answer, OutputError while another run writes the folder.
    """
    if (folder / TEXTS).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        journal = Journal(folder / "batches.jsonl", settings.identity, _WORK)
        facts = _sample(writer, prompts, settings, journal, monitor)
        texts = [text for _, batch in journal.lines for text in batch["texts"] if text.strip()]
        write_json(folder / RECORD, {"identity": settings.identity, "settings": asdict(settings), **facts})
        with new_file(folder / TEXTS) as partial:
            partial.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        journal.path.unlink()
    monitor.note(f"generate: '{writer.name}' wrote {len(texts):,} texts to {folder / TEXTS}")


def _sample(
    writer: Writer, prompts: Sequence[str], settings: Generate, journal: Journal, monitor: Monitor
) -> dict[str, Any]:
    """Append batches to `journal` until there are enough tokens; where they were made."""
    import torch

    from hybridizer.models.encode import encode_prompts
    from hybridizer.models.generation import sample_rows
    from hybridizer.models.load import load_causal_lm

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype: Any = "auto" if device.type == "cuda" else torch.float32  # on a CPU bfloat16 is often emulated
    model, tokenizer = load_causal_lm(writer.folder, dtype, trust_remote_code=writer.remote_code)
    model.to(device)
    ids = encode_prompts(tokenizer, prompts)
    _check_room(model, ids, prompts, settings)
    done = [batch["tokens"] for _, batch in journal.lines]
    total = sum(done)
    with monitor.task(f"generate with '{writer.name}'", settings.tokens, "tokens") as advance:
        advance(min(total, settings.tokens))
        for number, batch in enumerate(_batches([len(row) for row in ids], settings.seed)):
            if number < len(done):
                continue
            if total >= settings.tokens:
                break
            rows = [ids[index] for index in batch]
            seed = settings.seed + _BATCH_SEEDS * (number + 1)
            added = sample_rows(
                model, rows, settings.max_new_tokens, settings.temperature, tokenizer.eos_token_id, seed
            )
            texts = [
                tokenizer.decode([*row, *new], skip_special_tokens=True) for row, new in zip(rows, added, strict=True)
            ]
            num_tokens = sum(map(len, added))
            journal.append({"texts": texts, "tokens": num_tokens})
            advance(max(0, min(num_tokens, settings.tokens - total)))
            total += num_tokens
    return {
        "tokens": total,
        "device": str(device),
        "dtype": str(next(model.parameters()).dtype),
        "torch": torch.__version__,
    }


def _check_room(model: Any, ids: Sequence[Sequence[int]], prompts: Sequence[str], settings: Generate) -> None:
    """Raise InputError for a prompt of no token, or one that leaves too little room for what follows."""
    from hybridizer.models.load import max_tokens

    longest = max_tokens(model.config)
    for row, prompt in zip(ids, prompts, strict=True):
        if not row or (longest is not None and len(row) + settings.max_new_tokens > longest):
            what = f"the prompt {prompt[:60]!r} has {len(row)} tokens; the model takes {longest} with what follows."
            fix = "Shorten it, or lower `max_new_tokens`." if row else "Write something for the text to begin with."
            raise InputError(Problem("generate.prompts", what, fix))


def _batches(lengths: Sequence[int], seed: int) -> Iterator[list[int]]:
    """Numbers of prompts in batches without end, each of one length, so that no row is padded.

    In a round every prompt comes equally often, in an order drawn from `seed`; few prompts come several times, to fill
    a batch.
    """
    for number in count():
        deck = list(range(len(lengths))) * -(-ROWS // len(lengths))
        random.Random(f"{seed}:{number}").shuffle(deck)
        by_length: dict[int, list[int]] = {}
        for index in deck:
            by_length.setdefault(lengths[index], []).append(index)
        for alike in by_length.values():
            yield from (alike[start : start + ROWS] for start in range(0, len(alike), ROWS))
