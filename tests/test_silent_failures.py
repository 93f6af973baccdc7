"""The eight ways in which mergekit 0.1.5 goes wrong with exit code 0: each is right here, or refused."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from support.lines import hybridize, hybridize_json, make_donor, write_recipe
from support.marks import slow_except

pytestmark = pytest.mark.usefixtures("bench")


def two_donors(family="llama", **overrides):
    make_donor(Path("a"), family, seed=1)
    make_donor(Path("b"), family, seed=2, **overrides)


def recipe(slices, host="a", **sections):
    return write_recipe(
        Path("x.yaml"), donors={"a": "a", "b": "b"}, layout={"host": host, "slices": slices}, **sections
    )


SHIFTED = [{"donor": "a", "layers": 0}, {"donor": "b", "layers": "0..2"}]


def test_1_config_and_tokenizer_never_come_from_a_donor_nobody_named():
    two_donors()
    path = write_recipe(Path("x.yaml"), donors={"a": "a", "b": "b"}, layout={"slices": SHIFTED})
    assert "host" in hybridize("check", path, code=2).stderr
    hybridize("build", recipe(SHIFTED, host="b"), "--no-load")
    built = Path("runs/x/model")
    assert (built / "tokenizer.json").read_bytes() == Path("b/tokenizer.json").read_bytes()
    embedding = "model.embed_tokens.weight"
    tensors, donor = (load_file(folder / "model.safetensors") for folder in (built, Path("b")))
    assert torch.equal(tensors[embedding], donor[embedding])


@pytest.mark.parametrize("family", ["gemma3_text", "lfm2", "qwen3_next"])
def test_2_layer_types_follow_the_donor_layers(family):
    two_donors(family)
    plan = hybridize_json("plan", recipe(SHIFTED))
    types = json.loads(Path("a/config.json").read_text())["layer_types"]
    assert plan["config"]["layer_types"] == [types[0], *types[:3]] != types
    hybridize("build", "x.yaml")


INFERRED = ["qwen3_next", "jamba", "bamba", "falcon_h1", "nemotron_h", "gpt_oss"]


@pytest.mark.parametrize("family", slow_except(INFERRED, "jamba"))
def test_3_depth_is_updated_for_families_that_mergekit_infers(family):
    two_donors(family)
    hybridize("build", recipe([{"donor": "a"}, {"donor": "b"}]))
    model = AutoModelForCausalLM.from_pretrained("runs/x/model")
    assert model.config.num_hidden_layers == 8


def test_3_zamba2_whose_blocks_are_shared_between_layers_is_refused():
    two_donors("zamba2")
    assert "zamba2" in hybridize("check", recipe(SHIFTED), code=2).stderr


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("nemotron_h", {}), ("jamba", {}), ("llama", {"attention_bias": True, "mlp_bias": True})],
    ids=["nemotron_h", "jamba experts", "llama biases"],
)
def test_4_no_tensor_is_lost(family, overrides):
    make_donor(Path("a"), family, seed=1, **overrides)
    make_donor(Path("b"), family, seed=2, **overrides)
    depth = len(hybridize_json("plan", recipe([{"donor": "a"}]))["layers"])
    hybridize("build", recipe([{"donor": "b" if i % 2 else "a", "layers": i} for i in range(depth)]))
    built, donor = (load_file(folder / "model.safetensors") for folder in (Path("runs/x/model"), Path("a")))
    assert built.keys() == donor.keys()


def test_4_an_fp8_donor_whose_scales_would_be_lost_is_refused():
    two_donors()
    tensors = load_file("b/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[f"{name}_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, "b/model.safetensors", {"format": "pt"})
    stderr = hybridize("check", recipe(SHIFTED), code=2).stderr
    assert "donor 'b'" in stderr and "quantised" in stderr and "dequantise" in stderr


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"hidden_size": 32}, "hidden_size"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope"),
        ({"tie_word_embeddings": True}, "ties its head"),
        ({"vocab_size": 128}, "vocabulary of 128"),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_5_donors_that_do_not_fit_are_refused_naming_both(overrides, says):
    two_donors(**overrides)
    stderr = hybridize("check", recipe(SHIFTED), code=2).stderr
    assert says in stderr and "'b'" in stderr and "'a'" in stderr and "x.yaml:3" in stderr


def test_5_dtypes_that_differ_need_a_decision():
    two_donors()
    AutoModelForCausalLM.from_pretrained("b", dtype=torch.bfloat16).save_pretrained("b")
    assert "holds BF16" in hybridize("check", recipe(SHIFTED), code=2).stderr
    hybridize("build", recipe(SHIFTED, output={"dtype": "bfloat16"}))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_5_weights_that_are_not_numbers_are_found_when_asked(value):
    two_donors()
    tensors = load_file("b/model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, "b/model.safetensors", {"format": "pt"})
    hybridize("check", recipe(SHIFTED))
    stderr = hybridize("check", "x.yaml", "--deep-check", code=2).stderr
    assert "donor 'b': tensor 'model.layers.1.mlp.up_proj.weight' holds 1 values" in stderr


def test_5_a_range_that_runs_backwards_is_refused():
    two_donors()
    assert "x.yaml:" in (found := hybridize("check", recipe([{"donor": "a", "layers": "3..0"}]), code=2).stderr)
    assert "backwards" in found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base_modle: a", "base_modle"),
        ("freeze: true", "freeze"),
        ("layout: {host: a, slices: [{donor: a, scael: 2}]}", "scael"),
    ],
)
def test_6_a_key_nobody_knows_is_an_error_with_its_line(text, says):
    two_donors()
    Path("x.yaml").write_text(f"donors: {{a: a}}\n{text}\n")
    assert f"has no key `{says}`" in hybridize("check", "x.yaml", code=2).stderr


def test_6_a_parameter_that_a_merge_method_does_not_have_is_an_error():
    two_donors()
    sources = [{"donor": "a", "layers": 0}, {"donor": "b", "layers": 0}]
    blend = {"method": "slerp", "base": "a", "parameters": {"t": 0.5, "wieght": 1.0}, "sources": sources}
    assert "has no parameter 'wieght'" in hybridize("check", recipe([{"blend": blend}]), code=2).stderr


def test_7_tokens_that_mean_something_else_are_refused_naming_one():
    two_donors()
    content = json.loads(Path("b/tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    Path("b/tokenizer.json").write_text(json.dumps(content))
    stderr = hybridize("check", recipe(SHIFTED), code=2).stderr
    assert "token 'A'" in stderr and "'b'" in stderr and "'a'" in stderr
    donors = {"a": "a", "b": {"source": "b", "allow": ["vocabulary"]}}
    path = write_recipe(Path("x.yaml"), donors=donors, layout={"host": "a", "slices": SHIFTED})
    assert "warning: the token 'A'" in hybridize("check", path).stdout


@pytest.mark.slow
def test_8_a_full_disk_leaves_nothing_that_looks_finished(bench):
    two_donors()
    path = recipe([{"donor": "a"}] * 200)
    program = (  # a file-size limit stands in for the full disk: the write fails with the disk's own kind of error
        "import resource, signal, sys\nfrom hybridizer.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))\n"
        f"main(['build', {str(path)!r}, '--no-load'])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "Free some space" in result.stderr
    assert not Path("runs/x/model").exists() and not Path("runs/x/manifest.json").exists()
    assert [name for name in os.listdir("runs/x") if "partial" in name] == []


def test_8_a_second_run_leaves_no_stale_shards_and_files_have_mode_0644():
    two_donors()
    hybridize("build", recipe([{"donor": "a"}] * 4, output={"max_shard_bytes": "300KB"}), "--no-load")
    hybridize("build", recipe([{"donor": "a"}]), "--no-load", "--replace")
    files = list(Path("runs/x/model").iterdir())
    assert [file.name for file in files if file.suffix == ".safetensors"] == ["model.safetensors"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o644}
