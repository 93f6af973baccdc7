"""Text from elsewhere: tokenizers of transformers as encoders, and hub datasets read as streams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.errors import DonorError, InputError, Problem


@dataclass(frozen=True)
class TokenizerEncoder:
    """A transformers tokenizer as an encoder of documents: its own special tokens, and its end token after each.

    `encode` runs on all cores for tokenizers with a Rust backend and never truncates.
    """

    tokenizer: Any

    @property
    def vocab_size(self) -> int:
        """One more than the largest id it can give."""
        return len(self.tokenizer)

    @property
    def identity(self) -> str:
        """SHA-256 of the whole tokenizer: vocabulary, merges, normalisation, special tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        content = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
        content += repr((type(self.tokenizer).__name__, self.tokenizer.eos_token_id))
        return hashlib.sha256(content.encode()).hexdigest()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The token ids of each document."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            rows = self.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        else:
            backend.no_truncation()
            backend.no_padding()
            rows = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=True)]
        end = self.tokenizer.eos_token_id
        return [row if end is None or row[-1:] == [end] else [*row, end] for row in rows]


def load_encoder(folder: Path, trust_remote_code: bool = False) -> TokenizerEncoder:
    """The tokenizer of a model folder as an encoder. Never asks a network."""
    from transformers import AutoTokenizer

    return TokenizerEncoder(
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    )


def stream_texts(dataset: str, config: str | None, split: str, revision: str | None, text_field: str) -> Iterator[Any]:
    """The values of `text_field` in a hub dataset, one record after the other, without downloading all of it.

    Values are given as they are: the caller sorts out what is no text. Raises InputError when `datasets` is not
    installed or has no such column, DonorError when the dataset cannot be opened.
    """
    try:
        import datasets
    except ImportError:
        fix = "pip install datasets, or give local files."
        raise InputError(Problem(dataset, "hub datasets need the package datasets.", fix)) from None
    try:
        stream = datasets.load_dataset(dataset, config, split=split, revision=revision, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        what = f"the dataset cannot be opened: {type(error).__name__}: {str(error)[:300]}"
        raise DonorError(Problem(dataset, what, "Check its name, configuration, split and your network.")) from error
    for record in stream:
        if text_field not in record:
            what = f"has no column '{text_field}'; it has {', '.join(record)}."
            raise InputError(Problem(dataset, what, "Name one of its columns as `field`."))
        yield record[text_field]
