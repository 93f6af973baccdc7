"""Tokenizers of transformers as encoders of documents."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.models.encode import added_tokens


@dataclass(frozen=True)
class TokenizerEncoder:
    """A transformers tokenizer as an encoder of documents: its own special tokens, and its end token after each.

    `encode` runs on all cores for tokenizers with a Rust backend and never truncates.
    """

    tokenizer: Any

    def __post_init__(self) -> None:
        """Switch off what tokenizer.json may ask for, before the identity is read."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()

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

    @property
    def prefix(self) -> tuple[int, ...]:
        """The special tokens that it puts before every text: BOS for most tokenizers that have any."""
        return added_tokens(self.tokenizer)[0]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The token ids of each document."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            rows = self.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        else:
            rows = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=True)]
        end = self.tokenizer.eos_token_id
        return [row if end is None or row[-1:] == [end] else [*row, end] for row in rows]


def load_encoder(folder: Path, trust_remote_code: bool = False) -> TokenizerEncoder:
    """The tokenizer of a model folder as an encoder. Never asks a network. Raises DonorError for a damaged one."""
    from hybridizer.models.load import load_tokenizer

    return TokenizerEncoder(load_tokenizer(folder, trust_remote_code))
