"""Trace a tiny random model of every causal-LM family of the installed transformers, and write a table of the results.

    python scripts/trace_table.py               docs/trace_families.md: which families trace exactly, which are refused
    python scripts/trace_table.py qwen3 jamba   the rows of these families, to the terminal

The whole table takes a few minutes on one core.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
TABLE = ROOT / "docs" / "trace_families.md"

from hybridizer.core.errors import HybridizerError  # noqa: E402
from hybridizer.models.load import load_causal_lm  # noqa: E402
from hybridizer.models.parts import MODEL_FAULTS, Parts, arbitrary_ids, find_parts, run_model  # noqa: E402
from hybridizer.models.residual import read_last_rows  # noqa: E402
from hybridizer.recipe.models import Trace  # noqa: E402
from hybridizer.trace.divergence import js_divergence, log2_softmax  # noqa: E402
from hybridizer.trace.lens import Lens, check_lens  # noqa: E402
from hybridizer.trace.perturbation import can_reuse_prefix  # noqa: E402
from hybridizer.trace.probes import ProbeSet, builtin_probes  # noqa: E402
from hybridizer.trace.record import RecordedDonor  # noqa: E402
from hybridizer.trace.tracer import trace_model  # noqa: E402
from support.tiny import FAMILIES, make_tiny, tiny_tokenizer  # noqa: E402

# Models that are not causal or need more than text: the table lists them with the reason of their refusal.
OTHERS = ("bert", "roberta", "electra", "xmod", "rembert", "roformer", "bart", "pegasus", "trocr")

HEAD = """# Families that LayerTracer traces

Written by `python scripts/trace_table.py` ({versions}): {summary}.

Each family is a tiny random model, found and run by the same code; no family is known by name. *Tail*: given its own
last states and other token ids, the model computes its own logits, bit for bit (a family where it does not is refused).
*Lens row*: the largest JS divergence in bits between the last lens row and the model's own next-token distribution;
not always 0, because the head multiplies another number of rows at once and sums in another order. *Unmasked*: the
largest JS of any layer and prompt where nothing is masked. *Masked*: the range of JS over layers 0..L-1 with 30% of
the context masked. *Prefix*: whether the layer perturbation starts after the disturbed layer (reused), or runs in full
because layers hand each other more than the residual stream.

| family | layers | residual stream | tail | lens row | unmasked | masked | prefix |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """One family: its cells, or why it was refused."""

    family: str
    cells: tuple[str, ...] | None
    refused: str | None = None


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    families = sys.argv[1:]
    rows = []
    for row in try_families(families or (*FAMILIES, *OTHERS)):
        print(row.family, *(row.cells or ("REFUSED:", row.refused)), flush=True)
        rows.append(row)
    if not families:
        TABLE.write_text(render(rows))


def try_families(families: Sequence[str]) -> Iterator[Row]:
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            yield try_family(family, Path(folder))


def try_family(family: str, folder: Path) -> Row:
    try:
        tiny_tokenizer(make_tiny(family, folder))
    except MODEL_FAULTS as error:
        return Row(family, None, f"transformers does not build it tiny: {type(error).__name__}: {first_line(error)}")
    try:
        model, tokenizer = load_causal_lm(folder, torch.float32)
        parts = find_parts(model)
        check_lens(model, parts)
        return Row(family, measure(model, tokenizer, parts))
    except HybridizerError as error:
        return Row(family, None, error.problems[0].what.removeprefix("this model cannot be traced: "))


@torch.no_grad()
def measure(model: torch.nn.Module, tokenizer: object, parts: Parts) -> tuple[str, ...]:
    ids = arbitrary_ids(model, 3, 11)
    hidden = read_last_rows(model, parts, ids)
    own = log2_softmax(run_model(model, ids)[:, -1])
    error = float(js_divergence(Lens(model, parts).layer_log2_probs(hidden)[:, -1], own).max())
    probes = builtin_probes("antonyms-en")
    probes = ProbeSet(probes.name, probes.sha256, probes.probes[:6])
    settings = Trace(num_resamples=10)
    donor = RecordedDonor("tiny", "", "", parts.num_layers)
    masked = trace_model(model, tokenizer, parts, probes, settings, donor).readings.js
    still = trace_model(model, tokenizer, parts, probes, replace(settings, mask_ratio=0.0), donor).readings.js
    assert masked is not None and still is not None
    return (
        f"{parts.num_layers} in `{parts.layers_path}`",
        " x ".join(str(size) for size in hidden[0].shape[1:]),
        "exact",
        f"{error:.0e}" if error else "0",
        f"{still.max():.0e}" if still.max() else "0",
        f"{masked[:, 1:].min():.0e} to {masked[:, 1:].max():.0e}",
        "reused" if can_reuse_prefix(model, parts) else "in full",
    )


def render(rows: Sequence[Row]) -> str:
    import transformers

    traced = [row for row in rows if row.cells]
    refused = [row for row in rows if not row.cells]
    counts = Counter(row.cells[-1] for row in traced if row.cells)
    summary = f"{len(traced)} traced, {counts['in full']} of them without prefix reuse, {len(refused)} refused"
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    lines = [f"| {row.family} | {' | '.join(row.cells)} |" for row in traced if row.cells]
    lines += ["", "## Refused", "", "| family | reason |", "|---|---|"]
    lines += [f"| {row.family} | {(row.refused or '').replace('|', '/')} |" for row in refused]
    return HEAD.format(versions=versions, summary=summary) + "\n".join(lines) + "\n"


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:150]


if __name__ == "__main__":
    main()
