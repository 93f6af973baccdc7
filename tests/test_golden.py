"""Golden numbers: 20 losses, a plan and its tensors, a trace, stored in tests/golden and compared to the last bit.

A change that should not change numbers must not change one bit of them. Where a change means to:

    python tests/test_golden.py --write

computes everything again, prints each number that changed with its old and new value, and stores the new ones; the
commit says why they changed. The numbers are reached through the command line, and stored under names of this file,
so that moved modules and renamed record fields touch the three functions below and no number.

Numbers of one processor are those of another only where both run the same instructions: see PINS.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"
# Without the pins 14 of the 20 losses and 77 figures of the trace differ in their last digits between AVX2 and AVX-512
# kernels. Taken away one by one on a processor with AVX-512: threads (2 for 1), ATen's kernels and MKL's each change
# numbers; oneDNN's are not reached at these sizes, nor do numpy's AVX-512 code, the C library's or
# MKL_ENABLE_INSTRUCTIONS change any. ATen needs "avx2" by name: "default", plain SSE, gives other numbers again.
# MKL's COMPATIBLE is the one code path that it runs on the processors of every maker.
PINS: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "CUDA_VISIBLE_DEVICES": "",
}
ARITHMETIC = ("training", "trace")  # the numbers of `splice` are hashes of bytes that are copied
FIGURES = (
    "target_prob", "target_prob_ci", "ratio_median", "ratio_mean", "js", "js_ci", "delta_js", "delta_js_ci",
    "task_particles", "layer_js", "layer_js_ci", "explained", "explained_ci",
)  # fmt: skip
TOTALS = ("accuracy", "accuracy_ci", "accuracy_n", "target_prob", "target_prob_ci")
TRAIN = {
    "data": [{"path": "text.jsonl"}], "tokens": 5000, "max_steps": 20, "seq_len": 64, "global_batch_size": 4,
    "lr": 3e-3, "heldout_ratio": 0.1, "precision": "float32", "freeze": "deep",
}  # fmt: skip
LAYOUT = {"host": "a", "deep": "a", "shallow": "b", "boundary": 0.5}
DONORS = {"a": "a", "b": "b"}
PROBES = [{"prompt": f"the opposite of {word} is ", "target": "abcd"[i % 4]} for i, word in enumerate(
    ["hot", "cold", "up", "down", "left", "right", "in", "out", "day", "night", "big", "small"])]  # fmt: skip


def make_exact_donor(name: str, seed: int) -> None:
    """A tiny llama whose weights are integers over a power of two: exact, so that its bytes depend on no processor."""
    import torch
    from safetensors.torch import load_file, save_file

    from support.lines import make_donor

    file = make_donor(Path(name), seed=seed) / "model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, tensor in sorted(load_file(file).items()):
        steps = torch.randint(-128, 129, tensor.shape, generator=generator).float()
        tensors[key] = 1 + steps / 1024 if tensor.ndim == 1 else steps / 512
    save_file(tensors, file, metadata={"format": "pt"})


def tensor_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of the bytes of every tensor of a one-file model."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    return {name: sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in sorted(tensors.items())}


def training() -> dict[str, Any]:
    """Losses of 20 steps (nats per token) of b's layers 0 and 1 under a's frozen ones; a hash of what was trained."""
    from support.lines import hybridize, write_documents, write_recipe

    write_documents(Path("text.jsonl"), 200)
    hybridize("build", write_recipe(Path("x.yaml"), donors=DONORS, layout=LAYOUT, train=TRAIN))
    lines = [json.loads(line) for line in Path("runs/x/training/log.jsonl").read_text().splitlines()]
    hashes = tensor_hashes(Path("runs/x/model"))
    assert len(lines) == TRAIN["max_steps"]
    return {"loss": [line["loss"] for line in lines], "trained": sha256(json.dumps(hashes).encode()).hexdigest()}


def splice() -> dict[str, Any]:
    """The hash of the plan of two donors' halves, and the sha256 of each tensor of the model built from it."""
    from support.lines import hybridize, hybridize_json, write_recipe

    recipe = write_recipe(Path("x.yaml"), donors=DONORS, layout=LAYOUT)
    plan = hybridize_json("plan", recipe)
    hybridize("build", recipe)
    return {"plan": plan["hash"], "tensors": tensor_hashes(Path("runs/x/model"))}


def trace() -> dict[str, Any]:
    """A trace of 12 prompts, context and layer perturbed: lists over layers and boundaries, and totals."""
    from support.lines import hybridize

    Path("p.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in PROBES))
    hybridize("trace", "a", "--probes", "p.jsonl", "--perturb", "both", "--json", "trace.json")
    record = json.loads(Path("trace.json").read_text())
    by_layer = {name: [layer[name] for layer in record["layers"]] for name in FIGURES}
    boundary = {name: [row[name] for row in record["boundary"]] for name in ("s", "s_ci")}
    totals = {name: record[name] for name in TOTALS}
    totals |= {"js_embedding": record["embedding"]["js"], "js_embedding_ci": record["embedding"]["js_ci"]}
    return totals | {"layers": by_layer, "boundary": boundary}


COMPUTE = {"training": training, "splice": splice, "trace": trace}


def compute(name: str, folder: Path, pins: Mapping[str, str] = PINS) -> Any:
    """The numbers `name`, computed with `folder` as working folder in a process of its own, its arithmetic pinned."""
    environment = {**os.environ, **pins, "HYBRIDIZER_CACHE": str(folder / "cache")}
    command = [sys.executable, str(Path(__file__).resolve()), "--compute", name]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def changes(old: Any, new: Any, where: str) -> Iterator[str]:
    """A line for every number that differs, `where: old -> new`, each number written so that it reads back exactly."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from changes(old.get(key), new.get(key), f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from changes(left, right, f"{where}[{index}]")
    elif old != new:
        yield f"{where}: {old!r} -> {new!r}"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPUTE)
def test_not_one_bit_of_the_golden_numbers_changed(name, tmp_path):
    if name in ARITHMETIC and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the stored numbers are those of x86-64 instructions")
    stored = json.loads((GOLDEN / f"{name}.json").read_text())
    changed = list(changes(stored, compute(name, tmp_path), name))
    assert not changed, "\n".join(changed)


def write() -> None:
    """Compute and store every golden number, and print what changed."""
    GOLDEN.mkdir(exist_ok=True)
    for name in COMPUTE:
        file = GOLDEN / f"{name}.json"
        with tempfile.TemporaryDirectory() as folder:
            new = compute(name, Path(folder).resolve())
        old = json.loads(file.read_text()) if file.exists() else None
        file.write_text(json.dumps(new, indent=1) + "\n")
        sys.stdout.write("\n".join(changes(old, new, name)) + "\n" if old != new else f"{name}: unchanged\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compute"]:
        make_exact_donor("a", seed=1)
        make_exact_donor("b", seed=2)
        sys.stdout.write(json.dumps(COMPUTE[sys.argv[2]]()) + "\n")
    elif sys.argv[1:] == ["--write"]:
        write()
    else:
        sys.exit(__doc__)
