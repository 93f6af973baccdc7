"""Trainings of several stages: the same bytes as by hand, killed anywhere or not, and proofs for every stage."""

import json
import shutil
import weakref
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridizer.core.progress import SilentMonitor
from hybridizer.data.batches import TrainingData
from hybridizer.data.tokenizer import TokenizerEncoder
from hybridizer.models.load import load_causal_lm
from hybridizer.models.parts import find_parts
from hybridizer.pipeline import build as build_module
from hybridizer.recipe.load import load_recipe
from hybridizer.train import job as job_module
from hybridizer.train import loop, stages, timing
from hybridizer.train.freeze import plan_freeze
from hybridizer.train.job import Earlier, RunContext, TrainJob
from hybridizer.train.loop import train
from hybridizer.train.run import open_texts, put_masters_
from hybridizer.train.runtime import Runtime
from support.lines import hybridize, make_donors, working_in, write_documents, write_recipe
from support.sections import train_section
from support.train_models import plain_model
from support.train_runs import FIGURES, SETTINGS, data_in

pytestmark = pytest.mark.slow  # each builds models
DIAL = {"host": "a", "deep": "a", "shallow": "b", "boundary": 0.5}
TERMS = {"loss_alignment", "loss_divergence", "loss_next_token"}
STAGES = [
    {"tokens": 500, "freeze": "deep", "name": "shallow side"},
    {"tokens": 500, "freeze": "shallow", "lr": 5e-4, "embedding": "freeze", "schedule": "constant"},
    {"tokens": 300, "freeze": [1, 2], "embedding": "freeze", "global_batch_size": 2},
]
TRAIN = {
    "data": [{"path": "text.jsonl"}], "seq_len": 64, "lr": 1e-3, "heldout_ratio": 0.2, "precision": "float32",
    "checkpoint_minutes": 0, "global_batch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Two tiny float32 llamas of four layers, a text and a cache."""
    folder = tmp_path_factory.mktemp("stages")
    make_donors(folder)
    write_documents(folder / "text.jsonl", 100)
    return folder


@pytest.fixture
def bench(workshop, monkeypatch, tmp_path):
    """The workshop as working folder, a folder for runs, and builds without what takes time and decides no byte."""
    monkeypatch.setattr(timing, "measure_peak", lambda *_: 1e9)
    monkeypatch.setattr(build_module, "_draw_loss_curve", lambda _: None)
    monkeypatch.setenv("HYBRIDIZER_CACHE", str(workshop / "cache"))
    monkeypatch.chdir(workshop)
    return tmp_path


def build(bench, *options, code=0, **changes):
    """Build a recipe with STAGES, or what `changes` give in their place, into bench/runs."""
    keys = {**TRAIN, "stages": STAGES, **changes}
    recipe = write_recipe(Path("x.yaml"), donors={"a": "a", "b": "b"}, layout=DIAL, train=keys)
    return hybridize("build", recipe, "--runs", bench / "runs", "--no-load", *options, code=code)


def tensors(bench):
    return load_file(bench / "runs/x/model/model.safetensors")


def record(bench):
    return json.loads((bench / "runs/x/training/training.json").read_text())


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def straight(workshop, tmp_path_factory):
    """The run of STAGES that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    with working_in(workshop):
        build(folder)
    return folder


def by_hand(folder, spliced, sections):
    """The tensors of one model in memory, trained by `sections` one after the other."""
    model, tokenizer = load_causal_lm(spliced)
    parts, steps = find_parts(model), 0
    for index, section in enumerate(sections):
        sources = open_texts(section.data, Path(), TokenizerEncoder(tokenizer), SilentMonitor())
        data = TrainingData(sources, section, 0, tokenizer.pad_token_id or 0, sections[:index])
        plan = plan_freeze(model, parts, section, boundary=2)
        job = TrainJob(model, parts, plan, data, section, "by hand", earlier=Earlier(steps))
        train(job, RunContext(folder / str(index), Runtime(cpu=True), SilentMonitor(), FIGURES))
        steps += data.num_steps
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_stages_give_the_bytes_of_trainings_run_one_after_the_other(straight, bench):
    sections = load_recipe(Path("x.yaml")).train.as_stages()
    assert equal(tensors(straight), by_hand(bench, straight / "runs/x/spliced", sections))


def test_the_record_and_the_log_have_every_stage_and_their_sums(straight):
    whole = record(straight)
    assert [stage["name"] for stage in whole["stages"]] == ["shallow side", "stage 2", "stage 3"]
    for key in ("steps", "tokens"):
        assert whole[key] == sum(stage[key] for stage in whole["stages"])
    lines = [json.loads(line) for line in (straight / "runs/x/training/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(whole["steps"]))
    assert lines[-1]["tokens"] == whole["tokens"]
    counts = [[line["stage"] for line in lines].count(number) for number in (1, 2, 3)]
    assert counts == [stage["steps"] for stage in whole["stages"]]
    assert "stage 2" in (straight / "runs/x/training.svg").read_text()


def test_the_manifest_has_the_stages_and_verifies_with_the_plan(straight):
    manifest = json.loads((straight / "runs/x/model/manifest.json").read_text())
    assert len(manifest["training"]["stages"]) == 3
    assert "manifest and plan.json agree" in hybridize("verify", straight / "runs/x/model", "--no-load").stdout


def test_a_run_without_stages_writes_what_it_wrote_before(bench):
    recipe = write_recipe(Path("plain.yaml"), donors={"a": "a", "b": "b"}, layout=DIAL, train={**TRAIN, "tokens": 500})
    hybridize("build", recipe, "--runs", bench / "runs", "--no-load")
    for name in ("plan.json", "training/training.json", "model/manifest.json", "recipe.resolved.yaml"):
        assert '"stages"' not in (bench / "runs/plain" / name).read_text(), name


def test_a_list_of_one_stage_gives_the_bytes_of_the_recipe_without(bench):
    build(bench, stages=[STAGES[0]])
    keys = {**TRAIN, **{key: value for key, value in STAGES[0].items() if key != "name"}}
    recipe = write_recipe(Path("plain.yaml"), donors={"a": "a", "b": "b"}, layout=DIAL, train=keys)
    hybridize("build", recipe, "--runs", bench / "runs", "--no-load")
    assert equal(tensors(bench), load_file(bench / "runs/plain/model/model.safetensors"))


class Killed(BaseException):
    """What a test raises where a process could die."""


def kill_at(monkeypatch, module, name, number):
    """Let the call `number`, from 1, of a function raise before it does anything."""
    real, calls = getattr(module, name), []

    def call(*arguments, **options):
        calls.append(name)
        if len(calls) == number:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, call)


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [
        (loop, "write_checkpoint", 2),  # in the first stage
        (loop, "write_tensors", 2),  # the last step of the second taken, its masters not written
        (stages, "write_json", 1),  # its masters written, its record not
        (stages, "make_job", 2),  # between two stages
        (loop, "write_tensors", 3),  # at the end of the last stage
        (stages._Stages, "_store_tensors", 1),  # all stages finished, no result
        (build_module, "write_model", 2),  # before the export
    ],
)
def test_a_run_that_dies_anywhere_ends_with_the_same_bytes(straight, bench, module, name, number):
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, module, name, number)
        with pytest.raises(Killed):
            recipe = load_recipe(Path("x.yaml"))
            build_module.build(recipe.path, (), bench / "runs", SilentMonitor(), replace=False, deep=False, load=False)
    build(bench)
    assert equal(tensors(bench), tensors(straight))
    kept = ("steps", "tokens", "first_loss", "last_loss", "trained", "frozen_sha256")
    assert {key: record(bench)[key] for key in kept} == {key: record(straight)[key] for key in kept}


def test_layers_are_freed_one_after_the_other_and_what_never_trains_is_the_donors(bench):
    freeze = [[0, 1, 2], [0, 1], [0]]
    fixed = {"embedding": "freeze"}
    build(bench, stages=[{"tokens": 500, "freeze": layers, **fixed} for layers in freeze])
    whole, before, after = record(bench), load_file(bench / "runs/x/spliced/model.safetensors"), tensors(bench)
    assert [stage["frozen_layers"] for stage in whole["stages"]] == freeze
    never = {name for name in before if ".layers.0." in name or "embed" in name}
    assert set(whole["frozen_sha256"]) == never and set(whole["trained"]) == set(before) - never
    assert all(torch.equal(after[name], before[name]) == (name in never) for name in before)
    for number, stage in enumerate(whole["stages"], start=1):
        masters = load_file(bench / f"runs/x/training/stage-{number}/masters.safetensors")
        assert sorted(masters) == sorted(stage["trained"])
        assert set(stage["frozen_sha256"]) == set(before) - set(masters)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_layers_in_few_bits_train_in_a_later_stage_from_the_donors_bytes(bench, kind):
    freeze, section = [[0, 1, 2], [0]], {"embedding": "freeze", "frozen_dtype": kind}
    build(bench, stages=[{"tokens": 500, "freeze": layers, **section} for layers in freeze])
    before, after = load_file(bench / "runs/x/spliced/model.safetensors"), tensors(bench)
    never = {name for name in before if ".layers.0." in name or "embed" in name}
    assert all(torch.equal(after[name], before[name]) == (name in never) for name in before)
    name = "model.layers.2.mlp.up_proj.weight"
    assert float((after[name] - before[name]).abs().max()) < 0.03  # not a rounded weight: steps of 1e-3


def test_a_changed_later_stage_keeps_the_finished_earlier_ones(straight, bench):
    shutil.copytree(straight / "runs", bench / "runs")
    kept = (bench / "runs/x/training/stage-1/training.json").stat().st_mtime_ns
    changed = [*STAGES[:2], {**STAGES[2], "lr": 1e-4}]
    assert "another plan" in build(bench, stages=changed, code=1).stderr
    found = build(bench, "--replace", stages=changed).stderr
    assert "stage 2 of 3: unchanged" in found and "stage 3 of 3: its settings have changed" in found
    assert (bench / "runs/x/training/stage-1/training.json").stat().st_mtime_ns == kept
    assert not equal(tensors(bench), tensors(straight))
    build(bench, "--replace")
    assert equal(tensors(bench), tensors(straight))


def test_a_finished_stage_of_other_settings_is_not_lost_without_a_word(straight, bench):
    shutil.copytree(straight / "runs", bench / "runs")
    shutil.rmtree(bench / "runs/x/model")
    changed = [{**STAGES[0], "lr": 1e-4}, *STAGES[1:]]
    error = build(bench, stages=changed, code=2).stderr
    assert "stage 1 of 3 (shallow side) was finished with other settings" in error and "--replace" in error
    assert (bench / "runs/x/training/stage-1/training.json").is_file()


def test_max_steps_counts_over_all_stages_and_the_run_goes_on_when_it_is_raised(straight, bench):
    first = record(straight)["stages"][0]["steps"]
    for limit in (first, first + 1):
        build(bench, "--replace", max_steps=limit)
        assert (record(bench)["steps"], record(bench)["stopped_by"]) == (limit, "steps")
    build(bench)
    assert equal(tensors(bench), tensors(straight))
    assert "Raise max_steps" in build(bench, max_steps=first - 1, code=2).stderr


@pytest.fixture
def ticking(monkeypatch):
    """Clocks of trainings that go on by a second each time they are read."""
    real = job_module.RunContext
    monkeypatch.setattr(job_module, "RunContext", lambda *args: real(*args, clock=count().__next__))


def test_max_minutes_counts_over_all_stages_and_the_run_goes_on_when_it_is_raised(straight, bench, ticking):
    build(bench)
    first, second, _ = (stage["seconds"] for stage in record(bench)["stages"])
    shutil.rmtree(bench / "runs")
    shown = build(bench, max_minutes=first / 60).stderr  # used up when the first stage ends
    assert "stopped by max_minutes, before stage 2 of 3" in shown
    assert record(bench)["stopped_by"] == "minutes" and len(record(bench)["stages"]) == 1
    build(bench, "--replace", max_minutes=(first + second / 2) / 60)
    stages_done = record(bench)["stages"]
    assert record(bench)["stopped_by"] == "minutes"
    assert [stage["stopped_by"] for stage in stages_done] == ["tokens", "minutes"]
    assert 0 < stages_done[1]["steps"] < record(straight)["stages"][1]["steps"]
    assert first + second / 2 <= record(bench)["seconds"] < first + second
    build(bench, "--replace")
    assert equal(tensors(bench), tensors(straight))


def test_nothing_of_a_stage_is_in_memory_when_the_next_one_begins(bench, monkeypatch):
    real, models, alive = stages.make_job, [], []

    def watched(*arguments):
        alive.append(sum(model() is not None for model in models))
        found = real(*arguments)
        models.append(weakref.ref(found[0].model))
        return found

    monkeypatch.setattr(stages, "make_job", watched)
    build(bench)
    assert alive == [0, 0, 0] and len(models) == 3


def test_an_unfinished_stage_takes_another_rate_only_where_that_is_accepted(straight, bench):
    first = record(straight)["stages"][0]["steps"]
    build(bench, max_steps=first + 1)
    changed = [STAGES[0], {**STAGES[1], "lr_scale": {"deep": 0.5}}, STAGES[2]]
    refused = build(bench, "--replace", stages=changed, code=2).stderr
    assert "train.optimizer.lr_scale is [['deep', 0.5]] now and was None there" in refused
    build(bench, "--replace", "--accept-changes", stages=changed)
    assert record(bench)["changes"][0]["step"] == first + 1


def test_a_finished_stage_keeps_no_weights_of_its_best_step(bench):
    keys = {**TRAIN, "stages": STAGES[:1]}
    evaluate = {"every": 1, "keep": "best", "max_tokens": 300, "curve_tokens": 100, "context": 64}
    donors = {"a": "a", "b": "b"}
    recipe = write_recipe(Path("best.yaml"), donors=donors, layout=DIAL, train=keys, evaluate=evaluate)
    hybridize("build", recipe, "--runs", bench / "runs", "--no-load")
    left = {path.name for path in (bench / "runs/best/training/stage-1").iterdir()}
    assert left == {"curve.jsonl", "log.jsonl", "masters.safetensors", "training.json"}


def test_a_stored_plan_of_stages_is_built_to_the_same_bytes(straight, bench):
    shutil.copytree(straight / "runs/x", bench / "x", ignore=shutil.ignore_patterns("model", "training", "spliced"))
    hybridize("build", bench / "x/plan.json", "--no-load")
    built = load_file(bench / "x/model/model.safetensors")
    assert equal(built, tensors(straight))


def test_float32_values_pass_from_stage_to_stage_under_bfloat16(tmp_path):
    settings = replace(SETTINGS, precision="bfloat16")
    files = []
    for number, freeze in enumerate(("deep", "shallow", "deep")):
        model, parts = plain_model()
        model.bfloat16()  # as it is stored
        earlier = Earlier(5 * number, tuple(files))
        put_masters_(model, earlier.read_masters())
        plan = plan_freeze(model, parts, train_section(freeze=freeze), boundary=2)
        # The third stage changes nothing: its result is the first one's if no value was rounded on the way.
        still = replace(settings, lr_scale=(("*", 1e-30),)) if number == 2 else settings
        data = data_in(tmp_path / "data")
        job = TrainJob(model, parts, plan, data, still, "x", earlier=earlier)
        train(job, RunContext(tmp_path / str(number), Runtime(cpu=True), SilentMonitor(), FIGURES))
        files.append(tmp_path / str(number) / "masters.safetensors")
    first, second, third = (load_file(file) for file in files)
    assert equal(third, first) and not first.keys() & second.keys()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], second[name]) for name in second)  # frozen in float32


def train_scaled(folder, factor):
    """The tensors of a model after six steps with this factor on the deep side, which is frozen for None."""
    model, parts = plain_model(dropout=0.0)
    plan = plan_freeze(model, parts, train_section(freeze="none" if factor else "deep"), boundary=2)
    settings = replace(SETTINGS, lr_scale=(("deep", factor),) if factor else None, max_grad_norm=0.0, max_steps=6)
    job = TrainJob(model, parts, plan, data_in(folder / "data"), settings, "x")
    train(job, RunContext(folder / str(factor), Runtime(cpu=True), SilentMonitor(), FIGURES))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_a_factor_near_zero_tends_to_freezing(tmp_path):
    frozen = train_scaled(tmp_path, None)
    distances = []
    for factor in (1.0, 1e-3, 1e-12):
        scaled = train_scaled(tmp_path, factor)
        distances.append(max(float((scaled[name] - frozen[name]).abs().max()) for name in frozen))
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 1e-2 and distances[-1] < 1e-6  # of rates of 1e-2 and 1e-14 over 6 steps


def test_each_stage_has_the_objective_and_the_teacher_that_it_names(bench):
    stages = [
        {"tokens": 500, "freeze": "deep", "objective": {"align": {"teacher": "b"}}},
        {"tokens": 500, "freeze": "deep"},
        {"tokens": 300, "freeze": "none", "embedding": "freeze", "objective": "next-token"},
    ]
    build(bench, stages=stages, objective="distill")
    logged = [json.loads(line) for line in (bench / "runs/x/training/log.jsonl").read_text().splitlines()]
    terms = {line["stage"]: {key for key in line if key in TERMS} for line in logged}
    assert terms == {1: {"loss_alignment"}, 2: {"loss_divergence", "loss_next_token"}, 3: set()}
    plan = json.loads((bench / "runs/x/plan.json").read_text())
    content = {name: pin["fingerprint"] for name, pin in plan["donors"].items()}
    settings = [stage["settings"].get("objective", {}) for stage in plan["train"]["stages"]]
    assert [one["teacher"] for values in settings for one in values.values()] == [content["b"], content["a"]]
    assert settings[2] == {}
    assert "unchanged" in build(bench, stages=stages, objective="distill").stderr


def test_a_teacher_that_is_missing_is_reported_at_its_stage(bench):
    stages = [{"tokens": 500}, {"tokens": 500, "objective": {"distill": {"teacher": "nobody"}}}]
    refused = build(bench, stages=stages, code=2)
    assert "teacher 'nobody'" in refused.stderr and "x.yaml" in refused.stderr
