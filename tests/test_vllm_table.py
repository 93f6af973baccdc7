"""scripts/vllm_table.py against a stand-in for vLLM that computes by transformers: equal, other and refused rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_scripts import run

from support.lines import make_donor

STAND_IN = """
from types import SimpleNamespace
import torch, transformers

__version__ = "0"

class SamplingParams(SimpleNamespace):
    pass

class LLM:
    def __init__(self, model, dtype, **engine):
        {start}
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)

    @torch.no_grad()
    def answer(self, ids, params):
        known = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        of = lambda n, token: {{token: SimpleNamespace(logprob=float(known[n, token]) {more})}}
        scored = [None] + [of(n, token) for n, token in enumerate(ids[1:])]
        added = list(ids)
        for _ in range(params.max_tokens):
            added.append(int(self.model(torch.tensor([added])).logits[0, -1].argmax()))
        return SimpleNamespace(prompt_logprobs=scored, outputs=[SimpleNamespace(token_ids=added[len(ids):])])

    def generate(self, prompts, params):
        return [self.answer(prompt["prompt_token_ids"], params) for prompt in prompts]
"""


def table(folder: Path, start: str = "pass", more: str = "") -> list[str]:
    """The cells of the row of an identity splice; vLLM runs `start` first and adds `more` to log-probabilities."""
    make_donor(folder / "donor", max_position_embeddings=512)
    (folder / "site").mkdir()
    (folder / "site/vllm.py").write_text(STAND_IN.format(start=start, more=more))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "site"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / "runs/texts").mkdir(parents=True)
    lines = [json.dumps({"text": f"python {number} " * 20}) + "\n" for number in range(60)]
    (folder / "runs/texts/python.jsonl").write_text("".join(lines))
    result = run(folder, "vllm_table", "out", "--python", "python", "--donor", "donor", "--only", "identity")
    assert result.returncode == 0, result.stderr[-3000:]
    return [cell.strip() for cell in result.stdout.splitlines()[-1].strip("| ").split(" | ")]


@pytest.mark.slow
def test_an_engine_that_computes_the_same_agrees(tmp_path):
    name, architecture, dtype, transformers, vllm, difference, same = table(tmp_path)
    assert (name, architecture, dtype, same) == ("identity", "LlamaForCausalLM", "float32", "yes")
    assert transformers == vllm and float(difference) < 1e-4


@pytest.mark.slow
def test_an_engine_with_one_other_token_is_seen_by_the_largest_difference(tmp_path):
    cells = table(tmp_path, more="- 0.5 * (n == 7)")
    assert float(cells[5]) == pytest.approx(0.5, abs=1e-2) and float(cells[4]) > float(cells[3])


@pytest.mark.slow
def test_a_refusal_has_the_words_of_the_engine(tmp_path):
    cells = table(tmp_path, start='raise RuntimeError("no such layer")')
    assert cells[4] == "refused: RuntimeError: no such layer"
