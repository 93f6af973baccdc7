"""Speed of tokenising and packing, against the tokenizer alone, and how full the rows get.

    python scripts/bench_tokenise.py --tokenizer FOLDER [--megabytes 20] [--seq-len 1024]

Reads `pydoc_data.topics` again and again up to the size asked for. The tokenizer's own limit is
its bare batch call on the same texts in the same process, in turns with ours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Measure in turns and print rates and fill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=8.0)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from transformers import AutoTokenizer

    from hybridizer.data.tokenizer import TokenizerEncoder

    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    encoder = TokenizerEncoder(tokenizer)
    texts = _texts(int(arguments.megabytes * 1e6))
    folder = Path(tempfile.mkdtemp())
    bare, ours = [], []
    try:
        for number in range(arguments.rounds):
            bare.append(_rate(lambda: sum(len(e.ids) for e in tokenizer.backend_tokenizer.encode_batch_fast(texts))))
            target = folder / str(number)
            ours.append(_rate(lambda target=target: _write(target, texts, encoder)))
        _report(arguments, bare, ours, folder / "0")
    finally:
        shutil.rmtree(folder)


def _report(arguments, bare, ours, folder: Path) -> None:
    from hybridizer.data.batches import Source, TrainingData
    from hybridizer.data.tokenize import open_token_file
    from hybridizer.recipe.models import DataEntry, Train

    token_file = open_token_file(folder)
    limit, rate = statistics.median(bare), statistics.median(ours)
    print(f"{len(token_file.tokens):,} tokens in {token_file.num_documents:,} documents, {os.cpu_count()} cores")
    print(f"tokenizer alone {limit / 1e6:.3f} million tokens/s; to a token file {rate / 1e6:.3f} ({rate / limit:.0%})")
    started = time.perf_counter()
    settings = Train(
        data=(DataEntry(path="topics"),),
        tokens=len(token_file.tokens),
        seq_len=arguments.seq_len,
        heldout_ratio=0.0,
    )
    data = TrainingData([Source("topics", (token_file,))], settings)
    seconds = time.perf_counter() - started
    lengths = data.packed.pieces[:, 1]
    batches = [lengths[at : at + 8] for at in range(0, len(lengths), 8)]
    full, padded = data.packed.fill, lengths.sum() / sum(len(batch) * batch.max() for batch in batches)
    rate = len(token_file.tokens) / seconds / 1e6
    print(f"packing: {rate:.1f} million tokens/s; rows {full:.2%} full, padded by eights {padded:.2%}")
    started = time.perf_counter()
    steps = min(50, data.num_steps)
    for step in range(steps):
        data.batches(step)
    seconds = (time.perf_counter() - started) / steps
    print(f"a batch of {settings.global_batch_size} x {arguments.seq_len} tokens is ready in {seconds * 1e3:.2f} ms")


def _write(folder: Path, texts: list[str], encoder) -> int:
    from hybridizer.core.progress import SilentMonitor
    from hybridizer.data.documents import BadRecords
    from hybridizer.data.tokenize import open_token_file, write_token_file

    write_token_file(folder, "topics", texts, encoder, BadRecords(), SilentMonitor(), 0)
    return len(open_token_file(folder).tokens)


def _rate(work) -> float:
    started = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - started)


def _texts(num_bytes: int) -> list[str]:
    import pydoc_data.topics

    topics = list(pydoc_data.topics.topics.values())
    size = sum(map(len, topics))
    return topics * max(1, round(num_bytes / size))


if __name__ == "__main__":
    main()
