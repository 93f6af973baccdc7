"""Where a model came from is compared with plan, weights and donors, and no edit of a manifest ends in a traceback."""

import copy
import json
import random
import shutil

import pytest
from safetensors.torch import load_file, save_file

from support.lines import hybridize, hybridize_json, make_donors, working_in, write_recipe

HASH = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A run with a model of two donors."""
    folder = tmp_path_factory.mktemp("built")
    with working_in(folder):
        make_donors(folder)
        layout = {"host": "a", "deep": "a", "shallow": "b", "boundary": 0.5}
        write_recipe(folder / "x.yaml", donors={"a": "a", "b": "b"}, layout=layout)
        hybridize("build", "x.yaml", "--no-load")
    return folder


@pytest.fixture
def bench(built, bench):
    """A copy of it that a test may damage; its resolved recipe still names the donors of the original by path."""
    shutil.copytree(built / "runs", bench / "runs")
    shutil.copy(built / "x.yaml", bench)
    return bench


def edit_manifest(bench, change):
    path = bench / "runs/x/model/manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def set_at(*path):
    def change(value):
        for key in path[:-2]:
            value = value[key]
        value[path[-2]] = path[-1]

    return change


def swap_origins(value):
    one, two = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
    tensors = value["tensors"]
    tensors[one]["origins"], tensors[two]["origins"] = tensors[two]["origins"], tensors[one]["origins"]


def proofs(*arguments):
    return {proof["check"]: proof["found"] for proof in hybridize_json("verify", *arguments, "--no-load")["proofs"]}


def test_what_agrees_is_proved(bench):
    found = proofs("runs/x")
    assert found["plan"].startswith("manifest and plan.json agree: sha256:")
    assert found["origins"] == "39 copied tensors equal their donors' byte for byte"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_at("plan_hash", HASH), f"`plan_hash` is {HASH}, and model.safetensors was written by plan sha256:"),
        (set_at("donors", "b", "fingerprint", HASH), f"`donors.b.fingerprint` is '{HASH}', and 'sha256:"),
        (set_at("donors", "b", "num_layers", 5), "`donors.b.num_layers` is 5, and 4 in the plan."),
        (set_at("host", "b"), "`host` is 'b', and 'a' in the plan."),
        (set_at("identity_of", "a"), "`identity_of` is 'a', and None in the plan."),
        (set_at("layers", 1, "sources", ["b@04335804 3"]), "`layers.1.sources` is ['b@04335804 3'], and ['b@"),
        (swap_origins, "`tensors.model.layers.0.mlp.up_proj.weight.origins` is"),
        (
            set_at("tensors", "model.norm.weight", "kind", "convert"),
            "`tensors.model.norm.weight.kind` is 'convert', and 'copy' in the plan.",
        ),
    ],
)
def test_each_falsification_is_named(bench, change, says):
    edit_manifest(bench, change)
    assert says in hybridize("verify", "runs/x", "--no-load", code=1).stderr


def test_falsified_origins_are_found_by_the_donors_alone(bench):
    edit_manifest(bench, swap_origins)
    (bench / "runs/x/plan.json").unlink()
    stderr = hybridize("verify", "runs/x", "--no-load", code=1).stderr
    assert "tensor 'model.layers.0.mlp.up_proj.weight' does not hold the bytes of 'b:model.layers.1.mlp" in stderr


def test_what_could_not_be_compared_is_named(bench):
    moved = bench / "moved"
    shutil.move(bench / "runs/x/model", moved)
    found = proofs(moved)
    assert found["plan"] == "not compared: there is no plan.json beside the model's folder"
    assert found["origins"] == "39 not compared: donor 'a' is not on this machine, donor 'b' is not on this machine"


def test_a_plan_of_another_recipe_under_the_same_name_is_not_compared(bench, built):
    recipe = write_recipe(bench / "x.yaml", donors={"c": str(built / "a")}, layout={"deep": "c", "shallow": "c"})
    hybridize("plan", recipe)
    found = proofs("runs/x")
    assert found["plan"].startswith("not compared: plan.json is of another plan (sha256:")
    assert found["origins"] == "39 not compared: donor 'a' is not on this machine, donor 'b' is not on this machine"


def test_a_plan_that_was_edited_is_an_error(bench):
    path = bench / "runs/x/plan.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert "plan.json: its content hashes to" in hybridize("verify", "runs/x", "--no-load", code=1).stderr


def test_a_donor_that_changed_since_is_not_compared(bench, built, monkeypatch):
    changed = shutil.copytree(built / "a", bench / "a")
    monkeypatch.chdir(bench)
    tensors = load_file(changed / "model.safetensors")
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"] + 1}, changed / "model.safetensors")
    text = (bench / "runs/x/recipe.resolved.yaml").read_text()
    (bench / "runs/x/recipe.resolved.yaml").write_text(text.replace(str(built / "a"), str(changed)))
    (bench / "runs/x/plan.json").unlink()
    found = proofs("runs/x")["origins"]
    assert found.startswith("18 copied tensors equal their donors' byte for byte; 21 not compared: ")
    assert f"donor 'a' at folder:{changed} is not the one of the manifest (sha256:" in found


VALUES = (None, "", -1, [], {}, "x", 10**30, 1.5, True, [None], {"a": None}, "../../x", "\ud800", float("nan"))


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def edited(value, path, new):
    """A copy of a JSON value with another one at `path`, or, where `new` is ..., without that place."""
    if not path:
        return None if new is ... else new
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


@pytest.mark.slow
def test_no_edit_of_a_manifest_ends_in_a_traceback(bench):
    # 5,836 edits of the manifest of a trained model were tried by hand, all places and values: none did.
    path = bench / "runs/x/model/manifest.json"
    original = json.loads(path.read_text())
    training = {"plan_hash": original["plan_hash"], "trained": [], "frozen_sha256": {}, "sources": [{"name": "x"}]}
    dice = random.Random(0)
    everywhere = list(places({**original, "training": training}))
    for _ in range(250):
        base = {**original, "training": training} if dice.random() < 0.3 else original
        place = dice.choice([place for place in everywhere if place[:1] != ("training",) or base is not original])
        path.write_text(json.dumps(edited(base, place, dice.choice((..., *VALUES)))))
        for command in (["verify", "runs/x", "--no-load"], ["inspect", "runs/x", "--tensors"]):
            try:
                hybridize(*command, code=1)
            except AssertionError as error:
                assert str(error).startswith("exit 0:"), (place, str(error))


@pytest.mark.parametrize(
    "text",
    ["{" * 100_000, '{"schema": ' + "9" * 5000 + "}", '{"a": 1, "a": 2}', "\x00", '{"a":' * 900 + "1" + "}" * 900],
)
def test_a_manifest_that_is_no_honest_json_is_an_error(bench, text):
    (bench / "runs/x/model/manifest.json").write_text(text)
    hybridize("verify", "runs/x", "--no-load", code=1)


def test_card_and_manifest_name_a_donor_given_by_an_absolute_path_and_verify_still_finds_it(
    built, tmp_path, monkeypatch
):
    monkeypatch.setenv("HYBRIDIZER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    donors = {"a": str(built / "a"), "b": f"folder:{built / 'b'}/"}
    write_recipe(tmp_path / "x.yaml", donors=donors, layout={"host": "a", "slices": [{"donor": "b"}]})
    hybridize("build", "x.yaml", "--no-load")
    for path in (tmp_path / "runs/x/model").iterdir():
        assert str(built).encode() not in path.read_bytes(), path
    manifest = hybridize_json("inspect", "runs/x")
    assert {name: pin["reference"] for name, pin in manifest["donors"].items()} == {"a": "a", "b": "b"}
    assert (
        f"| `b` | `b` | `{manifest['donors']['b']['fingerprint']}` |"
        in (tmp_path / "runs/x/model/README.md").read_text()
    )
    proofs = {proof["check"]: proof["found"] for proof in hybridize_json("verify", "runs/x", "--no-load")["proofs"]}
    assert "copied tensors equal their donors' byte for byte" in proofs["origins"] and "agree" in proofs["plan"]
