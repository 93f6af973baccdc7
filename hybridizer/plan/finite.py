"""NaN and infinity in the tensors that a plan reads, as far as every plan can afford to look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hybridizer.checkpoint.scan import find_nonfinite
from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.donors.donor import Donor
from hybridizer.plan.plan import Plan

SMALL_TENSOR_BYTES: Final = 1 << 20


def scan_planned(plan: Plan, donors: Mapping[str, Donor]) -> None:
    """Scan what is outside the layers (embedding, final norm, head) and every tensor of at most 1 MiB in them.

    These are the norms and biases, where one bad value spoils every token, and the embedding, of which no check of a
    few tokens reads every row: a few per cent of a model's bytes, read at 1-2 GB/s. Large matrices are left to
    `--deep-check`, and to the logits that are computed before publishing. Raises CheckpointError with all tensors that
    hold NaN or infinity.
    """
    layers = {name for donor in donors.values() for layer in donor.structure.layers for name in layer.values()}
    problems = []
    for origin in sorted({(o.donor, o.tensor) for tensor in plan.tensors for o in tensor.source.origins}):
        entry = donors[origin[0]].checkpoint.tensors[origin[1]]
        if entry.name in layers and entry.num_bytes > SMALL_TENSOR_BYTES:
            continue
        if count := find_nonfinite(entry):
            what = f"donor '{origin[0]}': tensor '{entry.name}' holds {count} values that are NaN or infinite."
            problems.append(Problem(str(entry.file), what, "Fetch the checkpoint again, or use another donor."))
    if problems:
        raise CheckpointError(*problems)
