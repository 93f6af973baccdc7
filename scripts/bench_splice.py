"""How fast a two-donor splice is, beside `cp` of the same bytes and mergekit's passthrough, in one run.

Makes two Llama-shaped donors of random bfloat16 weights in --workdir, splices all layers of the second onto the first,
and takes the whole away afterwards. Every contestant is a process of its own, started in turn for several rounds with
the donors' pages in memory (warm) and dropped from memory (cold). What each of them leaves behind:

    cp                 copies, flushes nothing
    cp + sync          copies and flushes
    hybridizer copy    copies and flushes
    hybridizer         copies, flushes, and hashes what it wrote with sha256
    mergekit           copies, flushes nothing

    python scripts/bench_splice.py --gb 4 --rounds 3 --json out.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hybridizer.checkpoint.folder import open_checkpoint
from hybridizer.checkpoint.layout import OutputTensor, name_shards, plan_shards
from hybridizer.checkpoint.writer import write_checkpoint, write_shard

HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 5632, 32_000
LAYER_SHAPES = {
    "input_layernorm.weight": (HIDDEN,),
    "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.k_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.v_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "post_attention_layernorm.weight": (HIDDEN,),
    "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
}
LAYER_BYTES = 2 * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE + 2 * HIDDEN)
SHARD_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Run:
    """One process: what it was, seconds by the wall, and peak resident memory in MB (page cache not counted)."""

    contestant: str
    cache: str
    seconds: float
    peak_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=4.0, help="size of the spliced model (default 4)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", choices=["warm", "cold", "both"], default="both")
    parser.add_argument("--workdir", type=Path, help="a folder to work in (default: a new one in the system's)")
    parser.add_argument("--json", type=Path, help="write every run to this file")
    parser.add_argument("--drive", nargs=3, metavar=("MODE", "WORKDIR", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        mode, workdir, out = arguments.drive
        return drive(mode, Path(workdir), Path(out))
    with tempfile.TemporaryDirectory(prefix="bench-splice-", dir=arguments.workdir) as name:
        workdir = Path(name)
        num_layers = max(1, round((arguments.gb * 1e9 - 4 * HIDDEN * VOCABULARY) / LAYER_BYTES / 2))
        for donor in ("a", "b"):
            make_donor(workdir / donor, seed=ord(donor), num_layers=num_layers)
        caches = ["warm", "cold"] if arguments.cache == "both" else [arguments.cache]
        runs = measure(workdir, num_layers, caches, arguments.rounds)
    report(runs, caches, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")


def drive(mode: str, workdir: Path, out: Path) -> None:
    """What the contestants 'hybridizer' do in a process of their own."""
    tensors = splice(workdir / "a", workdir / "b")
    if mode == "hashed":
        write_checkpoint(
            out, tensors, max_shard_bytes=SHARD_BYTES, metadata={"format": "pt"}, on_progress=lambda _: None
        )
        return
    shards = plan_shards(tensors, SHARD_BYTES)
    for name, shard in zip(name_shards(len(shards)), shards, strict=True):
        with (out / name).open("xb", buffering=0) as file:
            write_shard(file.fileno(), shard, {"format": "pt"}, lambda _: None)
    sync(out)


def splice(first: Path, second: Path) -> list[OutputTensor]:
    """The embeddings and layers of the first donor, then the layers, final norm and head of the second.

    mergekit decides so; it has no way to say otherwise.
    """
    host, guest = open_checkpoint(first).tensors, open_checkpoint(second).tensors
    depth = 1 + max(int(name.split(".")[2]) for name in host if name.startswith("model.layers."))
    kept = {name: entry for name, entry in host.items() if name.startswith(("model.embed_tokens.", "model.layers."))}
    for name, entry in guest.items():
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            kept[f"model.layers.{int(layer) + depth}.{rest}"] = entry
        elif not name.startswith("model.embed_tokens."):
            kept[name] = entry
    return [OutputTensor(name, entry.dtype, entry.shape, entry) for name, entry in kept.items()]


def make_donor(folder: Path, *, seed: int, num_layers: int) -> None:
    """A Llama checkpoint of `num_layers` layers, about 0.1 GB each, in shards of about 1 GB."""
    import numpy as np

    # One megabyte-sized block of real bfloat16 numbers (the upper halves of float32), entered at a place of its own by
    # every tensor: no two tensors are equal and no value is NaN.
    normal = np.random.default_rng(seed).normal(0, 0.02, 1 << 23).astype(np.float32)
    block = (normal.view(np.uint32) >> 16).astype("<u2").tobytes()

    def content(number: int, num_bytes: int) -> Iterator[memoryview]:
        start = 2 * (number * 7919 % 10_000)
        while num_bytes:
            piece = memoryview(block)[start : start + num_bytes]
            yield piece
            num_bytes -= len(piece)
            start = 0

    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    shapes |= {f"model.layers.{n}.{name}": s for n in range(num_layers) for name, s in LAYER_SHAPES.items()}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    tensors = []
    for number, (name, shape) in enumerate(shapes.items()):
        size = 2 * int(np.prod(shape))
        tensors.append(OutputTensor(name, "BF16", shape, lambda number=number, size=size: content(number, size)))
    folder.mkdir()
    write_checkpoint(
        folder, tensors, max_shard_bytes=SHARD_BYTES, metadata={"format": "pt"}, on_progress=lambda _: None
    )
    (folder / "config.json").write_text(json.dumps(make_config(num_layers), indent=2))


def make_config(num_layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def measure(workdir: Path, num_layers: int, caches: list[str], rounds: int) -> list[Run]:
    """All runs in the order they were made; the contestants take turns, so that noise falls on all of them."""
    reference = workdir / "reference"
    reference.mkdir()
    drive("hashed", workdir, reference)
    recipe = workdir / "mergekit.yaml"
    recipe.write_text(mergekit_recipe(workdir, num_layers))
    contestants = make_contestants(workdir, reference, recipe)
    runs = []
    for number in range(rounds):
        for cache in caches:
            for name, (sources, command) in contestants.items():
                out = workdir / "out"
                out.mkdir()
                prepare(sources, cache)
                runs.append(Run(name, cache, *time_process(command(out))))
                print(f"round {number + 1}/{rounds} {cache}: {name:18} {runs[-1].seconds:7.2f} s", flush=True)
                if number == 0 and cache == caches[0] and name in {"hybridizer", "mergekit"}:
                    check_equal(reference, out)
                shutil.rmtree(out)
    return runs


def make_contestants(
    workdir: Path, reference: Path, recipe: Path
) -> dict[str, tuple[list[Path], Callable[[Path], list[str]]]]:
    """Name -> (folders it reads, command that fills a folder)."""
    donors = [workdir / "a", workdir / "b"]
    files = [str(path) for path in sorted(reference.glob("*.safetensors"))]
    this = [sys.executable, __file__, "--drive"]
    mergekit = str(Path(sys.executable).with_name("mergekit-yaml"))
    return {
        "cp": ([reference], lambda out: ["cp", *files, str(out)]),
        "cp + sync": ([reference], lambda out: ["sh", "-c", 'cp "$@" && sync "$0"/*', str(out), *files, str(out)]),
        "hybridizer copy": (donors, lambda out: [*this, "plain", str(workdir), str(out)]),
        "hybridizer": (donors, lambda out: [*this, "hashed", str(workdir), str(out)]),
        "mergekit": (
            donors,
            lambda out: [mergekit, str(recipe), str(out), "--no-copy-tokenizer", "--quiet", "--out-shard-size", "500M"],
        ),
    }


def mergekit_recipe(workdir: Path, num_layers: int) -> str:
    slices = "".join(
        f"  - sources:\n      - model: {workdir / donor}\n        layer_range: [0, {num_layers}]\n" for donor in "ab"
    )
    return f"merge_method: passthrough\ndtype: bfloat16\nslices:\n{slices}"


def prepare(folders: list[Path], cache: str) -> None:
    """Nothing left to flush, and the folders' pages all in memory or all out of it."""
    os.sync()
    for folder in folders:
        for path in folder.glob("*.safetensors"):
            with path.open("rb", buffering=0) as file:
                if cache == "cold":
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    buffer = bytearray(1 << 22)
                    while file.readinto(buffer):
                        pass


def time_process(command: list[str]) -> tuple[float, float]:
    """Seconds by the wall and peak resident MB of `command`, which must succeed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{command} failed:\n{output.read().decode(errors='replace')}")
    return seconds, usage.ru_maxrss * 1024 / 1e6


def sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def check_equal(expected: Path, found: Path) -> None:
    """Both folders hold the same tensors: names, dtypes, shapes and bytes."""
    ours, theirs = open_checkpoint(expected).tensors, open_checkpoint(found).tensors
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    for name, entry in ours.items():
        other = theirs[name]
        assert (entry.dtype, entry.shape) == (other.dtype, other.shape), (entry, other)
        with entry.file.open("rb") as one, other.file.open("rb") as two:
            one.seek(entry.begin)
            two.seek(other.begin)
            for begin in range(0, entry.num_bytes, 1 << 24):
                size = min(1 << 24, entry.num_bytes - begin)
                assert one.read(size) == two.read(size), f"{name} differs"
    print(f"  {len(ours)} tensors are equal, byte for byte, to those of the reference splice")


def report(runs: list[Run], caches: list[str], rounds: int) -> None:
    """Medians, spread, memory, and ratios to `cp` and to mergekit, for each state of the cache."""
    print(f"\nsha256 on one core here: {measure_sha256():.0f} MB/s; {os.cpu_count()} cores; {rounds} rounds; medians")
    for cache in caches:
        seconds = {
            name: [run.seconds for run in runs if (run.contestant, run.cache) == (name, cache)]
            for name in dict.fromkeys(run.contestant for run in runs)
        }
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        print(
            f"\n{cache:18} {'median':>9} {'min..max':>15} {'x cp':>6} {'x cp+sync':>9} {'mergekit /':>10} {'peak':>8}"
        )
        for name, median in medians.items():
            spread = f"{min(seconds[name]):.2f}..{max(seconds[name]):.2f}"
            peak = max(run.peak_mb for run in runs if (run.contestant, run.cache) == (name, cache))
            ratios = f"{median / medians['cp']:6.2f} {median / medians['cp + sync']:9.2f}"
            print(
                f"{name:18} {median:7.2f} s {spread:>15} {ratios} {medians['mergekit'] / median:10.2f} {peak:5.0f} MB"
            )
    print("\ngoals: at most 1.5 x cp, mergekit / hybridizer at least 3, peak below 150 MB")


def measure_sha256() -> float:
    block = bytes(1 << 26)
    start = time.perf_counter()
    hashlib.sha256(block)
    return len(block) / 1e6 / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
