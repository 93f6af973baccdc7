"""Write the table of families that hold layers of others beside new mixers into docs/hybrids.md, from the code's own.

python scripts/hybrid_table.py            replaces the table between its two marks
python scripts/hybrid_table.py --check    exits with 1 where the document has another one
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from hybridizer.families.target import Target  # noqa: E402
from hybridizer.families.targets import TARGETS  # noqa: E402

DOCUMENT = ROOT / "docs" / "hybrids.md"
BEGIN, END = "<!-- written by scripts/hybrid_table.py -->", "<!-- end -->"


def table() -> str:
    """The table in Markdown, a row for each target in the order in which they are chosen."""
    head = [
        "| family | holds layers of | new mixers | as | needs that | equal bit for bit in |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(_row(target) for target in TARGETS.values())])


def _row(target: Target) -> str:
    kinds = " or ".join(f"`{kind}`" for kind in target.mixers)
    ways = "branches" if target.branch else "new layers" if target.no_swap else "swapped or new layers"
    needs = "; ".join(condition.says for condition in target.conditions)
    dtypes = "float32, bfloat16" if target.bit_exact else "float32"
    return f"| `{target.family}` | {', '.join(target.donors)} | {kinds} | {ways} | {needs} | {dtypes} |"


def main() -> int:
    """Write or check the document; the exit code."""
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    new = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        return int(new != text)
    DOCUMENT.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
