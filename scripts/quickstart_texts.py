"""Texts for the recipes, from installed packages: one JSON object {"text": ...} per line, no download.

    python scripts/quickstart_texts.py runs/texts

python.jsonl   the reference topics that every CPython ships (pydoc_data.topics), one document per section: to learn
news.jsonl     300 news stories of the Australian Broadcasting Corporation, 2000-2001 (M. D. Lee, B. Pincombe, M. Welsh,
               2005), from the tests of the package gensim: general text, to see what is forgotten
library.jsonl  the docstrings of Python's standard library, one document per module: to learn, for recipes/healing and
               recipes/hybrids
"""

from __future__ import annotations

import ast
import json
import re
import sys
import sysconfig
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

# Before a line that is underlined with stars, equals signs, dashes or tildes.
HEADING = re.compile(r"\n(?=[^\n]+\n(?:\*{3,}|={3,}|-{3,}|~{3,})\n)")

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def main(folder: Path) -> None:
    """Write the three files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    package = find_spec("gensim")
    if package is None or package.origin is None:
        sys.exit("the package gensim is not installed: pip install --no-deps gensim")
    news = Path(package.origin).parent / "test" / "test_data" / "lee_background.cor"
    write(folder / "python.jsonl", [section for name in sorted(topics) for section in HEADING.split(topics[name])])
    write(folder / "news.jsonl", news.read_text(encoding="utf-8").splitlines())
    write(folder / "library.jsonl", map(docstrings, sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))))


def docstrings(module: Path) -> str:
    """All docstrings of a source file, outer ones first."""
    found = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    documented = [node for node in found if isinstance(node, DOCUMENTED)]
    return "\n\n".join(text for node in documented if (text := ast.get_docstring(node)))


def write(path: Path, texts: Iterable[str]) -> None:
    """One document per line; empty ones are left out."""
    lines = [json.dumps({"text": text}) for text in texts if text.strip()]
    path.write_text("\n".join(lines) + "\n")
    print(f"wrote {path}: {len(lines)} documents")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
