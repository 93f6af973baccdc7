"""Objectives in plans: the teacher by content, layers that correspond, refusals, and the cost."""

import json
import math
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hybridizer.train import run, teacher_pass
from support.lines import hybridize, hybridize_json, make_donor, write_documents, write_recipe

TRAIN = {
    "data": [{"path": "text.jsonl"}],
    "tokens": 2000,
    "seq_len": 64,
    "global_batch_size": 4,
    "precision": "float32",
}
LAYOUT = {"host": "a", "deep": "a", "shallow": "b", "boundary": 0.5}
NEW = {
    "host": "a",
    "slices": [{"donor": "a", "layers": 0}, {"fresh": "mamba2", "count": 2}, {"donor": "a", "layers": "1..3"}],
}
SLICES = {"host": "a", "slices": [{"donor": "a", "layers": "0..1"}, {"donor": "a", "layers": 3}]}
TIED = {"tie_word_embeddings": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Donors a and b of one kind; c has other tokens, d is narrower, e deeper; and a text."""
    folder = tmp_path_factory.mktemp("objective")
    for seed, (name, overrides) in enumerate(
        {"a": {}, "b": {}, "c": {}, "d": {"hidden_size": 32}, "e": {"num_hidden_layers": 6}}.items()
    ):
        make_donor(folder / name, seed=seed, **TIED, **overrides)
    path = folder / "c" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))
    write_documents(folder / "text.jsonl", 60)
    return folder


@pytest.fixture
def recipe(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)

    def write(objective, layout=LAYOUT, **train):
        donors = {"a": "a", "b": "b"}
        kept = {key: value for key, value in TRAIN.items() if key != "tokens" or "stages" not in train}
        content = {"donors": donors, "layout": layout, "train": {**kept, "objective": objective, **train}}
        return write_recipe(folder / f"{tmp_path.name}.yaml", **content)

    return write


def test_a_student_that_starts_as_its_teacher_is_noted(recipe):
    same = {"host": "a", "deep": "a", "shallow": "a", "boundary": 0.5}
    for layout, noted in ((same, True), (LAYOUT, False)):
        notes = plan_of(recipe({"distill": {"weight": 0.5}}, layout=layout))["train"]["notes"]
        assert any("starts as a copy of its teacher" in note for note in notes) == noted


def plan_of(path):
    return hybridize_json("plan", path, "--runs", str(path.with_suffix("")))


def settings_of(path):
    return plan_of(path)["train"]["settings"]


def test_the_teacher_is_in_the_plan_by_its_content_and_next_token_leaves_no_trace(recipe, folder):
    named, placed = (plan_of(recipe({"distill": {"teacher": name}})) for name in ("b", "./b"))
    pin = named["donors"]["b"]["fingerprint"]
    assert named["train"]["settings"]["objective"]["distill"]["teacher"] == pin
    assert named["hash"] == placed["hash"] != plan_of(recipe("distill"))["hash"]
    assert "objective" not in settings_of(recipe("next-token"))
    assert settings_of(recipe("distill"))["objective"]["distill"]["teacher"] == named["donors"]["a"]["fingerprint"]


@pytest.mark.parametrize(
    ("objective", "changes", "pairs"),
    [
        ("align", {}, [[1, 1]]),
        ({"align": {"at": "last", "teacher": "./e"}}, {}, [[3, 5]]),
        ({"align": {"at": [0, 1]}}, {"freeze": [2, 3]}, [[0, 0], [1, 1]]),
        # layer 2 of the donor is left out: what enters layer 3 of the donor is the output of its layer 2
        ({"align": {"at": [1]}}, {"layout": SLICES, "freeze": [2]}, [[1, 2]]),
        # below new layers, behind the last of them, and above
        ({"align": {"at": [0, 2, 3], "weight": 0.5}}, {"layout": NEW, "freeze": "none"}, [[0, 0], [2, 0], [3, 1]]),
    ],
)
def test_layers_are_paired_with_those_of_the_teacher(recipe, objective, changes, pairs):
    assert settings_of(recipe(objective, **changes))["objective"]["align"]["pairs"] == pairs


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        ({"distill": {"teacher": "./c"}}, {}, r"the teacher's tokens are not the student's: the token .* is number"),
        ({"distill": {"teacher": "./nothing"}}, {}, r"teacher './nothing': './nothing' is not there"),
        ({"distill": {"top_k": 10**6}}, {}, r"1000000 tokens to keep of each distribution; the vocabulary has \d+\."),
        ({"align": {"teacher": "./d"}}, {}, "states are 32 wide, the student's 64"),
        (
            {"align": {"teacher": "./e"}},
            {},
            "the output of layer 1 corresponds to no layer of the teacher, which has 6",
        ),
        (
            {"align": {"at": [1], "weight": 0.5}},
            {"layout": NEW, "freeze": "none"},
            "the output of layer 1 corresponds to no layer of the teacher, which has 4. The layer is new: give",
        ),
        ({"align": {"at": [1, 9]}}, {}, r"layers 9 of a model with 4 layers"),
        ({"align": {"at": [0]}}, {}, "layers 1 would train, and no gradient comes from behind layer 0"),
        ("align", {"freeze": "shallow"}, "nothing trains at or below layer 1"),
        ("align", {"freeze": "none"}, "final norm would train, and no gradient comes from behind layer 1"),
        ("align", {"layout": SLICES, "freeze": [2]}, "`at` is boundary, and a layout by `slices` has none"),
    ],
)
def test_what_cannot_be_taught_is_refused_by_the_plan(recipe, objective, changes, message):
    path = recipe(objective, **changes)
    found = " ".join(hybridize("plan", path, "--runs", str(path.with_suffix("")), code=2).output.split())
    assert re.search(message, found), found
    assert f"{path.name}:" in found


def test_the_cost_has_the_teacher_and_leaves_out_what_alignment_does_not_run(recipe):
    def cost_of(objective):
        path = recipe(objective)
        hybridize("plan", path, "--runs", str(path.with_suffix("")))
        return json.loads((path.with_suffix("") / path.stem / "cost.json").read_text())

    plain, distill, align = (cost_of(objective) for objective in ("next-token", "distill", "align"))
    assert plain["asked"]["token_flops"]["teacher"] == plain["asked"]["memory"]["teacher"] == 0
    forward = plain["asked"]["token_flops"]["forward"]
    assert distill["asked"]["token_flops"]["teacher"] == forward
    assert distill["asked"]["total_token_flops"] == plain["asked"]["total_token_flops"] + forward
    assert distill["asked"]["memory"]["teacher"] > 0
    assert distill["arms"] == align["arms"] == plain["arms"]
    half = align["asked"]["token_flops"]
    assert half["teacher"] == half["forward"] < forward / 2  # half of the layers, and no head
    assert align["asked"]["memory"]["activations"] < 0.6 * plain["asked"]["memory"]["activations"]
    assert "no layer from 2 on and no head is run" in " ".join(align["notes"])


@pytest.fixture
def teacher_bytes(recipe):
    """Bytes of the teacher in the planned memory, and the plan."""

    def plan(objective, **changes):
        path = recipe(objective, **changes)
        hybridize("plan", path, "--runs", str(path.with_suffix("")))
        cost = json.loads((path.with_suffix("") / path.stem / "cost.json").read_text())
        return cost["asked"]["memory"]["teacher"], plan_of(path)

    return plan


@pytest.mark.parametrize(("flags", "factor"), [({"avx2", "avx512_bf16"}, 2), ({"avx2"}, 1)])
def test_a_teacher_is_counted_in_the_dtype_of_matrix_products_where_that_is_smaller(
    teacher_bytes, monkeypatch, flags, factor
):
    monkeypatch.setattr("hybridizer.models.hardware.cpu_flags", lambda: frozenset(flags))
    of_b = {"distill": {"teacher": "b"}}
    assert teacher_bytes(of_b)[0] == factor * teacher_bytes(of_b, precision="bfloat16")[0]


def test_what_the_student_keeps_of_its_teacher_is_counted_once(teacher_bytes):
    whole, plan = teacher_bytes({"distill": {"teacher": "b"}})
    sizes = {tensor["name"]: 4 * math.prod(tensor["shape"]) for tensor in plan["tensors"]}
    assert whole == sum(sizes.values())
    shallow = sum(size for name, size in sizes.items() if ".layers.0." in name or ".layers.1." in name)
    assert teacher_bytes("distill")[0] == shallow  # the deep side, its embedding and its norm are the host's, frozen
    stages = [{"tokens": 1000, "freeze": freeze, "embedding": "freeze"} for freeze in ([0, 1, 2], "deep")]
    last = teacher_bytes("distill", stages=stages)[0]  # layer 3 has been trained before
    norm = sizes["model.norm.weight"]
    assert last == shallow + norm + sum(size for name, size in sizes.items() if ".layers.3." in name)


def test_a_teacher_that_runs_before_is_no_part_of_the_memory_and_its_tokens_are_on_disk(recipe):
    def planned(objective):
        path = recipe(objective)
        found = hybridize_json("plan", path, "--runs", str(path.with_suffix("")))
        return found, json.loads((path.with_suffix("") / path.stem / "cost.json").read_text())

    (beside, with_teacher), (kept, before) = (
        planned({"distill": {"teacher": "b"}}),
        planned({"distill": {"teacher": "b", "top_k": 8}}),
    )
    assert before["asked"]["memory"]["teacher"] == 0 < with_teacher["asked"]["memory"]["teacher"]
    assert before["asked"]["peak_bytes"] < with_teacher["asked"]["peak_bytes"]
    assert before["asked"]["token_flops"] == with_teacher["asked"]["token_flops"]
    assert kept["amounts"]["disk_bytes"] - beside["amounts"]["disk_bytes"] == 2000 * (8 * 4 + 9 * 2)
    assert "the teacher runs alone before the training" in " ".join(before["notes"])


@pytest.mark.slow
def test_a_build_from_a_teachers_tokens_records_what_they_leave_out_and_is_the_same_again(recipe, monkeypatch):
    path = recipe({"distill": {"top_k": 8, "weight": 0.5}}, max_steps=2)
    runs = path.with_suffix("")
    shown = hybridize("build", path, "--runs", str(runs)).output
    record = json.loads((runs / path.stem / "training" / "training.json").read_text())["truncation"]
    assert record["top_k"] == 8 and 0 < record["mass_outside"] < 1
    assert record["first_kept_divergence"] < record["first_divergence"]
    assert f"{record['mass_outside']:.2%} of the probability outside" in " ".join(shown.split())
    trained = load_file(runs / path.stem / "training" / "trained.safetensors")
    monkeypatch.setattr(teacher_pass, "load_teacher", None)  # the cache has all
    hybridize("build", path, "--runs", str(runs / "again"))
    again = load_file(runs / "again" / path.stem / "training" / "trained.safetensors")
    assert all(torch.equal(trained[name], again[name]) for name in trained)


@pytest.mark.slow
def test_a_build_holds_the_frozen_tensors_of_its_teacher_once_and_proves_them(recipe, monkeypatch):
    jobs = []
    real = run.run_job
    monkeypatch.setattr(run, "run_job", lambda job, *rest: jobs.append(job) or real(job, *rest))
    path = recipe("distill", max_steps=2)
    hybridize("build", path, "--runs", str(path.with_suffix("")))
    (job,) = jobs
    ours, theirs = (dict(model.named_parameters()) for model in (job.model, job.teacher.model))
    shared = {name for name, parameter in theirs.items() if parameter.data_ptr() == ours[name].data_ptr()}
    assert shared == set(job.freeze_plan.frozen)
    assert "agree" in hybridize("verify", path.with_suffix("") / path.stem / "model").stdout


@pytest.mark.slow
def test_a_teacher_shares_nothing_with_a_frozen_side_in_fewer_bits(recipe, monkeypatch):
    jobs = []
    real = run.run_job
    monkeypatch.setattr(run, "run_job", lambda job, *rest: jobs.append(job) or real(job, *rest))
    teachers = []
    for kind in ("keep", "int8"):
        path = recipe("distill", max_steps=2, frozen_dtype=kind)
        hybridize("plan", path, "--runs", str(path.with_suffix("")))
        cost = json.loads((path.with_suffix("") / path.stem / "cost.json").read_text())
        teachers.append(cost["asked"]["memory"]["teacher"])
    assert teachers[0] < teachers[1]
    hybridize("build", path, "--runs", str(path.with_suffix("")))
    (job,) = jobs
    ours = {id(parameter) for parameter in job.model.parameters()}
    assert not ours & {id(parameter) for parameter in job.teacher.model.parameters()}
    assert "agree" in hybridize("verify", path.with_suffix("") / path.stem / "model").stdout


@pytest.mark.slow
def test_a_build_with_a_teacher_trains_resumes_its_plan_and_refuses_another_teacher(recipe, folder):
    make_donor(folder / "t", seed=9, **TIED)
    path = recipe({"distill": {"teacher": "./t", "weight": 0.5}}, max_steps=3)
    runs = path.with_suffix("")
    assert ", of the objective distill; rows filled" in hybridize("build", path, "--runs", str(runs)).stdout
    folder_of_run = runs / path.stem
    assert "at the end, of the objective distill. Tokens" in (folder_of_run / "model" / "README.md").read_text()
    assert "loss of the objective" in (folder_of_run / "training.svg").read_text()
    lines = [json.loads(line) for line in (folder_of_run / "training" / "log.jsonl").read_text().splitlines()]
    assert all(line["loss_divergence"] > 0 and line["loss_next_token"] > 0 for line in lines)
    resolved = yaml.safe_load((folder_of_run / "recipe.resolved.yaml").read_text())
    assert resolved["train"]["objective"]["distill"]["teacher"] == f"folder:{folder / 't'}"
    hybridize("build", folder_of_run / "plan.json")
    file = folder / "t" / "model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    found = hybridize("build", folder_of_run / "plan.json", code=2).output
    assert "the content of the teacher changed after planning" in " ".join(found.split())
