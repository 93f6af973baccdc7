"""What vLLM computes from models of hybridizer beside transformers: the table of docs/deploy.md.

    python scripts/quickstart_texts.py runs/texts
    python scripts/vllm_table.py runs/vllm_table --python VLLM/bin/python [--only NAME ...]

VLLM is an environment of its own with vLLM, on a CPU or a GPU (docs/deploy.md says how to make one). Every row scores
the same windows of tokens in both, in the same type, and continues the first one by 24 tokens. A row that vLLM refuses
has its words. The models are those of scripts/convert_table.py, and small ones of random weights with what vLLM has no
place for. Every row is kept in OUT/rows.json, so an interrupted run resumes. The models stay in OUT.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from convert_table import Case, cases, file_name, make_model, make_parser, read_rows, swap
from smollm2 import copy_tokenizer

from hybridizer.convert.perplexity import Windows, cut_text
from hybridizer.core.files import write_file
from hybridizer.models.load import load_causal_lm, random_causal_lm
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import find_parts

CONTEXT, WINDOWS = 256, 4
START, MORE = 32, 24
DOCUMENTS = 20
LIMIT_S = 600
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
PLAIN_ROTARY = {"compilation_config": {"custom_ops": ["-rotary_embedding"]}}
RANDOM = {
    "vocab_size": 49152,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "initializer_range": 0.08,
}


@dataclass(frozen=True)
class Row:
    """A model of scripts/convert_table.py or of random weights, and how vLLM is asked to run it.

    `random` is the config of a donor of random weights beside RANDOM. `engine` are more arguments of `vllm.LLM`.
    """

    case: Case
    dtype: str = "float32"
    random: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)


def rows(texts: Path) -> dict[str, Row]:
    """The rows of the table by name; what stands behind a colon is not part of the model's name."""
    of = cases(texts)
    mamba = Case({"slices": swap(4, (1,), {"kind": "mamba2"})})
    fresh = [
        {"donor": "a", "layers": "0..1"},
        {"fresh": "gated_delta_net", "count": 1},
        {"donor": "a", "layers": "2..3"},
    ]
    wide = {"model_type": "llama", "head_dim": 32}
    biased = {"model_type": "qwen2", "num_key_value_heads": 4}
    return {
        "identity": Row(of["identity"]),
        "attention alone": Row(of["attention alone"]),
        "hybrid": Row(of["hybrid"]),
        "identity: bfloat16": Row(of["identity"], "bfloat16"),
        "hybrid: bfloat16": Row(of["hybrid"], "bfloat16"),
        "branches": Row(of["branches"]),
        "convolutions": Row(of["convolutions"], engine=PLAIN_ROTARY),
        "convolutions: as it comes": Row(of["convolutions"]),
        "delta nets": Row(of["delta nets"], "bfloat16"),
        "delta nets, qwen3_next": Row(of["delta nets, qwen3_next"], "bfloat16"),
        "olmo2": Row(Case({"slices": fresh}), "bfloat16", {"model_type": "olmo2"}),
        "wide heads, mamba2": Row(mamba, random=wide),
        "biases, mamba2": Row(mamba, random=biased),
        "biases, branches": Row(Case({"slices": swap(4, (1,), {"kind": "mamba2", "parallel": True})}), random=biased),
    }


def random_donor(folder: Path, config: Mapping[str, Any]) -> Path:
    """A donor of random weights with SmolLM2's tokenizer; biases are drawn, for zeros would hide their loss."""
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        model = random_causal_lm({**RANDOM, **config}, torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):
                    parameter.normal_(0, 0.5)
        model.save_pretrained(folder)
        copy_tokenizer(folder)
    return folder


@torch.no_grad()
def score(model: Any, windows: Windows) -> np.ndarray:
    """The log-probability (natural) of each token but the first of each window."""
    objective = CausalLMLoss(model, find_parts(model))
    losses = [objective.token_losses(torch.from_numpy(row[None]))[0].double().numpy() for row in windows.ids]
    return -np.stack(losses)


@torch.no_grad()
def extend(model: Any, windows: Windows) -> list[int]:
    """The tokens that are added to the beginning of the first window by largest probability."""
    ids = torch.from_numpy(windows.ids[:1, :START])
    for _ in range(MORE):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return list(ids[0, START:].tolist())


def by_vllm(python: Path, folder: Path, row: Row, windows: Windows, work: Path) -> dict[str, Any]:
    """What vllm_score.py found, or `refused` with the last words of an error."""
    asked, found = work / "asked.json", work / "found.json"
    found.unlink(missing_ok=True)
    question = {
        "folder": str(folder),
        "dtype": row.dtype,
        "windows": windows.ids.tolist(),
        "start": START,
        "more": MORE,
    }
    write_file(asked, json.dumps({**question, "engine": dict(row.engine)}))
    child = [str(python), str(Path(__file__).with_name("vllm_score.py")), str(asked), str(found)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | ENVIRONMENT
    try:
        done = subprocess.run(child, capture_output=True, text=True, env=environment, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"refused": f"no answer in {LIMIT_S} s"}
    if found.exists():
        return dict(json.loads(found.read_text(encoding="utf-8")))
    return {"refused": first_error(done.stdout + done.stderr)}


def first_error(told: str) -> str:
    """The first error that is named in a log, without the log's own prefix; its end where none is named."""
    named = re.findall(r"\b(\w*(?:Error|Exception): (?!Engine)[^\n]+)", told)
    return named[0][:200] if named else told[-200:]


def measure(name: str, row: Row, out: Path, texts: Path, python: Path, donor: Path | None) -> dict[str, Any]:
    """One row: bits per byte in both, the largest difference of a token in nats, and whether the added tokens agree."""
    model = name.partition(":")[0]
    if row.random:
        donor = random_donor(out / f"donor-{file_name(model)}", row.random)
    folder = (make_model(model, row.case, out, texts, donor) / "model").absolute()
    lines = (texts / "python.jsonl").read_text(encoding="utf-8").splitlines()
    text = "\n".join(json.loads(each)["text"] for each in lines[:DOCUMENTS])
    windows = cut_text(folder, text, "the text", CONTEXT, WINDOWS)
    ours, _ = load_causal_lm(folder, row.dtype)
    known = score(ours, windows)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    result = {"architecture": config["architectures"][0], "transformers": bits(known, windows)}
    if row.dtype != "float32":
        exact, _ = load_causal_lm(folder, "float32")
        result["rounding"] = float(np.abs(known - score(exact, windows)).max())
    found = by_vllm(python, folder, row, windows, out)
    if "refused" in found:
        return result | found
    theirs = np.asarray(found["logprobs"])
    same = extend(ours, windows) == found["added"]
    differences = {"difference": float(np.abs(known - theirs).max()), "same": same}
    return result | {"vllm": bits(theirs, windows), "version": found["version"], **differences}


def bits(logprobs: np.ndarray, windows: Windows) -> float:
    """Bits per byte."""
    return float(-logprobs.mean() / np.log(2) * windows.tokens_per_byte)


def line(name: str, dtype: str, found: Mapping[str, Any]) -> str:
    """One row of the table in Markdown."""
    begin = f"| {name} | {found['architecture']} | {dtype} | {found['transformers']:.5f}"
    if "refused" in found:
        return f"{begin} | refused: {found['refused']} | | |"
    rounding = f" (rounding {found['rounding']:.3f})" if "rounding" in found else ""
    return f"{begin} | {found['vllm']:.5f} | {found['difference']:.1e}{rounding} | {'yes' if found['same'] else 'no'} |"


def main() -> int:
    """Measure the rows that are not there yet, and print them all."""
    parser = make_parser(__doc__)
    parser.add_argument("--python", type=Path, required=True, help="the interpreter of the environment that has vLLM")
    options = parser.parse_args()
    path = options.out / "rows.json"
    known = read_rows(path)
    print("| model | architecture | type | transformers, bits per byte | vLLM | largest difference of a token, nats "
          "| same 24 tokens |", flush=True)  # fmt: skip
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, row in rows(options.texts).items():
        if options.only and name not in options.only:
            continue
        known[name] = known.get(name) or measure(
            name, row, options.out, options.texts, options.python.absolute(), options.donor
        )
        write_file(path, json.dumps(known, indent=1))
        print(line(name, row.dtype, known[name]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
