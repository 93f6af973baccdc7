"""A tokenizer with one id per byte and token files made with it, for tests that do not load a real tokenizer."""

import json
import tempfile
from pathlib import Path

from hybridizer.core.progress import SilentMonitor
from hybridizer.data.tokenize import tokenise_files
from hybridizer.recipe.models import DataEntry

END = 256


class ByteEncoder:
    """Ids 0..255 are the bytes of the text; 256 ends a document."""

    vocab_size = 257
    identity = "bytes"
    prefix = ()

    def encode(self, texts):
        return [[*self.prefix, *text.encode(), END] for text in texts]


BEGIN = 257


class BeginningEncoder(ByteEncoder):
    """The same with 257 before every text, as a tokenizer with a BOS token gives."""

    vocab_size = 258
    identity = "bytes after 257"
    prefix = (BEGIN,)


def token_file_of(texts, folder, name="a", encoder=None):
    """The token file of a JSONL file with `texts`, cached in folder/cache."""
    path = folder / f"{name}.jsonl"
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:  # other ranks may be reading it already
        file.write("\n".join(json.dumps({"text": text}) for text in texts))
    Path(file.name).rename(path)
    (found,) = tokenise_files([path], encoder or ByteEncoder(), DataEntry(path="*"), folder / "cache", SilentMonitor())
    return found
