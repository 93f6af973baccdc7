"""A pack holds what a training changed; base and pack give the model bit for bit, or nothing is written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridizer.core.errors import CheckpointError, DonorError
from hybridizer.core.progress import SilentMonitor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.models.load import load_causal_lm
from hybridizer.splice.packs import read_pack
from hybridizer.splice.shared import load_grafts
from support.lines import hybridize, hybridize_json, make_donor, working_in, write_recipe

TRAIN = {"data": [{"path": "text.jsonl"}], "tokens": 1000, "seq_len": 64, "lr": 1e-3, "heldout_ratio": 0.2,
         "micro_batch_size": 4, "global_batch_size": 4}  # fmt: skip
SHARDS = {"max_shard_bytes": 40_000}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny base, two models trained from its shallow half with two seeds, the second in bfloat16, and their packs."""
    folder = tmp_path_factory.mktemp("packs")
    with working_in(folder):
        make_donor(folder / "base", seed=1)
        lines = [json.dumps({"text": f"{number} words of a text to train on " * 4}) for number in range(60)]
        (folder / "text.jsonl").write_text("\n".join(lines))
        for number in (1, 2):
            sections = {
                "layout": {"deep": "base", "shallow": "base"},
                "train": TRAIN,
                "output": SHARDS if number == 1 else {"dtype": "bfloat16"},
            }
            recipe = write_recipe(folder / f"x{number}.yaml", donors={"base": "base"}, seed=number, **sections)
            hybridize("build", recipe)
            hybridize("pack", f"runs/x{number}", "--base", "base", "--out", f"pack{number}")
        yield folder


@pytest.fixture
def bench(made, bench):
    """A copy of base and packs, to be damaged; the models are in `made`."""
    for name in ("base", "pack1", "pack2"):
        shutil.copytree(made / name, bench / name)
    return bench


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_base_and_pack_give_the_model_bit_for_bit_in_shards_too(made, bench):
    shown = hybridize_json("graft", "base", "pack1", "--out", "again")
    model = made / "runs/x1/model"
    assert len(list(model.glob("model-*.safetensors"))) > 2
    assert files_of(bench / "again") == files_of(model)
    assert (shown["folder"], shown["model"]) == ("again", "x1")
    assert shown["files"].keys() == {str(name) for name in files_of(model)}
    hybridize("verify", "again")


def test_what_the_model_holds_in_another_dtype_is_the_base_converted(made, bench):
    hybridize("graft", "base", "pack2", "--out", "again")
    assert files_of(bench / "again") == files_of(made / "runs/x2/model")
    assert read_pack(bench / "pack2").tensors == read_pack(bench / "pack1").tensors


def test_a_pack_holds_the_trained_tensors_alone(made):
    trained = set(json.loads((made / "runs/x1/model/manifest.json").read_text())["training"]["trained"])
    pack = read_pack(made / "pack1")
    assert set(pack.tensors) == trained
    assert {name for name in pack.tensors if ".layers.2." in name or ".layers.3." in name} == set()
    assert pack.pack_bytes < pack.shared_bytes
    stored = {str(path) for path in files_of(made / "pack1")}
    assert "files/tokenizer.json" not in stored and "files/manifest.json" in stored  # the base has the tokenizer


def test_another_base_is_refused(bench):
    make_donor(bench / "other", seed=9)
    stderr = hybridize("graft", "other", "pack1", "--out", "again", code=2).stderr
    assert "the pack is for 'base'" in stderr and not (bench / "again").exists()
    stderr = hybridize("graft", "base", "base", "--out", "again", code=2).stderr
    assert "there is no pack.json: this folder is not a finished pack" in stderr


def test_a_model_that_shares_no_tensor_with_the_base_is_refused(made, bench):
    make_donor(bench / "other", seed=9)
    weights = {name: tensor + 1 for name, tensor in load_file(bench / "other/model.safetensors").items()}
    save_file(weights, bench / "other/model.safetensors", {"format": "pt"})
    stderr = hybridize("pack", made / "runs/x1", "--base", "other", "--out", "p", code=2).stderr
    assert "no tensor of" in stderr and not (bench / "p").exists()


@pytest.mark.parametrize("damage", ["tensors", "header", "record", "file"])
def test_a_damaged_pack_writes_nothing_and_says_what_is_damaged(bench, damage):
    pack = bench / "pack1"
    if damage == "tensors":
        data = bytearray((pack / "pack.safetensors").read_bytes())
        data[-1] ^= 1
        (pack / "pack.safetensors").write_bytes(data)
        expected, code = "the pack's pack.safetensors is damaged; nothing was written", 1
    elif damage == "header":
        header = next((pack / "headers").iterdir())
        header.write_bytes(header.read_bytes()[:-1])
        expected, code = "it does not have the length that it announces", 2
    elif damage == "record":
        (pack / "pack.json").write_text((pack / "pack.json").read_text().replace("pack/1", "pack/9"))
        expected, code = "its schema is 'hybridizer.pack/9'", 2
    else:
        (pack / "files/README.md").write_text("edited")
        expected, code = "README.md: its content is not what", 1
    stderr = hybridize("graft", "base", "pack1", "--out", "again", code=code).stderr
    assert expected in " ".join(stderr.split())
    assert not (bench / "again").exists() and not list(bench.glob(".again*partial"))


def test_a_pack_whose_record_names_files_outside_the_model_is_refused(bench):
    record = json.loads((bench / "pack1/pack.json").read_text())
    record["files"]["../evil"] = "0" * 64
    (bench / "pack1/pack.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="which no model holds"):
        read_pack(bench / "pack1")


def test_models_of_several_packs_share_the_base_in_memory_and_compute_as_from_their_folders(made, bench):
    access = Access(fetch=False, fingerprint=True)
    base = open_donor("base", parse_reference("base", bench), access, "base", SilentMonitor())
    shutil.copytree(bench / "pack1", bench / "pack3")
    models = load_grafts(base, {"one": bench / "pack1", "half": bench / "pack2", "three": bench / "pack3"})
    ids = torch.arange(12).reshape(1, 12)
    for name, number in (("one", 1), ("half", 2), ("three", 1)):
        alone, _ = load_causal_lm(made / f"runs/x{number}/model")
        assert torch.equal(models[name](ids).logits, alone(ids).logits)
    places = [{p.data_ptr() for p in models[name].parameters()} for name in ("one", "three")]
    shared = len(places[0] & places[1])
    packed = len(read_pack(bench / "pack1").tensors)
    assert shared == len(places[0]) - packed and packed > 0
    make_donor(bench / "other", seed=9)
    other = open_donor("other", parse_reference("other", bench), access, "other", SilentMonitor())
    with pytest.raises(DonorError, match="the pack is for"):
        load_grafts(other, {"one": bench / "pack1"})
