"""Splice every causal-LM family that the installed transformers can build tiny, and write a table of the results.

    python scripts/family_table.py               docs/families.md: which splices are exact, which are refused and why
    python scripts/family_table.py qwen3 jamba   the rows of these families, to the terminal
    python scripts/family_table.py --defaults    hybridizer/families/defaults.json: what families assume for absent keys

The whole table takes a few minutes on one core. The tests import this file to hold defaults.json against transformers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
DEFAULTS = ROOT / "hybridizer" / "families" / "defaults.json"
TABLE = ROOT / "docs" / "families.md"


def read_class(family: str) -> dict[str, Any]:
    """What the family's config class assumes for absent keys, and which keys it computes from others.

    Left out: keys that do not affect layers, keys of per-layer traits and of rotary positions, and null defaults.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    from hybridizer.families.families import read_traits
    from hybridizer.families.keys import is_harmless
    from hybridizer.families.reading import DEPTH_NAMES
    from hybridizer.families.rope import ROPE_KEYS

    config_class = CONFIG_MAPPING[family]
    carried = {key for trait in read_traits(family) for key in trait.keys}
    common = {*PreTrainedConfig().to_dict(), *DEPTH_NAMES, *ROPE_KEYS, *carried}
    fields = {field.name: field.default for field in dataclasses.fields(config_class)}
    assumed = {
        name: default
        for name, default in fields.items()
        if name not in common and not is_harmless(name) and isinstance(default, str | int | float | tuple)
    }
    aliases = {*config_class.attribute_map, *config_class.attribute_map.values()}
    written = config_class().to_dict()
    derived = sorted(name for name in written if name not in {*fields, *common, *aliases} and not is_harmless(name))
    tied = getattr(config_class(), "tie_word_embeddings", None)
    return {"assumed": {name: _plain(value) for name, value in assumed.items()}, "derived": derived, "tied": tied}


def _plain(value: Any) -> Any:
    """A default as transformers would write it into a config.json, where infinity is a dict."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {"__float__": "Infinity"} if value == float("inf") else value


def write_defaults() -> None:
    """Write defaults.json, one line per family."""
    from support.tiny import FAMILIES

    lines = [f"{json.dumps(family)}: {json.dumps(read_class(family))}" for family in FAMILIES]
    DEFAULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def try_family(family: str, folder: Path) -> list[str]:
    """One row of the table: the family, its kinds of layers, the keys that encode them, the result of each splice."""
    from hybridizer.core.errors import HybridizerError
    from hybridizer.core.progress import SilentMonitor
    from hybridizer.donors.donor import Donor
    from hybridizer.donors.open import Access, open_donor
    from hybridizer.donors.reference import parse_reference
    from hybridizer.families.families import read_traits
    from support.prove import try_splices
    from support.tiny import make_tiny

    first, second = (make_tiny(family, folder / f"donor{seed}", seed=seed) for seed in (0, 1))
    try:
        access = Access(fetch=False, fingerprint=False)
        donor = open_donor("a", parse_reference(str(first), folder), access, str(first), SilentMonitor())
    except HybridizerError as error:
        return [family, "", "", *["refused"] * 4, error.problems[0].what]
    assert isinstance(donor, Donor), "a folder needs no fetching"
    found = try_splices((first, second), folder)
    reasons = [error.problems[0].what for error in found.values() if error is not None]
    for donor_folder in (first, second):  # their paths change from run to run
        reasons = [reason.replace(f" ({donor_folder})", "") for reason in reasons]
    results = ["exact" if error is None else "refused" for error in found.values()]
    kinds = ", ".join(dict.fromkeys(donor.structure.kinds))
    keys = sorted({key for trait in read_traits(family) for key in trait.keys} - {"layer_types", "per_layer_config"})
    return [family, kinds, " ".join(f"`{key}`" for key in keys), *results, next(iter(reasons), "")]


def write_table(families: list[str]) -> str:
    """The Markdown page for these families. A family that is neither exact nor refused raises, and there is no page."""
    rows = []
    for family in families:
        folder = Path(tempfile.mkdtemp(prefix="family-"))
        os.environ["HYBRIDIZER_CACHE"] = str(folder / "cache")  # removed with the donors
        try:
            rows.append(try_family(family, folder))
        finally:
            shutil.rmtree(folder)
        print(" | ".join(rows[-1]), flush=True)
    return _page(rows)


def _page(rows: list[list[str]]) -> str:
    import transformers

    whole = sum(row[3:7] == ["exact"] * 4 for row in rows)
    head = f"""# Families

Written by `python scripts/family_table.py` with transformers {transformers.__version__}; do not edit.

Two random tiny checkpoints of each family give their layers to one model, built from a recipe, in four orders: *same
depth* (the donors take turns), *grown* (4 to 6 layers, some twice), *shrunk* (4 to 3), *shifted* (every layer moves up,
the first to the end).
**exact**: the files load with no missing, unexpected or mismatched tensor, and every layer computes bit for bit what it
computes in its donor, given the same hidden state. **refused**: the plan stops, with the reason given. Anything else
would be a bug, and this page would not exist. `layer_types` and `per_layer_config` are understood in every family;
*further keys* are those in which the family, old or new, encodes something per layer.

{len(rows)} families: {whole} exact in all four orders, {len(rows) - whole} refused in some or all. A family that is not
listed is unknown: its layers are only accepted all together and in their places.

| family | kinds of layers | further keys | same depth | grown | shrunk | shifted | why refused |
|---|---|---|---|---|---|---|---|
"""
    return head + "".join(map(format_row, rows))


def format_row(row: list[str]) -> str:
    """The row as a line of the page."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n"


def main(arguments: list[str]) -> None:
    """Run the command line described above."""
    import transformers

    from support.tiny import FAMILIES

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    if "--defaults" in arguments:
        write_defaults()
    elif arguments:
        write_table(arguments)
    else:
        TABLE.write_text(write_table(list(FAMILIES)))


if __name__ == "__main__":
    main(sys.argv[1:])
