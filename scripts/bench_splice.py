"""How fast a two-donor splice is, beside `cp` of the same bytes and mergekit's passthrough, in one run.

Makes two donors of random bfloat16 weights (or takes two with --donors), puts all layers of the second behind those
of the first, and removes afterwards what it made. The contestants are processes of their own that take
turns for several rounds, with the donors' pages in memory (warm) and dropped from it (cold):

    cp             copies a finished output; flushes nothing
    cp + sync      the same, flushed
    splice         hybridizer's writer: copies and flushes
    splice + hash  the same, and reads it all back for its sha256
    build          `hybridize build --no-load`: plan, splice + hash, manifest, verify; the donors'
                   fingerprints are known from a run before, whose time is printed
    build + load   the same without --no-load: also loads the model with transformers and runs it
    mergekit       mergekit-yaml, passthrough; flushes and hashes nothing
    mergekit + sync  the same, its files flushed as those of a build are

Both programs write shards of the size that they choose by default.

    python scripts/bench_splice.py --gb 4 --rounds 3 --json out.json
    python scripts/bench_splice.py --shape smollm2 --rounds 3    # 60 layers of SmolLM2-135M: 0.5 GB
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
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
from unittest import mock

from hybridizer.checkpoint.hashing import same_bytes
from hybridizer.checkpoint.layout import OutputTensor
from hybridizer.checkpoint.reader import open_checkpoint
from hybridizer.checkpoint.writer import write_checkpoint

SHARD_BYTES = 5_000_000_000  # the default of `output.max_shard_bytes`
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama model; `num_layers` of each donor, or None where --gb decides."""

    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    tied: bool
    num_layers: int | None

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of a layer by its name in the layer."""
        kv_size = self.hidden // self.heads * self.kv_heads
        return {
            "input_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (self.hidden, self.hidden),
            "self_attn.k_proj.weight": (kv_size, self.hidden),
            "self_attn.v_proj.weight": (kv_size, self.hidden),
            "self_attn.o_proj.weight": (self.hidden, self.hidden),
            "post_attention_layernorm.weight": (self.hidden,),
            "mlp.gate_proj.weight": (self.intermediate, self.hidden),
            "mlp.up_proj.weight": (self.intermediate, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.intermediate),
        }

    def count_layers(self, gb: float) -> int:
        """The layers of each of two donors whose splice takes `gb` gigabytes in bfloat16."""
        if self.num_layers is not None:
            return self.num_layers
        layer_bytes = sum(2 * math.prod(shape) for shape in self.layer_shapes().values())
        return max(1, round((gb * 1e9 - 4 * self.hidden * self.vocabulary) / layer_bytes / 2))


SHAPES = {
    "llama": Shape(2048, 5632, 32_000, 32, 32, tied=False, num_layers=None),
    "smollm2": Shape(576, 1536, 49_152, 9, 3, tied=True, num_layers=30),
}


@dataclass(frozen=True)
class Run:
    """One process: seconds by the wall and of processor, and peak resident memory in MB (page cache not counted)."""

    contestant: str
    cache: str
    seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Contestant:
    """The folders a command reads, and the command that fills a folder."""

    reads: tuple[Path, ...]
    command: Callable[[Path], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama", help="the shape of made donors (default llama)")
    parser.add_argument("--gb", type=float, default=4.0, help="size of the spliced model of shape llama (default 4)")
    parser.add_argument("--donors", nargs=2, type=Path, help="two checkpoint folders to splice instead of made ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", choices=["warm", "cold", "both"], default="both")
    parser.add_argument("--workdir", type=Path, help="a folder to work in (default: a new one in the system's)")
    parser.add_argument("--json", type=Path, help="write every run to this file")
    parser.add_argument("--drive", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        drive(*arguments.drive)
        return
    caches = ["warm", "cold"] if arguments.cache == "both" else [arguments.cache]
    with tempfile.TemporaryDirectory(prefix="bench-splice-", dir=arguments.workdir) as name:
        workdir = Path(name)
        donors = arguments.donors or make_donors(workdir, arguments.shape, arguments.gb)
        runs = measure(workdir, donors[0].resolve(), donors[1].resolve(), caches, arguments.rounds)
    report(runs, caches, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")


def drive(mode: str, *rest: str) -> None:
    """What runs in processes of its own: making a donor (numpy would swell this one), and the two splices."""
    if mode == "donor":
        folder, seed, shape, num_layers = rest
        make_donor(Path(folder), SHAPES[shape], seed=int(seed), num_layers=int(num_layers))
    elif mode == "splice + hash":
        write(Path(rest[2]), splice(Path(rest[0]), Path(rest[1])))
    else:
        with mock.patch("hybridizer.checkpoint.writer.hash_growing", return_value="not hashed"):
            write(Path(rest[2]), splice(Path(rest[0]), Path(rest[1])))


def write(folder: Path, tensors: list[OutputTensor]) -> None:
    options = {"max_shard_bytes": SHARD_BYTES, "metadata": {"format": "pt"}, "on_progress": lambda _: None}
    write_checkpoint(folder, tensors, **options)


def splice(first: Path, second: Path) -> list[OutputTensor]:
    """The embeddings and layers of the first donor, then the layers, final norm and head of the second.

    That is how mergekit decides whose they are, and it has no way to be told otherwise.
    """
    host, guest = open_checkpoint(first).tensors, open_checkpoint(second).tensors
    depth = count_layers(first)
    kept = {name: entry for name, entry in host.items() if name.startswith(("model.embed_tokens.", "model.layers."))}
    for name, entry in guest.items():
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            kept[f"model.layers.{int(layer) + depth}.{rest}"] = entry
        elif not name.startswith("model.embed_tokens."):
            kept[name] = entry
    return [OutputTensor(name, entry.dtype, entry.shape, entry) for name, entry in kept.items()]


def count_layers(donor: Path) -> int:
    return int(json.loads((donor / "config.json").read_text())["num_hidden_layers"])


def make_donors(workdir: Path, shape: str, gb: float) -> tuple[Path, Path]:
    """Two donors of a shape, each of half the layers that a model of `gb` gigabytes has."""
    num_layers = SHAPES[shape].count_layers(gb)
    for seed, name in enumerate("ab"):
        sizes = [str(seed), shape, str(num_layers)]
        time_process([sys.executable, __file__, "--drive", "donor", str(workdir / name), *sizes])
    return workdir / "a", workdir / "b"


def make_donor(folder: Path, shape: Shape, *, seed: int, num_layers: int) -> None:
    """A Llama checkpoint of `num_layers` layers."""
    import numpy as np

    # One block of bfloat16 numbers (the upper halves of float32), which every tensor enters at a place of its own: no
    # two tensors are equal and no value is NaN.
    normal = np.random.default_rng(seed).normal(0, 0.02, 1 << 23).astype(np.float32)
    block = (normal.view(np.uint32) >> 16).astype("<u2").tobytes()

    def content(number: int, num_bytes: int) -> Iterator[memoryview]:
        start = 2 * (number * 7919 % 10_000)
        while num_bytes:
            piece = memoryview(block)[start : start + num_bytes]
            yield piece
            num_bytes -= len(piece)
            start = 0

    layer = shape.layer_shapes()
    shapes = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    shapes |= {f"model.layers.{n}.{name}": sizes for n in range(num_layers) for name, sizes in layer.items()}
    shapes |= {"model.norm.weight": (shape.hidden,)}
    if not shape.tied:
        shapes |= {"lm_head.weight": (shape.vocabulary, shape.hidden)}
    tensors = []
    for number, (name, sizes) in enumerate(shapes.items()):
        size = 2 * math.prod(sizes)
        tensors.append(OutputTensor(name, "BF16", sizes, lambda number=number, size=size: content(number, size)))
    folder.mkdir()
    write(folder, tensors)
    (folder / "config.json").write_text(json.dumps(make_config(shape, num_layers), indent=2))


def make_config(shape: Shape, num_layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": num_layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
    }


def measure(workdir: Path, first: Path, second: Path, caches: list[str], rounds: int) -> list[Run]:
    """All runs in the order they were made; the contestants take turns, so that noise falls on all of them."""
    reference = workdir / "reference"
    reference.mkdir()
    write(reference, splice(first, second))
    contestants = make_contestants(workdir, first, second, reference)
    runs = []
    for number in range(rounds):
        for cache in caches:
            for name, contestant in contestants.items():
                out = workdir / "out"
                out.mkdir()
                if name == "build" and not runs_of(runs, name):
                    seconds, *_ = time_process(contestant.command(workdir / "first"))
                    print(f"the first build, which also hashes the donors: {seconds:.2f} s", flush=True)
                    shutil.rmtree(workdir / "first")
                prepare(contestant.reads, cache)
                runs.append(Run(name, cache, *time_process(contestant.command(out))))
                print(f"round {number + 1}/{rounds} {cache}: {name:15} {runs[-1].seconds:7.2f} s", flush=True)
                if number == 0 and cache == caches[0]:
                    check_equal(name, reference, out)
                shutil.rmtree(out)
    return runs


def runs_of(runs: list[Run], contestant: str, cache: str | None = None) -> list[Run]:
    return [run for run in runs if run.contestant == contestant and cache in {None, run.cache}]


def make_contestants(workdir: Path, first: Path, second: Path, reference: Path) -> dict[str, Contestant]:
    files = [str(path) for path in sorted(reference.glob("*.safetensors"))]
    donors = (first, second)
    drive_command = [sys.executable, __file__, "--drive"]
    merge = [str(Path(sys.executable).with_name("mergekit-yaml")), str(workdir / "mergekit.yaml")]
    (workdir / "mergekit.yaml").write_text(mergekit_recipe(first, second))
    (workdir / "hybridizer.yaml").write_text(hybridizer_recipe(first, second))
    build = [sys.executable, "-m", "hybridizer", "build", str(workdir / "hybridizer.yaml"), "--runs"]
    merge_options = ["--no-copy-tokenizer", "--quiet"]
    return {
        "cp": Contestant((reference,), lambda out: ["cp", *files, str(out)]),
        "cp + sync": Contestant((reference,), lambda out: flushed(out, ["cp", *files, str(out)])),
        "splice": Contestant(donors, lambda out: [*drive_command, "splice", str(first), str(second), str(out)]),
        "splice + hash": Contestant(
            donors, lambda out: [*drive_command, "splice + hash", str(first), str(second), str(out)]
        ),
        "build": Contestant(donors, lambda out: [*build, str(out), "--no-load"]),
        "build + load": Contestant(donors, lambda out: [*build, str(out)]),
        "mergekit": Contestant(donors, lambda out: [*merge, str(out), *merge_options]),
        "mergekit + sync": Contestant(donors, lambda out: flushed(out, [*merge, str(out), *merge_options])),
    }


def flushed(out: Path, command: list[str]) -> list[str]:
    """`command`, after which the files of `out` are flushed to disk."""
    return ["sh", "-c", '"$@" && sync "$0"/*', str(out), *command]


def mergekit_recipe(first: Path, second: Path) -> str:
    slices = "".join(
        f"  - sources:\n      - model: {donor}\n        layer_range: [0, {count_layers(donor)}]\n"
        for donor in (first, second)
    )
    return f"merge_method: passthrough\nslices:\n{slices}"


def hybridizer_recipe(first: Path, second: Path) -> str:
    slices = "".join(
        f"    - {{donor: {name}, layers: 0..{count_layers(donor) - 1}}}\n"
        for name, donor in (("first", first), ("second", second))
    )
    host = f"{{source: {json.dumps(str(second))}, allow: [no_tokenizer]}}"  # made donors have no tokenizer
    donors = f"donors:\n  first: {json.dumps(str(first))}\n  second: {host}\n"
    return f"name: spliced\n{donors}layout:\n  host: second\n  slices:\n{slices}"


def prepare(folders: tuple[Path, ...], cache: str) -> None:
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


def time_process(command: list[str]) -> tuple[float, float, float]:
    """Seconds by the wall, seconds of processor and peak resident MB of `command`, which must succeed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program is not compiled at every start
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()  # or it would go on writing into a folder that is being taken away
            process.wait()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{command} failed:\n{output.read().decode(errors='replace')}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def check_equal(name: str, expected: Path, out: Path) -> None:
    """Both folders hold the same tensors, byte for byte; only whose embeddings a build takes is its recipe's word."""
    if name.startswith("cp"):
        return
    found = open_checkpoint(out / "spliced" / "model" if name.startswith("build") else out).tensors
    wanted = open_checkpoint(expected).tensors
    assert wanted.keys() == found.keys(), wanted.keys() ^ found.keys()
    differing = {tensor for tensor, entry in wanted.items() if not same_bytes(entry, found[tensor])}
    allowed = {"model.embed_tokens.weight"} if name.startswith("build") else set()
    assert differing <= allowed, f"{len(differing)} tensors differ, {min(differing)} for one"
    print(f"  {len(wanted) - len(differing)} tensors are equal, byte for byte, to those of the reference splice")


def report(runs: list[Run], caches: list[str], rounds: int) -> None:
    """Medians, spread, memory, and ratios to `cp` and to mergekit, for each state of the cache.

    `mergekit /` is mergekit's median divided by the row's, `synced /` that of mergekit with its files flushed.
    """
    print(f"\nsha256 on one core here: {measure_sha256():.0f} MB/s; {os.cpu_count()} cores; medians of {rounds} rounds")
    for cache in caches:
        median = {run.contestant: 0.0 for run in runs}
        median |= {name: statistics.median(run.seconds for run in runs_of(runs, name, cache)) for name in median}
        print(f"\n{cache:15}  median      min..max       cpu   / cp  / cp+sync  mergekit /  synced /  by cpu /    peak")
        for name, seconds in median.items():
            print(describe(name, runs_of(runs, name, cache), runs_of(runs, "mergekit", cache), seconds, median))
    print("\ngoals for `build`: 3 x as fast as mergekit at 4 GB, 6 x at SmolLM2's size; peak below 150 MB")


def describe(name: str, runs: list[Run], merges: list[Run], seconds: float, median: dict[str, float]) -> str:
    spread = f"{min(run.seconds for run in runs):.2f}..{max(run.seconds for run in runs):.2f}"
    cpu = statistics.median(run.cpu_seconds for run in runs)
    peak = max(run.peak_mb for run in runs)
    to_cp, to_sync = seconds / median["cp"], seconds / median["cp + sync"]
    of_mergekit, of_synced = median["mergekit"] / seconds, median["mergekit + sync"] / seconds
    merge_cpu = statistics.median(run.cpu_seconds for run in merges)
    times = f"{seconds:6.2f} s {spread:>13} {cpu:7.2f} s"
    ratios = f"{to_cp:6.2f} {to_sync:10.2f} {of_mergekit:11.2f} {of_synced:9.2f} {merge_cpu / cpu:10.2f}"
    return f"{name:15} {times} {ratios} {peak:4.0f} MB"


def measure_sha256() -> float:
    block = bytes(1 << 26)
    start = time.perf_counter()
    hashlib.sha256(block)
    return len(block) / 1e6 / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
