"""A tokenizer of one id a byte and token_files made with it, for tests that must not load a real tokenizer."""

import json
import tempfile
from pathlib import Path

from hybridizer.core.progress import SilentMonitor
from hybridizer.data.tokenize import ReadSettings, tokenise_file

END = 256


class ByteEncoder:
    """Ids 0..255 are the bytes of the text; 256 ends a document."""

    vocab_size = 257
    identity = "bytes"

    def encode(self, texts):
        return [[*text.encode(), END] for text in texts]


def token_file_of(texts, folder, name="a", encoder=None):
    """The token_file of a JSONL file with `texts`, cached in folder/cache."""
    path = folder / f"{name}.jsonl"
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:  # other ranks may be reading it already
        file.write("\n".join(json.dumps({"text": text}) for text in texts))
    Path(file.name).rename(path)
    return tokenise_file(path, encoder or ByteEncoder(), ReadSettings(), folder / "cache", SilentMonitor())
