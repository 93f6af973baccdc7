"""A pack of a model on its base, and the model again from both: what `hybridize pack` and `hybridize graft` do."""

from __future__ import annotations

from pathlib import Path

from hybridizer.core.progress import Monitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.pipeline.run import find_model
from hybridizer.splice.packs import Pack, graft, make_pack


@reporting_os_errors()
def pack_model(model: Path, base: str, out: Path, allow: tuple[str, ...], monitor: Monitor) -> Pack:
    """Write the pack of a finished model, or of the model of a run, on the donor that `base` refers to.

    Raises DonorError for a base that cannot be opened, and what `make_pack` raises.
    """
    return make_pack(find_model(model), _open(base, allow, monitor), out, monitor)


@reporting_os_errors()
def graft_pack(base: str, pack: Path, out: Path, allow: tuple[str, ...], monitor: Monitor, *, replace: bool) -> Pack:
    """Write the model that the donor `base` and the pack make.

    Raises DonorError for a base that cannot be opened, and what `graft` raises.
    """
    return graft(_open(base, allow, monitor), pack, out, monitor, replace=replace)


def _open(base: str, allow: tuple[str, ...], monitor: Monitor) -> Donor:
    access = Access(fetch=True, fingerprint=True, allow=allow)
    donor = open_donor(base, parse_reference(base, Path.cwd(), where=base), access, base, monitor)
    assert isinstance(donor, Donor), "a donor that may be fetched is there afterwards"
    return donor
