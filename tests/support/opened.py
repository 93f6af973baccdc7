"""A donor of a test's folder, opened as one that line 2 of a recipe names."""

from hybridizer.core.progress import SilentMonitor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference


def donor(folder, text="a", *, fetch=True, allow=()):
    access = Access(fetch=fetch, fingerprint=True, allow=allow)
    return open_donor("a", parse_reference(text, folder, "r.yaml:2"), access, "r.yaml:2", SilentMonitor())
