"""`hybridize convert`: a file appears only where llama.cpp computes from it what transformers computes."""

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from hybridizer.convert.perplexity import Windows, cut_text, score_transformers
from hybridizer.convert.spelling import converter_options, spell_config
from hybridizer.core.errors import InputError
from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline import convert
from support.lines import hybridize, hybridize_json, working_in
from support.llama_stand_ins import write_stand_ins
from support.native import build_native
from support.tiny import make_tiny
from support.workshop import make_workshop

TEXT = "the cat sat on the mat and looked at the dog that lay beside it. " * 4


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A run with a finished model, and its perplexity by transformers on 4 windows of 32 tokens of TEXT."""
    folder = tmp_path_factory.mktemp("built")
    with working_in(folder):
        make_workshop(folder)
        hybridize("build", "recipe.yaml", "--no-load")
    (folder / "text.txt").write_text(TEXT)
    windows = cut_text(folder / "runs/recipe/model", TEXT, "text", 32, 4)
    found = score_transformers(folder / "runs/recipe/model", windows, torch.device("cpu"), SilentMonitor())
    return folder, windows, found


@pytest.fixture
def line(built, tmp_path, monkeypatch):
    """The words of a command that converts the run, the folder it writes into, and what transformers gives."""
    folder, _, found = built
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    (tmp_path / "out").mkdir()
    words = ["convert", folder / "runs/recipe", "--to", "gguf", "--text", folder / "text.txt", "--context", 32]
    words += ["--windows", 4, "--llama-cpp", tmp_path / "llama", "--out", tmp_path / "out/x.gguf"]
    return words, tmp_path, found


def stand_in(folder, **plan):
    write_stand_ins(folder / "llama", **plan)


def left(folder):
    return sorted(path.name for path in (folder / "out").iterdir())


def test_a_file_that_agrees_is_written_with_the_figures_of_both_engines(line):
    words, folder, found = line
    stand_in(folder, figures={"f16": found})
    record = hybridize_json(*words)
    assert left(folder) == ["x.gguf"]
    (checked,) = record["checked"]
    assert record["schema"] == "hybridizer.convert/1" and record["tokens_scored"] == 4 * 15
    assert checked["perplexity"] == pytest.approx(record["perplexity"]) == pytest.approx(found)
    assert abs(checked["difference"]) < 1e-9 and record["num_bytes"] == (folder / "out/x.gguf").stat().st_size
    assert record["bits_per_byte"] == pytest.approx(math.log2(found))  # of a tokenizer with one token per byte


def test_the_perplexity_by_transformers_is_that_of_the_second_half_of_each_window(built):
    folder, windows, found = built
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "runs/recipe/model", dtype=torch.float32)
    ids = torch.from_numpy(windows.ids)
    logits = model(ids).logits.log_softmax(-1)
    nats = [-logits[row, t - 1, ids[row, t]].item() for row in range(4) for t in range(17, 32)]
    assert math.exp(sum(nats) / len(nats)) == pytest.approx(found, rel=1e-5)


def test_bits_per_byte_are_bits_of_a_token_by_the_bytes_that_a_token_has(tmp_path):
    assert Windows("", np.zeros((2, 4)), 0.25).bits_per_byte(8.0) == 0.75  # 3 bits for 4 bytes
    words = Tokenizer(WordLevel({"<unk>": 0, "the": 1, "cät": 2}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    windows = cut_text(tmp_path, "the cät " * 8, "text", 4, 2)  # 16 tokens in 72 bytes
    assert windows.bits_per_byte(2.0**9) == pytest.approx(2.0) and windows.ids.tolist() == [[1, 2, 1, 2]] * 2


@pytest.mark.parametrize("figure", ["nan", "inf"])
def test_a_figure_that_is_no_number_writes_nothing(line, figure):
    words, folder, _ = line
    stand_in(folder, figures={"f16": figure})
    assert "and at most 0.002 is accepted" in hybridize(*words, code=1).stderr
    assert left(folder) == []


@pytest.mark.parametrize("factor", [1.01, 0.99, 15.5])
def test_a_file_that_computes_something_else_is_never_given_its_name(line, factor):
    words, folder, found = line
    stand_in(folder, figures={"f16": found * factor})
    told = hybridize(*words, code=1).stderr
    assert f"{found * factor:.4f}" in told and f"transformers {found:.4f}" in told and "rotary positions" in told
    assert left(folder) == []


def test_a_quantised_file_is_made_from_one_that_agreed_and_its_loss_is_reported(line):
    words, folder, found = line
    lossy = found * 1.01
    stand_in(folder, figures={"f32": found, "q8_0": lossy})
    first, second = hybridize_json(*words, "--type", "q8_0")["checked"]
    assert (first["type"], second["type"]) == ("f32", "q8_0")
    assert second["difference"] == pytest.approx(math.log2(1.01))  # of a tokenizer with one token per byte
    assert json.loads((folder / "out/x.gguf").read_text())["type"] == "q8_0" and left(folder) == ["x.gguf"]


def test_a_fault_of_the_converter_is_not_taken_for_a_loss_of_quantisation(line):
    words, folder, found = line
    stand_in(folder, figures={"f32": found * 1.01, "q4_k_m": found * 1.01})
    assert "as f32, llama.cpp gives" in hybridize(*words, "--type", "q4_k_m", code=1).stderr
    assert left(folder) == []


def test_a_quantised_file_that_is_nonsense_is_refused(line):
    words, folder, found = line
    stand_in(folder, figures={"f32": found, "q4_k_m": found * 3})
    assert "Choose a type with more bits" in hybridize(*words, "--type", "q4_k_m", code=1).stderr
    assert left(folder) == []


def test_an_existing_file_stays_without_replace_and_when_the_new_one_is_refused(line):
    words, folder, found = line
    (folder / "out/x.gguf").write_text("old")
    stand_in(folder, figures={"f16": found * 2})
    assert "pass --replace" in hybridize(*words, code=1).stderr
    hybridize(*words, "--replace", code=1)
    assert (folder / "out/x.gguf").read_text() == "old" and left(folder) == ["x.gguf"]
    stand_in(folder, figures={"f16": found})
    hybridize(*words, "--replace")
    assert "config" in json.loads((folder / "out/x.gguf").read_text())


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"converter": "fails"}, "the conversion failed (exit code 1): INFO: reading | NotImplementedError"),
        ({"perplexity": "dies"}, "failed (killed by SIGABRT)"),
        ({"chunks": 3}, "gave no figure for 4 windows"),
    ],
)
def test_what_goes_wrong_in_llama_cpp_is_reported_and_leaves_nothing(line, plan, told):
    words, folder, found = line
    stand_in(folder, figures={"f16": found}, **plan)
    assert told in hybridize(*words, code=1).stderr
    assert left(folder) == []


def test_ctrl_c_leaves_nothing(line, monkeypatch):
    words, folder, found = line
    stand_in(folder, figures={"f32": found})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hybridizer.convert.perplexity.score_llama", interrupted)
    hybridize(*words, "--type", "q8_0", code=130)
    assert left(folder) == []


def test_all_programs_that_are_missing_are_named_at_once_before_the_model_is_read(line, monkeypatch):
    words, _, _ = line
    monkeypatch.setattr(convert, "verify_folder", lambda *_, **__: pytest.fail("read"))
    (words[words.index("--llama-cpp") + 1]).mkdir()
    told = hybridize(*words, "--type", "q8_0", code=2).stderr
    assert "convert_hf_to_gguf.py, llama-perplexity, llama-quantize" in told and "docs/deploy.md" in told


def test_a_model_that_was_changed_is_not_converted(line, built, tmp_path):
    import shutil

    words, folder, found = line
    stand_in(folder, figures={"f16": found})
    changed = tmp_path / "changed"
    shutil.copytree(built[0] / "runs/recipe/model", changed)
    data = bytearray((changed / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (changed / "model.safetensors").write_bytes(data)
    assert "model.safetensors" in hybridize("convert", changed, *words[2:], code=1).stderr
    assert left(folder) == []


def test_the_file_does_not_go_into_the_model_folder(line, built):
    words, folder, found = line
    stand_in(folder, figures={"f16": found})
    words[words.index("--out") + 1] = built[0] / "runs/recipe/model/x.gguf"
    assert "nothing but what its manifest lists" in hybridize(*words, code=1).stderr


def test_a_text_of_fewer_than_two_windows_is_refused(line):
    words, folder, found = line
    stand_in(folder, figures={"f16": found})
    words[words.index("--context") + 1] = 200
    assert "windows of 200 are the least" in hybridize(*words, code=2).stderr


def test_too_little_room_is_refused_before_anything_is_computed(line, monkeypatch):
    words, folder, found = line
    stand_in(folder, figures={"f16": found})
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    monkeypatch.setattr(convert, "_score", lambda *_: pytest.fail("computed"))
    assert "the disk has 100 bytes" in hybridize(*words, code=1).stderr


def test_a_hybrid_with_rotary_positions_is_spelled_as_the_converter_keeps_them():
    hybrid = {"model_type": "granitemoehybrid", "position_embedding_type": "rope", "architectures": ["X"]}
    named = {**hybrid, "layer_types": ["full_attention", "linear_attention", "attention", "mamba"]}
    spelled = spell_config(named)
    assert spelled["layer_types"] == ["attention", "mamba"] * 2
    assert spelled["architectures"] == ["BambaForCausalLM"]
    without = spell_config({**named, "position_embedding_type": "nope"})
    assert without["architectures"] == spell_config({**hybrid, "layer_types": ["attention"]})["architectures"] == ["X"]
    assert spell_config({"model_type": "llama"}) == {"model_type": "llama"}
    falcon = {"model_type": "falcon_h1", "hidden_size": 64, "num_attention_heads": 4}
    assert spell_config(falcon)["head_dim"] == 16 and spell_config({**falcon, "head_dim": 8})["head_dim"] == 8
    assert converter_options({"model_type": "qwen3_5_text"}) == ("--no-mtp",) and not converter_options(hybrid)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind", "layout", "says", "fix"),
    [
        ("qwen3", "gated_delta_net", {"target": "qwen3_next"}, "a mixture of experts alone", "mixers in qwen3_5_text"),
        (
            "llama",
            "mamba2",
            {"mixer_sizes": {"heads": 4}},
            "its state spaces are 64 wide (heads x head_dim), and it takes 128 alone: 8 heads of 16 in `mixer_sizes`",
            "Serve it with transformers and vLLM",
        ),
        ("llama", "mamba2", {}, None, None),
    ],
)
def test_models_that_llama_cpp_does_not_run_are_refused_with_what_does(tmp_path, family, kind, layout, says, fix):
    slices = [{"donor": "a", "layers": 0, "mixer": {"kind": kind}}, {"donor": "a", "layers": "1..3"}]
    donor = make_tiny(family, tmp_path / "donor", **({"use_sliding_window": False} if family == "qwen3" else {}))
    model = build_native(tmp_path, donor, slices, **layout).folder / "model"
    config = json.loads((model / "config.json").read_text())
    if says is None:
        convert._check_served(model, config)
        return
    with pytest.raises(InputError) as error:
        convert._check_served(model, config)
    assert says in error.value.problems[0].what and fix in error.value.problems[0].fix


def test_a_run_gets_its_name_and_a_model_folder_that_of_the_folder(tmp_path):
    run, model = tmp_path / "run", tmp_path / "run/model"
    assert convert._default_file(run, model, "f16") == tmp_path / "run/run-f16.gguf"
    assert convert._default_file(model, model, "q8_0") == tmp_path / "run/model-q8_0.gguf"
