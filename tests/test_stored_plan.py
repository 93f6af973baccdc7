"""`hybridize build plan.json` builds a stored plan unchanged, or says why it cannot."""

import json
import shutil
from pathlib import Path

import pytest

from hybridizer.core.errors import CheckpointError
from hybridizer.core.records import content_hash
from hybridizer.pipeline.run import RunFolder
from hybridizer.plan.stored import is_stored_plan, read_stored_plan
from hybridizer.recipe.models import Trace
from hybridizer.trace.probes import read_probes
from support.lines import hybridize, hybridize_json, make_donor, make_donors, write_documents, write_recipe

TRAIN = {"data": [{"path": "text.jsonl"}], "tokens": 2000, "seq_len": 64, "lr": 1e-3, "heldout_ratio": 0.2}
BLEND = {
    "method": "slerp",
    "base": "a",
    "parameters": {"t": 0.5},
    "sources": [{"donor": "a", "layers": "1..2"}, {"donor": "b", "layers": "2..3"}],
}
PROBES = [{"prompt": f"the opposite of {word} is ", "target": "abcd"[i % 4]} for i, word in enumerate(
    ["hot", "cold", "up", "down", "left", "right", "in", "out", "day", "night"])]  # fmt: skip
SLICES = [{"donor": "b", "layers": "0"}, {"blend": BLEND}, {"donor": "a", "layers": [3, 3]}]


@pytest.fixture
def bench(bench):
    """Two tiny llamas, `a` and `b`, of four layers each, a recipe x.yaml, an own cache, and the working folder."""
    make_donors(bench)
    write(bench, {"host": "a", "slices": SLICES}, output={"dtype": "bfloat16"})
    return bench


def write(bench, layout, **sections):
    return write_recipe(bench / "x.yaml", **{"donors": {"a": "a", "b": "b"}, "layout": layout, **sections})


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stored_plan_gives_the_bytes_that_its_recipe_gives(bench):
    hybridize("build", "x.yaml", "--no-load")
    built = bytes_of(bench / "runs/x")
    hybridize("build", "runs/x/plan.json", "--runs", "again", "--no-load")
    assert bytes_of(bench / "again/x") == built
    assert len(built) > 8


def test_the_plan_that_is_shown_is_what_the_next_command_builds(bench, monkeypatch):
    shown = hybridize("plan", "x.yaml", "--set", "layout.host=b").stdout
    assert shown.rstrip().endswith("wrote runs/x/plan.json\nnext: hybridize build runs/x/plan.json")
    write(bench, {"host": "a", "slices": [{"donor": "a"}]})  # what the recipe says now does not matter
    plan = json.loads((bench / "runs/x/plan.json").read_text())
    (bench / "elsewhere").mkdir()
    monkeypatch.chdir(bench / "elsewhere")
    built = hybridize_json("build", "../runs/x/plan.json", "--no-load")
    assert built["plan_hash"] == plan["hash"] and Path(built["folder"]).samefile(bench / "runs/x")
    assert hybridize_json("inspect", "../runs/x")["host"] == "b"
    assert not list((bench / "elsewhere").iterdir())
    assert "model: unchanged" in hybridize("build", "../runs/x/plan.json", "--no-load").stderr


def test_a_plan_that_was_taken_out_of_its_run_makes_a_run_of_its_own(bench):
    hybridize("plan", "x.yaml")
    shutil.move(bench / "runs/x/plan.json", bench / "saved.json")
    shutil.rmtree(bench / "runs")
    hybridize("build", "saved.json", "--no-load")
    assert RunFolder(bench / "runs/x").model.is_dir()
    assert (bench / "saved.json").read_bytes() == RunFolder(bench / "runs/x").plan.read_bytes()


@pytest.mark.slow
def test_what_the_plan_chose_by_a_trace_is_neither_traced_nor_chosen_again(bench, monkeypatch):
    (bench / "probes.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in PROBES))
    write_documents(bench / "text.jsonl", 200)
    layout = {"host": "a", "deep": "auto", "shallow": "b", "boundary": "auto"}
    donors = {name: {"source": name, "allow": ["incompetent"]} for name in "ab"}  # random ones
    write(bench, layout, trace={"probes": "probes.jsonl"}, train=TRAIN, name="t", donors=donors)
    hybridize("plan", "x.yaml")
    planned = json.loads((bench / "runs/t/plan.json").read_text())
    assert planned["evidence"]["reasons"] and planned["evidence"]["ranking"]
    monkeypatch.setattr("hybridizer.pipeline.plan.WAYS", None)
    (bench / "elsewhere").mkdir()
    monkeypatch.chdir(bench / "elsewhere")
    built = hybridize_json("build", "../runs/t/plan.json")
    assert built["plan_hash"] == planned["hash"]
    run = RunFolder(bench / "runs/t")
    assert json.loads(run.plan.read_text()) == planned
    assert run.scores.is_file() and run.profile.is_file() and built["scores"]["sets"]


def test_a_trace_that_only_the_boundary_asked_for_is_asked_for_again_after_training(bench, monkeypatch):
    (bench / "probes.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in PROBES))
    monkeypatch.setattr("hybridizer.trace.runs.load_probes", lambda _: read_probes(bench / "probes.jsonl"))
    write_documents(bench / "text.jsonl", 200)
    write(bench, {"host": "a", "deep": "a", "shallow": "a", "boundary": "knee"}, train=TRAIN)
    hybridize("plan", "x.yaml")
    assert read_stored_plan(bench / "runs/x/plan.json").recipe.trace == Trace()
    assert "\ntrace:" not in (bench / "runs/x/recipe.resolved.yaml").read_text()


@pytest.mark.slow
def test_a_trained_model_comes_out_of_the_stored_plan_with_the_same_weights(bench):
    write_documents(bench / "text.jsonl", 200)
    write(bench, {"host": "a", "deep": "a", "shallow": "b", "boundary": 2}, train=TRAIN)
    hybridize("build", "x.yaml", "--no-load")
    hybridize("build", "runs/x/plan.json", "--runs", "again", "--no-load")
    first, again = (RunFolder(bench / runs / "x") for runs in ("runs", "again"))
    name = "model.safetensors"
    assert (first.model / name).read_bytes() == (again.model / name).read_bytes()
    assert (first.model / name).read_bytes() != (first.spliced / name).read_bytes()
    assert first.plan.read_bytes() == again.plan.read_bytes()


def test_a_text_that_changed_after_planning_is_refused_before_training(bench):
    write_documents(bench / "text.jsonl", 200)
    write(bench, {"host": "a", "deep": "a", "shallow": "b", "boundary": 2}, train=TRAIN)
    hybridize("plan", "x.yaml")
    with (bench / "text.jsonl").open("a") as file:
        file.write('\n{"text": "one more"}')
    assert "its content changed after planning" in hybridize("build", "runs/x/plan.json", code=2).stderr


def test_a_donor_that_changed_after_planning_is_refused(bench):
    hybridize("plan", "x.yaml")
    make_donor(bench / "b", seed=3)
    stderr = hybridize("build", "runs/x/plan.json", code=2).stderr
    assert stderr.startswith("runs/x/plan.json: the content of donor 'b' changed after planning: planned with sha256:")
    assert "Restore the donor, or plan again from the recipe." in stderr
    assert not (bench / "runs/x/model").exists()


def test_a_donor_that_moved_is_named(bench):
    hybridize("plan", "x.yaml")
    (bench / "b").rename(bench / "moved")
    stderr = hybridize("build", "runs/x/plan.json", code=2).stderr
    assert stderr.startswith(f"runs/x/plan.json: 'folder:{bench}/b' is not there") and "moved" in stderr


def test_tokenizer_files_that_another_version_wrote_are_refused(bench, monkeypatch):
    def list_weights(checkpoint, tokenizer_files):  # as for a GGUF file, whose dequantiser writes a tokenizer
        return {file.name: file for file in checkpoint.files}

    monkeypatch.setattr("hybridizer.donors.open._list_pinned", list_weights)
    hybridize("plan", "x.yaml")
    (bench / "a/tokenizer_config.json").write_text("{}")
    stderr = hybridize("build", "runs/x/plan.json", code=2).stderr
    assert "the tokenizer files of host 'a' are not those that were planned" in stderr


def set_in(*path, value):
    """A change that sets `value` at `path` of a stored plan, without touching a hash."""

    def change(plan):
        inner = plan
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


CHANGES = {
    "a name": (set_in("name", value="other"), "The file was edited or damaged"),
    "a layer's row": (set_in("layers", 0, "kind", value="mamba"), "The file was edited or damaged"),
    "a tensor": (set_in("tensors", 0, "source", "tensor", value="other"), "its content hashes to sha256:"),
    "the recipe": (set_in("recipe", "seed", value=9), "The file was edited or damaged"),
    "no recipe": (set_in("recipe", value=None), "The file was edited or damaged"),
    "a tensor without a source": (set_in("tensors", 0, "source", value={}), "`tensors.0.source"),
    "a key": (set_in("colour", value="red"), "`colour` is missing, or is not a field of this record"),
    "an old schema": (
        set_in("schema", value="hybridizer.plan/1"),
        "its schema is 'hybridizer.plan/1', and this version reads 'hybridizer.plan/2'.\n  Plan again",
    ),
    "another record": (set_in("schema", value="hybridizer.donors/1"), "its schema is 'hybridizer.donors/1'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_plan_that_was_edited_is_refused(bench, name):
    hybridize("plan", "x.yaml")
    path = bench / "runs/x/plan.json"
    plan = json.loads(path.read_text())
    change, says = CHANGES[name]
    change(plan)
    path.write_text(json.dumps(plan))
    stderr = hybridize("build", "runs/x/plan.json", code=2).stderr
    assert stderr.startswith("runs/x/plan.json: ") and says in stderr
    assert not (bench / "runs/x/model").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"schema": "hybridizer.plan/2", "hash"', b"\xff"])
def test_a_plan_that_was_cut_short_is_not_taken_for_a_recipe(bench, content):
    hybridize("plan", "x.yaml")
    path = bench / "runs/x/plan.json"
    path.write_bytes(content)
    stderr = hybridize("build", "runs/x/plan.json", code=2).stderr
    assert stderr.startswith("runs/x/plan.json:") and "donors" not in stderr and "recipe" not in stderr
    with pytest.raises(CheckpointError):
        read_stored_plan(path)


def test_a_recipe_written_as_json_is_a_recipe(bench):
    recipe = {"donors": {"a": "a"}, "layout": {"deep": "a", "shallow": "a"}}
    (bench / "y.json").write_text(json.dumps(recipe))
    assert not is_stored_plan(bench / "y.json") and not is_stored_plan(bench / "none.json")
    hybridize("build", "y.json", "--no-load")


def test_where_a_recipe_is_asked_for_a_stored_plan_says_what_it_is(bench):
    hybridize("plan", "x.yaml")
    for verb in ("plan", "check"):
        stderr = hybridize(verb, "runs/x/plan.json", code=2).stderr
        assert "a stored plan, where a recipe was expected" in stderr
        assert "hybridize build runs/x/plan.json" in stderr
    stderr = hybridize("build", "runs/x/plan.json", "--set", "seed=3", code=2).stderr
    assert "a stored plan is built as it is; --set seed=3 would change it" in stderr


def test_an_executor_that_is_not_there_is_named(bench):
    hybridize("plan", "x.yaml")
    path = bench / "runs/x/plan.json"
    value = json.loads(path.read_text())
    value["executor"] = "cop"
    value.pop("file_hash")
    stored = {key: item for key, item in value.items() if key not in ("hash", "schema", "recipe")}
    value["hash"] = _plan_hash(stored)
    path.write_text(json.dumps({**value, "file_hash": content_hash(value)}))
    stderr = hybridize("build", "runs/x/plan.json", code=2).stderr
    assert "plan 'x': no executor 'cop', which this plan names." in stderr and "Did you mean 'copy'?" in stderr


def _plan_hash(value):
    from hybridizer.core.records import read_record
    from hybridizer.plan.plan import SCHEMA, Plan

    evidence = {"swap": None, **value["evidence"]}
    return read_record({"schema": SCHEMA, **value, "evidence": evidence}, Plan, SCHEMA, "x", "x").hash


def test_missing_packages_are_found_before_anything_is_built(bench, monkeypatch):
    write_documents(bench / "text.jsonl", 200)
    write(bench, {"host": "a", "deep": "a", "shallow": "b", "boundary": 2}, train={**TRAIN, "lora": {"rank": 2}})
    hybridize("plan", "x.yaml")
    monkeypatch.setattr("hybridizer.plan.training.find_spec", lambda name: None)
    stderr = hybridize("build", "runs/x/plan.json", code=2).stderr
    assert "needs the package peft" in stderr and not (bench / "runs/x/spliced").exists()
