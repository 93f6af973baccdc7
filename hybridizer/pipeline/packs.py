"""A pack of a model on its base, and the model again from both: what `hybridize pack` and `hybridize graft` do."""

from __future__ import annotations

from pathlib import Path

from hybridizer.core.progress import Monitor
from hybridizer.pipeline.donors import open_named
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.pipeline.run import find_model
from hybridizer.splice.packs import Pack, graft, make_pack


@reporting_os_errors()
def pack_model(model: Path, base: str, out: Path, allow: tuple[str, ...], monitor: Monitor) -> Pack:
    """Write the pack of a finished model, or of the model of a run, on the donor that `base` refers to.

    Raises DonorError for a base that cannot be opened, and what `make_pack` raises.
    """
    (donor,) = open_named({base: base}, allow, monitor)
    return make_pack(find_model(model), donor, out, monitor)


@reporting_os_errors()
def graft_pack(base: str, pack: Path, out: Path, allow: tuple[str, ...], monitor: Monitor, *, replace: bool) -> Pack:
    """Write the model that the donor `base` and the pack make.

    Raises DonorError for a base that cannot be opened, and what `graft` raises.
    """
    (donor,) = open_named({base: base}, allow, monitor)
    return graft(donor, pack, out, monitor, replace=replace)
