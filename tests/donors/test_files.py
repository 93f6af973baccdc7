"""The small files of a donor: damaged, foreign and dangerous ones are refused with the reason, valid ones are read."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridizer.core.errors import CheckpointError, DonorError, VerificationError
from hybridizer.models.check import generate_text
from hybridizer.models.load import load_tokenizer, random_causal_lm
from support.lines import hybridize, hybridize_json, make_donor, write_recipe
from support.opened import donor


@pytest.fixture
def bench(bench):
    make_donor(bench / "a", seed=1)
    return bench


def refusal(bench, **options):
    with pytest.raises((DonorError, CheckpointError)) as caught:
        donor(bench, **options)
    assert all(problem.fix for problem in caught.value.problems)
    return str(caught.value)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_model(path, **changes):
    content = json.loads(path.read_text())
    content["model"] |= changes
    path.write_text(json.dumps(content))


def grow(path, size=200_000_000):
    with path.open("r+b") as file:
        file.truncate(size)


def replace_by(kind):
    def damage(path):
        path.unlink()
        kind(path)

    return damage


DAMAGES = [
    (lambda path: path.write_text("not json"), "not valid JSON"),
    (lambda path: path.write_bytes(path.read_bytes()[:-3]), "not valid JSON"),
    (lambda path: path.write_bytes(b""), "the file is empty"),
    (lambda path: path.write_text("[1, 2]"), "a JSON object was expected, found list"),
    (lambda path: path.write_text("null"), "a JSON object was expected"),
    (lambda path: path.write_bytes(b'{"a": "\xff"}'), "not UTF-8 text at byte"),
    (lambda path: path.write_text('{"version": 1, "version": 2}'), "the key 'version' occurs twice"),
    (lambda path: path.write_text('{"a": ["\\ud800"]}'), "half of a UTF-16 pair"),
    (lambda path: path.write_text('{"a": ' + "9" * 5000 + "}"), "invalid JSON"),
    (lambda path: path.write_text('{"a": ' + "9" * 500 + "}"), "which no setting needs"),
    (lambda path: path.write_text('{"a": NaN}'), "NaN is not a JSON number"),
    (lambda path: path.write_text('{"a": ' + "[" * 100 + "]" * 100 + "}"), "nested deeper than 40 levels"),
    (lambda path: path.write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"), "nested too deep"),
    (lambda path: path.write_text("<html>404</html>"), "a web page"),
    (grow, "200000000 bytes"),
    (replace_by(Path.mkdir), "a file was expected, this is a folder"),
    (replace_by(os.mkfifo), "not a regular file"),
    (replace_by(lambda path: path.symlink_to("/etc/hostname")), "is a link to /etc/hostname, outside"),
    (replace_by(lambda path: path.symlink_to(path.name)), "a link that points to itself|Too many levels"),
    (replace_by(lambda path: path.symlink_to("nowhere")), "No such file"),
]
JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(("damage", "says"), DAMAGES)
def test_every_kind_of_damaged_json_file_is_refused(bench, name, damage, says):
    damage(bench / "a" / name)
    found = refusal(bench)
    assert name in found and any(words in found for words in says.split("|")), found


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vocab": {"a": "1"}}, "gives the token 'a' the number '1'"),
        ({"vocab": {"a": -1}}, "the number -1"),
        ({"vocab": {"a": True}}, "the number True"),
        ({"vocab": "abc"}, "must map tokens to numbers"),
        ({"vocab": [["a"]]}, "must list pairs"),
        ({"merges": [["a"]]}, "which is not two tokens"),
        ({"merges": ["a b c"]}, "which is not two tokens"),
        ({"merges": "ab"}, "must be a list"),
        ({"vocab": None}, "must map tokens to numbers"),
    ],
)
def test_a_tokenizer_of_wrong_types_is_refused(bench, changes, says):
    change_model(bench / "a/tokenizer.json", **changes)
    assert says in refusal(bench)


def test_added_tokens_of_wrong_types_are_refused(bench):
    for added in (3, [3], [{"id": 1}], [{"content": "x", "id": "1"}]):
        edit(bench / "a/tokenizer.json", added_tokens=added)
        assert "added_tokens" in refusal(bench)


def slow_tokenizer(folder, merges="#version: 0.2\n\u0120 a\n"):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "vocab.json").write_text(json.dumps({"\u0120": 0, "a": 1, "\u0120a": 2}))
    if merges is not None:
        (folder / "merges.txt").write_text(merges)


def test_a_slow_tokenizer_is_read_and_its_missing_merges_are_reported(bench):
    slow_tokenizer(bench / "a")
    assert set(donor(bench).tokenizer_files) >= {"vocab.json", "merges.txt"}
    (bench / "a/merges.txt").write_text("a\n")
    assert "is not two tokens" in refusal(bench)
    (bench / "a/merges.txt").write_bytes(b"\xff\xfe")
    assert "not UTF-8 text at byte 0" in refusal(bench)
    (bench / "a/merges.txt").unlink()
    assert "there is no merges.txt beside it" in refusal(bench)


@pytest.mark.parametrize("slow", [True, False])
def test_different_merges_are_a_different_vocabulary(bench, slow):
    shutil.copytree("a", "b")
    layout = {"host": "a", "deep": "a", "shallow": "b"}
    recipe = write_recipe(bench / "x.yaml", donors={"a": "a", "b": "b"}, layout=layout)
    if slow:
        slow_tokenizer(bench / "a")
        slow_tokenizer(bench / "b", "#version: 0.2\na a\n")
    else:
        change_model(bench / "a/tokenizer.json", merges=[])
        change_model(bench / "b/tokenizer.json", merges=[["a", "b"]])
    assert "have different merge rules, from rule 0 on" in hybridize("check", recipe, code=2).stderr
    if slow:
        shutil.copyfile("a/merges.txt", "b/merges.txt")
        (bench / "b/added_tokens.json").write_text('{"a": 7}')
        assert "the token 'a' is number" in hybridize("check", recipe, code=2).stderr


def remove_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()


def test_a_host_without_a_tokenizer_is_refused_at_check_unless_it_is_allowed(bench):
    remove_tokenizer(bench / "a")
    recipe = write_recipe(bench / "x.yaml", donors={"a": "a"}, layout={"deep": "a", "shallow": "a"})
    stderr = hybridize("check", recipe, code=2).stderr
    assert "x.yaml:2: the host 'a' has no tokenizer" in stderr and "allow: [no_tokenizer]" in stderr
    allowed = {"a": {"source": "a", "allow": ["no_tokenizer"]}}
    recipe = write_recipe(bench / "x.yaml", donors=allowed, layout={"deep": "a", "shallow": "a"})
    assert any("has no tokenizer" in warning for warning in hybridize_json("plan", recipe)["warnings"])
    hybridize("build", recipe)
    card = (bench / "runs/x/model/README.md").read_text()
    assert "The host has no tokenizer" in card and "tokenizer and chat template" not in card


def test_a_donor_without_a_tokenizer_beside_a_host_with_one_is_a_warning(bench):
    shutil.copytree("a", "b")
    remove_tokenizer(bench / "b")
    layout = {"host": "a", "deep": "a", "shallow": "b"}
    recipe = write_recipe(bench / "x.yaml", donors={"a": "a", "b": "b"}, layout=layout)
    warnings = hybridize_json("plan", recipe)["warnings"]
    assert any("donor 'b' has no tokenizer" in warning for warning in warnings), warnings


def as_dtype(folder, name, dtype):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.uint8).to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool]
EIGHT_BIT_FLOATS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


@pytest.mark.parametrize("dtype", [*INTEGERS, *EIGHT_BIT_FLOATS], ids=str)
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_integer_and_8_bit_weights_are_refused(bench, dtype, name):
    as_dtype(bench / "a", name, dtype)
    found = refusal(bench)
    assert f"the tensor '{name}'" in found and "quantised weights" in found


def test_buffers_may_be_integers(bench):
    tensors = load_file("a/model.safetensors")
    tensors["model.position_ids"] = torch.arange(8)[None]
    tensors["model.layers.0.self_attn.causal_mask"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    save_file(tensors, "a/model.safetensors", metadata={"format": "pt"})
    try:
        donor(bench)
    except CheckpointError as error:  # llama has no such buffers; the claim is that they are not taken for weights
        assert "quantised" not in str(error)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "auto_map",
    [{"AutoTokenizer": ["evil.Slow", "evil.Fast"]}, {"AutoModel": "other/repo--evil.Model"}, ["evil.A", None]],
)
def test_remote_code_is_refused_in_every_config(bench, name, auto_map):
    edit(bench / "a" / name, auto_map=auto_map)
    assert f"its {name} requires running code that comes with the checkpoint (evil.py)" in refusal(bench)
    edit(bench / "a" / name, auto_map=None, text={"deep": [{"auto_map": auto_map}]})
    assert "requires running code" in refusal(bench)
    donor(bench, allow=("remote_code",)) if name == "tokenizer_config.json" else None


def test_no_load_prompts_for_permission_to_run_code(bench, monkeypatch):
    prompts = []
    monkeypatch.setattr("builtins.input", lambda prompt="": prompts.append(prompt) or "n")
    (bench / "a/evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    content = {**json.loads((bench / "a/config.json").read_text()), "model_type": "evil"}
    content["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    with pytest.raises(DonorError):
        random_causal_lm(content, torch.float32)
    (bench / "a/config.json").write_text(json.dumps(content))
    edit(bench / "a/tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}, tokenizer_class="T")
    with pytest.raises(DonorError):
        load_tokenizer(bench / "a")
    with pytest.raises((DonorError, VerificationError)):
        generate_text(bench / "a", None, "x", 1)
    assert prompts == [] and not (bench / "ran").exists()


def test_links_inside_the_folder_and_into_a_hub_cache_are_followed(bench):
    (bench / "a/LICENSE.real").write_text("free")
    (bench / "a/LICENSE").symlink_to("LICENSE.real")
    assert donor(bench).tokenizer_files["LICENSE"].read_text() == "free"
    snapshot = bench / "hf/models--o--n/snapshots/abc"
    snapshot.parent.mkdir(parents=True)
    (bench / "hf/models--o--n/blobs").mkdir()
    shutil.copytree("a", snapshot, symlinks=True)
    for path in list(snapshot.iterdir()):
        if not path.is_symlink():
            blob = bench / "hf/models--o--n/blobs" / path.name
            path.rename(blob)
            path.symlink_to(f"../../blobs/{path.name}")
    assert donor(bench, str(snapshot)).fingerprint == donor(bench).fingerprint
    (bench / "link").symlink_to("a")
    assert donor(bench, "./link").fingerprint == donor(bench).fingerprint


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE.txt", "README.md", "chat_template.jinja", "merges.txt"])
def test_links_out_of_the_folder_are_refused(bench, name):
    (bench / "secret").write_text("license: secret")
    (bench / "a" / name).symlink_to("../secret")
    assert f"{name}: is a link to {bench}/secret, outside the donor's folder" in refusal(bench)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "README.md", "stray"])
def test_a_pipe_in_the_folder_is_refused_and_never_opened(bench, name):
    (bench / "a" / name).unlink(missing_ok=True)
    os.mkfifo(bench / "a" / name)
    assert "not a regular file" in refusal(bench)


def test_a_pipe_in_place_of_a_gguf_file_is_refused(bench):
    os.mkfifo(bench / "x.gguf")
    assert "not a regular file" in refusal(bench, text="x.gguf")


def test_a_module_that_is_not_a_package_is_refused(bench):
    for text in ("pkg:__main__/x.gguf", "pkg:sys/x.gguf", "pkg:json.decoder/x.gguf"):
        assert text in refusal(bench, text=text)


def test_a_billion_layers_are_refused_in_little_memory(bench):
    import tracemalloc

    make_donor(bench / "n", "gpt_neo")
    tracemalloc.start()
    edit(bench / "a/config.json", num_hidden_layers=10**9)
    assert "1000000000 layers" in refusal(bench)
    edit(bench / "a/config.json", num_hidden_layers=4)
    tensors = load_file("a/model.safetensors")
    for place in ("999999999", "9" * 5000):
        tensors[f"model.layers.{place}.mlp.up_proj.weight"] = torch.ones(2, 2)
    save_file(tensors, "a/model.safetensors")
    refusal(bench)
    edit(bench / "n/config.json", attention_layers=None, attention_types=[[["global"], 10**8]])
    assert "100000000 layers, and the model has 4" in refusal(bench, text="n")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
