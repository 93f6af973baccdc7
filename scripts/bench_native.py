"""A native hybrid of SmolLM2 beside a plain splice while it is written, and beside its layers assembled by hand.

    python scripts/bench_native.py                          # on a CPU, about three minutes of its time
    python scripts/bench_native.py --donor FOLDER --rounds 1

Writing: processes that take turns write all layers as they are, the same in granitemoehybrid, and with new Mamba-2
mixers in three layers, in half of them, and in half of a model of twice the depth. torch and both families are loaded
before; CPU seconds, and by how much the peak of resident memory grows. Running: forward alone, and forward and
backward, of the model with half of its layers swapped, beside the donor's own class with the same mixers put in the
place of its attention. Both run in one process in turns, with one thread, in float32; the logits must be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smollm2 import smollm2_folder

WRITTEN = ("plain", "moved", "3 swapped", "half swapped", "twice the depth")


def layout_of(kind: str, depth: int) -> dict[str, Any]:
    """The layout of one of WRITTEN, of a donor of `depth` layers."""
    if kind in ("plain", "moved"):
        return {"slices": [{"donor": "a"}], **({"target": "granitemoehybrid"} if kind == "moved" else {})}
    swapped = set(range(1, depth, depth // 3)[:3] if kind == "3 swapped" else range(1, depth, 2))
    slices = [{"donor": "a", "layers": n, **({"mixer": {"kind": "mamba2"}} if n in swapped else {})}
              for n in range(depth)]  # fmt: skip
    return {"slices": slices * (2 if kind == "twice the depth" else 1)}


def write(kind: str, donor: Path, folder: Path) -> dict[str, float]:
    """Plan and write one of WRITTEN; CPU seconds of the writing, MB by which the peak grew, and MB written."""
    import torch
    from transformers import GraniteMoeHybridForCausalLM, LlamaForCausalLM

    from hybridizer.core.progress import SilentMonitor
    from hybridizer.models.memory import forget_peak_, peak_memory_bytes
    from hybridizer.pipeline.output import write_model
    from hybridizer.pipeline.plan import plan_recipe

    assert LlamaForCausalLM and GraniteMoeHybridForCausalLM  # transformers imports them where they are asked for
    depth = json.loads((donor / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    recipe = folder / f"{kind}.yaml".replace(" ", "-")
    content = {"name": recipe.stem, "donors": {"a": {"source": str(donor)}}}
    recipe.write_text(json.dumps({**content, "layout": {"host": "a", **layout_of(kind, depth)}}), encoding="utf-8")
    planned = plan_recipe(recipe, (), SilentMonitor())
    forget_peak_(torch.device("cpu"))
    before, began = peak_memory_bytes(torch.device("cpu")), time.process_time()
    write_model(planned.plan, planned.donors, folder / recipe.stem, SilentMonitor(), replace=True, load=False)
    grown = peak_memory_bytes(torch.device("cpu")) - before
    cpu, files = time.process_time() - began, (folder / recipe.stem).glob("*.safetensors")
    return {"cpu": cpu, "grown": grown / 1e6, "size": sum(path.stat().st_size for path in files) / 1e6}


def compare_writing(donor: Path, folder: Path, rounds: int) -> None:
    """Write each of WRITTEN once in every round, and print the medians."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in WRITTEN}
    for _ in range(rounds):
        for kind in WRITTEN:
            command = [sys.executable, __file__, "--donor", str(donor), "--folder", str(folder), "--child", kind]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found[kind].append(json.loads(told.splitlines()[-1]))
    print("written           CPU s  of plain   MB  of plain, per MB  peak grows by MB")
    median = {kind: statistics.median(each["cpu"] for each in runs) for kind, runs in found.items()}
    for kind, runs in found.items():
        grown, share, size = max(each["grown"] for each in runs), median[kind] / median["plain"], runs[0]["size"]
        each = share * found["plain"][0]["size"] / size
        print(f"{kind:16} {median[kind]:6.2f} {share:9.2f} {size:4.0f} {each:17.2f} {grown:17.0f}", flush=True)


def by_hand(donor: Path, native: Any) -> Any:
    """The donor's own class with the mixers of `native` in the place of its attention, where that has them."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    class AsAttention(nn.Module):
        def __init__(self, mixer: nn.Module) -> None:
            super().__init__()
            self.mixer = mixer

        def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
            return self.mixer(hidden_states), None

    model = AutoModelForCausalLM.from_pretrained(donor, dtype=torch.float32)
    for layer, other in zip(model.model.layers, native.model.layers, strict=True):
        if hasattr(other, "mamba") and other.mamba is not None:
            layer.self_attn = AsAttention(other.mamba)
    return model


def compare_running(donor: Path, folder: Path, rounds: int, tokens: int) -> None:
    """Run the half-swapped model and its parts assembled by hand in turns; print CPU seconds and their ratio."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    native = AutoModelForCausalLM.from_pretrained(folder / "half-swapped", dtype=torch.float32)
    models = {"native": native, "by hand": by_hand(donor, native)}
    ids = torch.randint(3, 250, (1, tokens), generator=torch.Generator().manual_seed(0))

    def forward(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits

    def step(model: Any) -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()

    assert torch.equal(*(forward(model) for model in models.values())), "the two compute different logits"
    print(f"\n1 x {tokens} tokens   native CPU s  by hand CPU s  speed of native")
    for name, run in (("forward", forward), ("step", step)):
        native_s, hand_s = (statistics.median(times) for times in in_turns(run, models, rounds).values())
        print(f"{name:15} {native_s:13.3f} {hand_s:14.3f} {hand_s / native_s:16.3f}", flush=True)


def in_turns(run: Callable[[Any], object], models: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each run of each model, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            began = time.process_time()
            run(model)
            if number:
                times[name].append(time.process_time() - began)
    return times


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--donor", type=Path, help="a folder of a Llama, in the place of SmolLM2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=WRITTEN, help=argparse.SUPPRESS)
    options = parser.parse_args()
    donor = (options.donor or smollm2_folder()).absolute()
    if options.child:
        print(json.dumps(write(options.child, donor, options.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-native-") as name:
        compare_writing(donor, Path(name), options.rounds)
        compare_running(donor, Path(name), options.rounds, options.tokens)


if __name__ == "__main__":
    main()
