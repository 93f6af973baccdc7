"""Pickle weights are converted unchanged: every tensor under its own name and in its own dtype."""

import json
import shutil
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridizer.core.errors import CheckpointError, DonorError
from support.lines import make_donor
from support.opened import donor as opened

donor = partial(opened, allow=("pickle",))


@pytest.fixture
def bench(bench):
    make_donor(bench / "a", seed=1)
    return bench


def tensors_of(bench):
    return load_file(bench / "a/model.safetensors")


def save(bench, tensors, name="pytorch_model.bin", **options):
    torch.save(tensors, bench / "a" / name, **options)
    (bench / "a/model.safetensors").unlink(missing_ok=True)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def test_float32_weights_stay_float32_whatever_dtype_the_config_has(bench):
    tensors = tensors_of(bench)
    edit(bench / "a/config.json", dtype="bfloat16", torch_dtype="bfloat16")
    save(bench, tensors)
    assert same(load_file(donor(bench).folder / "model.safetensors"), tensors)


def test_later_changes_of_config_and_tokenizer_are_read(bench):
    save(bench, tensors_of(bench))
    first = donor(bench)
    edit(bench / "a/config.json", rms_norm_eps=0.125)
    second = donor(bench)
    assert second.config["rms_norm_eps"] == 0.125 and second.fingerprint != first.fingerprint
    edit(bench / "a/tokenizer_config.json", model_max_length=7)
    third = donor(bench)
    assert json.loads(third.tokenizer_files["tokenizer_config.json"].read_text())["model_max_length"] == 7
    assert third.fingerprint not in (first.fingerprint, second.fingerprint)


def test_tensors_that_share_memory_are_each_written_in_full(bench):
    tensors = tensors_of(bench)
    block = torch.randn(2, *tensors["model.layers.0.self_attn.q_proj.weight"].shape)
    for layer in (0, 1):
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = block[layer]
    tensors["model.layers.2.self_attn.o_proj.weight"] = tensors["model.layers.3.self_attn.o_proj.weight"]
    tensors["model.layers.2.mlp.down_proj.weight"] = tensors["model.layers.2.mlp.down_proj.weight"].t().contiguous().t()
    save(bench, tensors)
    assert same(load_file(donor(bench).folder / "model.safetensors"), tensors)


def test_the_old_file_format_is_read_as_well(bench):
    tensors = tensors_of(bench)
    save(bench, tensors, _use_new_zipfile_serialization=False)
    assert same(load_file(donor(bench).folder / "model.safetensors"), tensors)


def shards(bench):
    tensors = tensors_of(bench)
    names = sorted(tensors)
    halves = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, part in halves.items():
        save(bench, {name: tensors[name] for name in part}, file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (bench / "a/pytorch_model.bin.index.json").write_text(json.dumps(index))
    return tensors


def test_shards_are_read_together(bench):
    tensors = shards(bench)
    assert same(load_file(donor(bench).folder / "model.safetensors"), tensors)


def test_a_missing_tensor_is_refused(bench):
    tensors = tensors_of(bench)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save(bench, tensors)
    with pytest.raises(CheckpointError, match=r"layer 1 has no tensor 'mlp.up_proj.weight'"):
        donor(bench)


def test_shards_that_are_missing_or_contradict_the_index_are_refused(bench):
    shards(bench)
    second = bench / "a/pytorch_model-00002-of-00002.bin"
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(CheckpointError, match="1 of 2 files are missing: pytorch_model-00002-of-00002.bin"):
        donor(bench)
    (bench / "a/pytorch_model.bin.index.json").rename(bench / "index")
    with pytest.raises(CheckpointError, match="1 of 2 files are missing"):
        donor(bench)
    (bench / "index").rename(bench / "a/pytorch_model.bin.index.json")
    second.write_bytes(kept)
    content = torch.load(second)
    content.popitem()
    torch.save(content, second)
    with pytest.raises(CheckpointError, match="it disagrees with the files on 1 tensors"):
        donor(bench)


def compress(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds a list and not tensors by name"),
        ({"epoch": 3}, "holds 'epoch', a int, among its tensors"),
        ({"model": {"w": torch.ones(2)}}, "holds 'model', a dict, among its tensors"),
        ({}, "holds no tensor"),
        ({"w": torch.ones(1).expand(10**6)}, "is an expanded view of fewer numbers"),
        ({"w": torch.ones(2, 2).to_sparse()}, "not plain numbers"),
    ],
)
def test_a_file_that_is_not_a_plain_state_dict_is_refused(bench, content, says):
    save(bench, content)
    with pytest.raises(CheckpointError, match=says):
        donor(bench)


def test_cut_short_compressed_and_empty_pickles_are_refused(bench):
    save(bench, tensors_of(bench))
    path = bench / "a/pytorch_model.bin"
    whole = path.read_bytes()
    for data in (whole[:-1], whole[: len(whole) // 2], whole[:100], b"", b"\x80\x02", b"version https://git-lfs"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="pytorch_model.bin"):
            donor(bench)
    path.write_bytes(whole)
    compress(path)
    with pytest.raises(CheckpointError, match="is compressed"):
        donor(bench)


def test_remote_code_is_refused_before_the_weights_are_converted(bench):
    save(bench, tensors_of(bench))
    edit(bench / "a/tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Slow", None]})
    with pytest.raises(DonorError, match=r"tokenizer_config.json requires running code .*\(evil.py\)"):
        donor(bench)
    assert not (bench / "cache/pickles").exists()


def test_a_converted_pickle_gives_the_logits_of_the_original(bench):
    from transformers import AutoModelForCausalLM

    shutil.copytree(bench / "a", bench / "kept")
    tensors = tensors_of(bench)
    tensors["lm_head.weight"] = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    save(bench, tensors)
    ids = torch.arange(4, 20)[None]
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (bench / "kept", donor(bench).folder)]
    first, second = (model.eval()(ids).logits for model in models)
    assert torch.equal(first, second)
