"""The estimated against the measured peak memory of training, for several shapes, freezes and precisions.

    python scripts/bench_memory.py [--only smollm2] [--device cpu]

Every row is a process of its own with random weights, which takes two real steps of the training loop. Exits with 1
when an estimate is off by more than 15%. On a CPU the peak is that of the whole process, on a GPU of its tensors.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from dataclasses import dataclass
from typing import Any

from hybridizer.plan.cost import run_shape
from hybridizer.plan.freeze import choose_frozen, with_adapters
from hybridizer.plan.memory import estimate
from hybridizer.plan.shapes import planned_shape
from hybridizer.recipe.models import DataEntry, Lora, Train

TOLERANCE, TOKENS, STEPS = 0.15, 512, 2
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2": (
        "llama",
        {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    ),
    "smol-12": (
        "llama",
        {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12,
         "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    ),
    "gemma3": (
        "gemma3_text",
        {"vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "tie_word_embeddings": True},
    ),
    "qwen3": (
        "qwen3",
        {"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 6,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One configuration: `rows` in each of `batches` micro-batches of a step; weights are stored in `stored`.

    `rank` is that of adapters, 0 for none.
    """

    shape: str
    freeze: str
    precision: str = "float32"
    recompute: bool = False
    rows: int = 1
    batches: int = 1
    stored: str = "float32"
    rank: int = 0

    def __str__(self) -> str:
        kept = "recompute" if self.recompute else f"rank {self.rank}" if self.rank else ""
        return (
            f"{self.shape:8} {self.freeze:8} {self.stored:9}{self.precision:9} {self.batches} x {self.rows} x {TOKENS} "
            f"{kept:9}"
        )


def table() -> list[Row]:
    """Every freeze in both precisions, recomputed or not, and what else moves memory, one thing at a time."""
    rows = [
        Row("smol-12", freeze, precision, recompute)
        for precision, recompute, freeze in itertools.product(
            ("float32", "bfloat16"), (False, True), ("deep", "shallow", "none")
        )
    ]
    rows += [Row("smollm2", "deep"), Row("smollm2", "none", recompute=True), Row("smollm2", "deep", rows=4)]
    rows += [Row("smol-12", "deep", rows=4), Row("smol-12", "none", rows=4, recompute=True)]
    rows += [Row("gemma3", "deep", "bfloat16", stored="bfloat16")]
    rows += [Row("smollm2", freeze, "bfloat16", rows=4) for freeze in ("deep", "none")]
    rows += [Row("smol-12", "none", batches=2), Row("smol-12", "deep", "bfloat16", batches=2)]
    rows += [Row("smol-12", "deep", stored="bfloat16")]
    rows += [Row("smol-12", freeze, rank=16, rows=4) for freeze in ("deep", "none")]
    rows += [Row("smol-12", "none", stored="bfloat16", rank=64), Row("qwen3", "deep", rank=16)]
    rows += [Row(shape, freeze) for shape in ("gemma3", "qwen3") for freeze in ("deep", "none")]
    return [*rows, Row("gemma3", "none", "bfloat16", stored="bfloat16"), Row("qwen3", "deep", stored="bfloat16")]


def main() -> None:
    """Print one line per row, then the largest error; exit with 1 when that is beyond the tolerance."""
    arguments = _arguments()
    worst = 0.0
    rows = [row for row in table() if not arguments.only or arguments.only in str(row)]
    if not rows:
        raise SystemExit(f"no row has the text {arguments.only!r}")
    print(f"{'shape    freeze   stored   computes  batches x rows x tokens':67} measured  estimate")
    for row in rows:
        measured, estimated = _measure(row, arguments.device), _estimate(row, arguments.device)
        error = estimated.total / measured - 1
        worst = max(worst, abs(error))
        parts = ", ".join(f"{name} {value / 1e6:.0f}" for name, value in vars(estimated).items() if value)
        print(f"{row}  {measured / 1e6:8.0f}  {estimated.total / 1e6:8.0f}  {error:+6.1%}  ({parts})", flush=True)
    print(f"worst {worst:.1%}, allowed {TOLERANCE:.0%}")
    raise SystemExit(worst > TOLERANCE)


def _measure(row: Row, device: str) -> int:
    from hybridizer.train.timing import DryRunRequest, dry_run

    config = _config(row).to_dict()
    boundary = config["num_hidden_layers"] // 2
    request = DryRunRequest(config, row.stored, _settings(row), boundary, steps=STEPS, cpu=device == "cpu")
    return dry_run(request).peak_memory_bytes


def _settings(row: Row) -> Train:
    return Train(
        data=(DataEntry(path="random"),),
        tokens=TOKENS,
        freeze=row.freeze,
        lora=Lora(rank=row.rank) if row.rank else None,
        seq_len=TOKENS,
        global_batch_size=row.rows * row.batches,
        micro_batch_size=row.rows,
        precision=row.precision,
        gradient_checkpointing=row.recompute,
    )


def _estimate(row: Row, device: str):
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(row))
    stored = {"float32": "F32", "bfloat16": "BF16"}[row.stored]
    config = model.config.to_dict()
    shape = planned_shape(config, {name: (tuple(p.shape), stored) for name, p in model.named_parameters()})
    settings = _settings(row)
    choice = choose_frozen(settings, len(shape.layers), len(shape.layers) // 2, shape.tied)
    run = run_shape(settings, device, mean_document=TOKENS / 2)
    return estimate(shape, with_adapters(choice) if row.rank else choice, run).memory


def _config(row: Row):
    from transformers import CONFIG_MAPPING

    family, sizes = SHAPES[row.shape]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CONFIG_MAPPING[family](**sizes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="rows whose line holds this text")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
