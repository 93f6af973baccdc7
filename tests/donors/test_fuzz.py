"""A damaged donor is opened or refused with a reason: no traceback, no hang, bounded memory (see support/fuzz.py)."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridizer.core.progress import SilentMonitor
from hybridizer.models.load import load_tokenizer
from hybridizer.pipeline.plan import check
from support.fuzz import damage_bytes, damage_json, try_all
from support.gguf_files import write_gguf
from support.lines import make_donor, write_recipe
from support.opened import donor as opened

CASES = 100


@pytest.fixture
def bench(bench):
    make_donor(bench / "a", seed=1)
    return bench


donor = partial(opened, allow=("pickle",))


FAMILIES = ("llama", "qwen3", "gpt2", "gpt_neo", "nemotron_h", "gemma3_text", "deepseek_v3")


def test_a_damaged_config_is_refused_or_planned(bench):
    for family in FAMILIES:
        make_donor(bench / family, family)
    whole = {family: (bench / family / "config.json").read_bytes() for family in FAMILIES}
    layout = {"deep": "a", "shallow": "a"}
    recipes = {
        family: write_recipe(bench / f"{family}.yaml", donors={"a": family}, layout=layout) for family in FAMILIES
    }

    def attempt(generator):
        family = generator.choice(FAMILIES)
        (bench / family / "config.json").write_bytes(damage_json(whole[family], generator))
        check(recipes[family], (), SilentMonitor(), deep=False)

    ended = try_all("config", attempt, CASES)
    assert ended["success"] > 0 and ended["DonorError"] + ended["CheckpointError"] > ended.total() / 5


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "vocab.json", "merges.txt")


def test_a_damaged_tokenizer_is_refused_or_loaded(bench):
    content = json.loads((bench / "a/tokenizer.json").read_text())
    content["model"]["vocab"] = {token: i for token, i in content["model"]["vocab"].items() if i < 40}
    content["model"]["merges"] = [["!", '"'], ["#", "$"]]
    content["model"]["vocab"] |= {'!"': 40, "#$": 41}
    (bench / "a/tokenizer.json").write_text(json.dumps(content))
    (bench / "a/vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (bench / "a/merges.txt").write_text('#version: 0.2\n! "\n# $\n')
    whole = {name: (bench / "a" / name).read_bytes() for name in TOKENIZER_FILES}

    def attempt(generator):
        for name, data in whole.items():
            (bench / "a" / name).unlink(missing_ok=True)
            (bench / "a" / name).write_bytes(data)
        if generator.random() < 0.3:
            (bench / "a/tokenizer.json").unlink()
        name = generator.choice([name for name in TOKENIZER_FILES if (bench / "a" / name).exists()])
        damage = damage_bytes if name.endswith(".txt") else damage_json
        (bench / "a" / name).write_bytes(damage(whole[name], generator))
        donor(bench)
        load_tokenizer(bench / "a")

    ended = try_all("tokenizer", attempt, CASES)
    assert ended["success"] > 0 and ended["CheckpointError"] > ended.total() / 5


@pytest.mark.slow
def test_a_damaged_gguf_file_is_refused_or_converted(bench):
    whole = write_gguf(bench / "whole.gguf").read_bytes()
    num_header_bytes = whole.index(b"blk.1.ffn_up.weight") + 50

    def attempt(generator):
        shutil.rmtree(bench / "cache", ignore_errors=True)
        if generator.random() < 0.3:
            write_gguf(bench / "x.gguf", lambda settings, tensors: change(settings, tensors, generator))
        elif generator.random() < 0.1:
            (bench / "x.gguf").write_bytes(whole[: generator.randrange(len(whole))])
        else:
            (bench / "x.gguf").write_bytes(damage_bytes(whole[:num_header_bytes], generator) + whole[num_header_bytes:])
        load_tokenizer(donor(bench, "x.gguf").folder)

    def change(settings, tensors, generator):
        key = generator.choice(sorted(settings))
        values = [0, 1, 2, 3, 5, 7, 64, 2**24, 2**31, 2**32 - 1, 0.0, 1e30, float("nan"), float("inf"), "", "yarn", "x"]
        settings[key] = generator.choice(values)
        if generator.random() < 0.3:
            tensors.pop(generator.choice(sorted(tensors)))
        if generator.random() < 0.1:
            del settings[key]

    ended = try_all("gguf", attempt, CASES)
    assert ended["CheckpointError"] > ended.total() / 2


@pytest.mark.slow
def test_a_damaged_pickle_is_refused_or_converted(bench):
    tensors = load_file("a/model.safetensors")
    (bench / "a/model.safetensors").unlink()
    forms = []
    for new in (True, False):
        torch.save(tensors, "x.bin", _use_new_zipfile_serialization=new)
        forms.append(Path("x.bin").read_bytes())

    def attempt(generator):
        shutil.rmtree(bench / "cache", ignore_errors=True)
        data = generator.choice(forms)
        part = generator.choice([len(data), 20_000, 3_000])
        begin, end = (0, part) if generator.random() < 0.7 else (max(0, len(data) - part), len(data))
        damaged = data[:begin] + damage_bytes(data[begin:end], generator) + data[end:]
        (bench / "a/pytorch_model.bin").write_bytes(damaged)
        donor(bench)

    ended = try_all("pickle", attempt, CASES)
    assert ended["CheckpointError"] > ended.total() / 5
