"""A damaged donor is opened or refused with a reason: no traceback, no hang, bounded memory.

HYBRIDIZER_FUZZ_CASES sets how many cases of each kind are tried (default 100), HYBRIDIZER_FUZZ_SEED the first
of their seeds. A case depends on its seed alone.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridizer.core.errors import HybridizerError
from hybridizer.core.progress import SilentMonitor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.models.load import load_tokenizer
from hybridizer.pipeline.plan import check
from support.gguf_files import write_gguf
from support.lines import make_donor, write_recipe

CASES = int(os.environ.get("HYBRIDIZER_FUZZ_CASES", "100"))
FIRST = int(os.environ.get("HYBRIDIZER_FUZZ_SEED", "0"))
SECONDS, MEMORY_BYTES = 10, 1_000_000_000

NASTY = [
    None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 10**9, 10**30, -(10**12), 0.5, -0.0, 1e308, float("inf"), "", "a",
    "1", "\u2028", "llama", "gpt2", "x" * 5000, [], {}, [[]], [None], [1, 2, 3, 4], ["a", "b"], {"a": {"b": []}},
    {"auto_map": 1}, {"type": "BPE"}, ["full_attention"] * 4, [[["global"], 10**9]], {"rope_type": "yarn", "factor": 0},
]  # fmt: skip
NASTY_TEXTS = [
    b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"\xef\xbb\xbf{}", b'{"a": 1, "a": 2}', b'{"a": ["\\ud800"]}',
    b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 1e999}', b'{"a":' * 200_000, b"[" * 200_000 + b"]" * 200_000,
    b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>", b"GGUF", b"\0" * 1000,
]  # fmt: skip
_KEYS = """
    model_type num_hidden_layers hidden_size vocab_size num_attention_heads num_key_value_heads head_dim rope_theta
    rope_scaling rope_parameters layer_types attention_types sliding_window tie_word_embeddings architectures auto_map
    text_config quantization_config torch_dtype dtype max_position_embeddings num_nextn_predict_layers n_layer
    per_layer_config intermediate_size rms_norm_eps tokenizer_class model added_tokens vocab merges type normalizer
    pre_tokenizer post_processor decoder chat_template eos_token added_tokens_decoder truncation padding version
"""
KEYS = tuple(_KEYS.split())


def damage_bytes(data, generator):
    """`data` with one or a few bytes changed, cut off, repeated or put in."""
    data = bytearray(data)
    for _ in range(generator.choice([1, 1, 1, 2, 5, 20])):
        place = generator.randrange(len(data) + 1)
        match generator.randrange(7):
            case 0:
                del data[place:]
            case 1:
                del data[place : place + generator.randrange(1, 40)]
            case 2:
                data[place:place] = generator.randbytes(generator.randrange(1, 20))
            case 3 if place < len(data):
                data[place] ^= 1 << generator.randrange(8)
            case 4 if place < len(data):
                data[place] = generator.choice([0, 1, 9, 0x7F, 0x80, 0xFF])
            case 5:
                data[place : place + 8] = generator.choice([b"\xff" * 8, bytes(8), b"\xff" * 4, bytes(7) + b"\x80"])
            case 6:
                data[place : place + 4] = generator.randbytes(4)
    return bytes(data)


def damage_value(value, generator):
    """`value` (any JSON) with one place in it replaced, removed, renamed or added."""
    if isinstance(value, dict) and value and generator.random() < 0.8:
        key = generator.choice(sorted(value))
        changed = dict(value)
        match generator.randrange(5):
            case 0:
                del changed[key]
            case 1:
                changed[generator.choice(KEYS)] = generator.choice(NASTY)
            case 2:
                changed[generator.choice(KEYS)] = changed.pop(key)
            case _:
                changed[key] = damage_value(value[key], generator)
        return changed
    if isinstance(value, list) and value and generator.random() < 0.8:
        place = generator.randrange(len(value))
        return [*value[:place], damage_value(value[place], generator), *value[place + generator.randrange(2) :]]
    if isinstance(value, int) and generator.random() < 0.5:
        return value + generator.choice([-1, 1, 7, 10**6])
    return generator.choice(NASTY)


def damage_json(data, generator):
    """JSON text with damaged characters or values."""
    choice = generator.random()
    if choice < 0.1:
        return generator.choice(NASTY_TEXTS)
    if choice < 0.35:
        return damage_bytes(data, generator)
    value = json.loads(data)
    for _ in range(generator.choice([1, 1, 2, 4])):
        value = damage_value(value, generator)
    return json.dumps(value).encode()


class Hang(BaseException):
    pass


@contextmanager
def limited():
    """Raise Hang when the block takes more than SECONDS."""

    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def try_all(kind, attempt):
    """Run `attempt` with each seed; a table of how the cases ended, after asserting that each ended well."""
    ended, bad = Counter(), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    warnings.simplefilter("ignore")  # of libraries, about damaged files
    for seed in range(FIRST, FIRST + CASES):
        try:
            with limited():
                attempt(random.Random(f"{kind} {seed}"))
            ended["success"] += 1
        except HybridizerError as error:
            ended[type(error).__name__] += 1
            if not all(problem.where and problem.what and problem.fix for problem in error.problems):
                bad.append(f"seed {seed}: an error that lacks a part: {error}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            ended["ESCAPED"] += 1
            bad.append(f"seed {seed}: " + "".join(traceback.format_exception(error)[-4:]))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    sys.stdout.write(f"\nfuzz {kind}: {dict(ended)}, {grown / 1e6:.0f} MB more at the peak\n")
    assert not bad, f"{len(bad)} of {CASES}\n" + "\n".join(bad[:5])
    assert grown < MEMORY_BYTES
    return ended


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDIZER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    make_donor(tmp_path / "a", seed=1)
    return tmp_path


def donor(bench, text="a", allow=("pickle",)):
    access = Access(fetch=True, fingerprint=True, allow=allow)
    return open_donor("a", parse_reference(text, bench), access, "r.yaml:2", SilentMonitor())


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

    ended = try_all("config", attempt)
    assert ended["success"] > 0 and ended["DonorError"] + ended["CheckpointError"] > CASES / 5


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

    ended = try_all("tokenizer", attempt)
    assert ended["success"] > 0 and ended["CheckpointError"] > CASES / 5


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

    ended = try_all("gguf", attempt)
    assert ended["CheckpointError"] > CASES / 2


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

    ended = try_all("pickle", attempt)
    assert ended["CheckpointError"] > CASES / 5
