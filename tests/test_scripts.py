"""Every script runs from a fresh clone: their imports and calls are not seen by the type checker."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.lines import make_donor

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "bench_cli": ("--rounds", "1"),
    "bench_eval": ("--model", "donor", "--items", "64", "--kilobytes", "20"),
    "bench_identity": ("gemma2", "--lr", "1e-3", "--steps", "1"),
    "bench_memory": ("--workdir", "out", "--only", "tiny"),
    "bench_native": ("--donor", "donor", "--rounds", "1", "--tokens", "24"),
    "bench_objective": ("--workdir", "out", "--shape", "smoke", "--rows", "1", "--tokens", "64", "--steps", "1",
                        "--threads", "1"),
    "bench_scan": ("--workdir", "out", "--donor", "donor", "--models", "1"),
    "bench_splice": ("--gb", "0.05", "--rounds", "1", "--cache", "warm"),
    "bench_tokenise": ("--tokenizer", "donor", "--megabytes", "0.1", "--rounds", "1", "--seq-len", "64"),
    "bench_trace": ("--workdir", "out", "--only", "time", "--prompts", "2", "--plain-prompts", "1",
                    "--layer-prompts", "1"),
    "bench_train": ("--workdir", "out", "--shape", "smoke", "--rows", "1", "--tokens", "64", "--steps", "1",
                    "--threads", "1"),
    "bench_frozen": ("--workdir", "out", "--shape", "smoke", "--rows", "1", "--tokens", "64", "--steps", "2",
                     "--seeds", "1"),
    "convert_table": ("out", "--donor", "donor", "--only", "identity"),
    "coverage": ("--trials", "1"),
    "coverage_trial": ("--trials", "1"),
    "family_table": ("llama",),
    "fit_mixers": ("out", "--model", "donor", "--only", "0", "2", "12", "--recall"),
    "hybrid_table": ("--check",),
    "known_truth": ("out", "--model", "donor", "--probes", "probes.jsonl", "--prompts", "8", "--units", "1",
                    "--layer-prompts", "1", "--bytes", "2000"),
    "known_truth_tuned": ("out", "--model", "donor", "--probes", "probes.jsonl", "--prompts", "8", "--tokens", "2k",
                          "--documents", "2", "--bytes", "60"),
    "probe_table": ("donor", "probes.jsonl"),
    "quickstart_texts": ("out",),
    "trace_outcome": ("out", "--model", "donor", "--probes", "probes.jsonl", "--prompts", "8", "--boundaries", "3",
                      "--steps", "1", "--rows", "1", "--seq-len", "16", "--max-tokens", "200"),
    "trace_table": ("llama",),
}  # fmt: skip
NEED_SOURCES = {
    "build_exam_items",
    "build_probes_en",
    "build_probes_zh",
    "build_probes_tasks_en",
    "build_probes_tasks_zh",
}  # Debian's WordNet and packages of word lists
ELSEWHERE = {"vllm_table", "vllm_score"}  # tests/test_vllm_table.py
SHARED = {"known_truth_donors", "probe_sources", "rank_correlation", "smollm2", "take_turns"}


def run(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_every_script_is_run_by_a_test_here():
    assert {path.stem for path in (ROOT / "scripts").glob("*.py")} == {*SMALL, *NEED_SOURCES, *ELSEWHERE, *SHARED}


@pytest.mark.slow
@pytest.mark.parametrize("script", SMALL)
def test_a_script_runs_with_its_smallest_setting(tmp_path, script):
    make_donor(tmp_path / "donor")
    probes = [
        {"prompt": f"The opposite of {number} is ", "target": "abcdefgh"[number], "kind": "letters"}
        for number in range(8)
    ]
    (tmp_path / "probes.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in probes))
    (tmp_path / "runs/texts").mkdir(parents=True)
    for name in ("python", "news"):  # known_truth_tuned reads what quickstart_texts writes
        lines = [json.dumps({"text": f"{name} {number} " * 20}) + "\n" for number in range(60)]
        (tmp_path / f"runs/texts/{name}.jsonl").write_text("".join(lines))
    result = run(tmp_path, script, *SMALL[script])
    assert result.returncode == 0, result.stderr[-3000:]
    assert "refused" not in result.stdout, result.stdout


@pytest.mark.parametrize("script", sorted(NEED_SOURCES))
def test_a_script_whose_sources_are_missing_says_how_to_install_them(tmp_path, script):
    if Path("/usr/share/wordnet").is_dir():
        pytest.skip("WordNet is installed here: the script would write into the package")
    result = run(tmp_path, script)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "install" in result.stderr
