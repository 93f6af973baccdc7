"""A training that was finished, changed, stopped, killed or damaged, built again; and disks that are too small."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridizer.checkpoint import publish
from hybridizer.checkpoint.hashing import hash_file
from hybridizer.train.training_record import is_complete
from support.lines import hybridize
from support.sections import train_section
from support.train_bench import make_bench, recipe_of, start


@pytest.fixture
def bench(bench):
    """The working folder, with two donors and a text."""
    return make_bench(bench)


@pytest.mark.slow
def test_a_second_build_trains_nothing_and_a_lost_model_is_exported_again(bench):
    recipe = recipe_of(bench)
    hybridize("build", recipe)
    log = (bench / "runs/x/training/log.jsonl").read_bytes()
    before = hash_file(bench / "runs/x/model/model.safetensors")
    assert "model: unchanged" in hybridize("build", recipe).stderr
    subprocess.run(["rm", "-r", bench / "runs/x/model"], check=True)
    assert "train: unchanged" in hybridize("build", recipe).stderr
    assert hash_file(bench / "runs/x/model/model.safetensors") == before
    assert (bench / "runs/x/training/log.jsonl").read_bytes() == log


@pytest.mark.slow
def test_another_training_in_the_same_folder_is_refused_with_the_difference(bench):
    recipe = recipe_of(bench, train={"max_steps": 2})
    hybridize("build", recipe)
    stderr = hybridize("build", recipe, "--set", "train.lr=2e-3", "--replace", code=2).stderr
    assert "train.optimizer.lr is 0.002 now and was 0.001 there" in stderr
    hybridize("verify", "runs/x")
    stderr = hybridize("build", recipe, "--set", "train.freeze=shallow", "--replace", code=2).stderr
    assert "freeze.frozen_layers is [0, 1] now and was [2, 3] there" in stderr, "what differs, not its hash"
    hybridize("build", recipe, "--set", "train.max_steps=4")
    record = json.loads((bench / "runs/x/training/training.json").read_text())
    assert (record["steps"], record["stopped_by"]) == (4, "steps")


@pytest.mark.slow
def test_a_run_that_exploded_goes_on_with_a_lower_rate_from_its_last_good_state(bench):
    settings = {"schedule": "constant", "warmup_ratio": 0, "max_grad_norm": 0, "checkpoint_minutes": 0}
    recipe = recipe_of(bench, train=settings)
    hybridize("build", recipe, "--no-load", "--set", "train.max_steps=2")
    stderr = hybridize(
        "build", recipe, "--no-load", "--replace", "--accept-changes", "--set", "train.weight_decay=1e60", code=1
    ).stderr
    assert "training step 3: " in stderr and "it resumes from runs/x/training/checkpoints/step-00000002" in stderr, (
        stderr
    )
    stderr = hybridize("build", recipe, "--no-load", "--replace", "--set", "train.lr=2e-3", code=2).stderr
    assert "or pass --accept-changes to resume with it" in stderr
    found = hybridize("build", recipe, "--replace", "--accept-changes", "--set", "train.lr=2e-3")
    record = json.loads((bench / "runs/x/training/training.json").read_text())
    (change,) = record["changes"]
    assert (change["step"], change["setting"], change["now"]) == (2, "train.optimizer.lr", 2e-3)
    assert f"from step 2 on, train.optimizer.lr was 0.002 instead of {change['before']}" in found.stdout
    hybridize("verify", "runs/x")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_a_build_saves_the_training_and_the_next_build_ends_with_the_same_bytes(bench, number, code):
    recipe = recipe_of(bench, train={"tokens": 40_000, "checkpoint_minutes": 60})
    hybridize("build", recipe, "--no-load", "--runs", "straight")
    command = [sys.executable, "-m", "hybridizer", "build", str(recipe), "--no-load"]
    log = bench / "runs/x/training/log.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (log.exists() and log.read_text()):
            pass
        process.send_signal(number)
        error = process.stderr.read()
    assert process.returncode == code, error
    assert f"stopped by {number.name}; the state is saved in " in error and "Re-run the same command" in error
    assert len(list((bench / "runs/x/training/checkpoints").iterdir())) == 1
    hybridize("build", recipe, "--no-load")
    built, straight = (bench / runs / "x/model/model.safetensors" for runs in ("runs", "straight"))
    assert hash_file(built) == hash_file(straight)
    assert (bench / "runs/x/training.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_fewer_steps_than_were_taken_are_refused(bench):
    recipe = recipe_of(bench, train={"max_steps": 4})
    hybridize("build", recipe, "--no-load")
    stderr = hybridize("build", recipe, "--set", "train.max_steps=2", "--no-load", code=2).stderr
    assert "its newest checkpoint is at step 4, and `max_steps` is 2" in stderr
    hybridize("verify", "runs/x")


@pytest.mark.slow
def test_a_run_that_max_steps_ended_resumes_when_they_are_raised(bench):
    recipe = recipe_of(bench)
    hybridize("build", recipe, "--no-load")
    expected = hash_file(bench / "runs/x/model/model.safetensors")
    subprocess.run(["rm", "-r", bench / "runs"], check=True)
    hybridize("build", recipe, "--no-load", "--set", "train.max_steps=2")
    short = hash_file(bench / "runs/x/model/model.safetensors")
    again = hybridize("build", recipe, "--no-load", "--set", "train.max_steps=2")
    assert "model: unchanged" in again.stderr and hash_file(bench / "runs/x/model/model.safetensors") == short
    longer = hybridize("build", recipe, "--no-load", "--set", "train.max_steps=4")
    assert "its training stopped at step 2 by max_steps, which has changed" in longer.stderr
    hybridize("build", recipe, "--no-load")
    assert hash_file(bench / "runs/x/model/model.safetensors") == expected != short
    lines = (bench / "runs/x/training/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(len(lines))) and len(lines) > 4
    hybridize("verify", "runs/x")


@pytest.mark.parametrize(
    ("record", "limits", "complete"),
    [
        ({"stopped_by": "tokens"}, {}, True),
        ({"stopped_by": "tokens"}, {"max_steps": 99, "max_minutes": 0.1}, True),
        ({"stopped_by": "steps"}, {"max_steps": 10}, True),
        ({"stopped_by": "steps"}, {"max_steps": 11}, False),
        ({"stopped_by": "steps"}, {}, False),
        ({"stopped_by": "steps"}, {"max_steps": 9}, False),  # the training refuses it
        ({"stopped_by": "minutes"}, {"max_minutes": 2}, True),
        ({"stopped_by": "minutes"}, {"max_minutes": 1}, True),
        ({"stopped_by": "minutes"}, {"max_minutes": 3}, False),
        ({"stopped_by": "minutes"}, {}, False),
        ({"stopped_by": "minutes"}, {"max_steps": 10}, True),
    ],
)
def test_a_training_is_complete_where_its_limits_let_it_go_no_further(record, limits, complete):
    assert is_complete({"steps": 10, "seconds": 121.0, **record}, train_section(**limits)) is complete


@pytest.mark.slow
def test_another_splice_does_not_take_the_place_of_what_was_trained_from(bench):
    recipe = recipe_of(bench)
    hybridize("build", recipe)
    before = (bench / "runs/x/scores.json").read_text()
    stderr = hybridize("build", recipe, "--set", "layout.boundary=1", "--replace", code=2).stderr
    assert "a training of another spliced model has checkpoints here" in stderr
    subprocess.run(["rm", "-r", bench / "runs/x/spliced"], check=True)
    hybridize("build", recipe)
    assert (bench / "runs/x/scores.json").read_text() == before


@pytest.mark.slow
def test_a_record_of_other_tensors_is_not_believed(bench):
    recipe = recipe_of(bench)
    hybridize("build", recipe, "--no-load")
    expected = hash_file(bench / "runs/x/model/model.safetensors")
    subprocess.run(["rm", "-r", bench / "runs/x/model"], check=True)
    path = bench / "runs/x/training/trained.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    assert "train: unchanged" not in hybridize("build", recipe, "--no-load").stderr
    assert hash_file(bench / "runs/x/model/model.safetensors") == expected


@pytest.mark.slow
def test_two_builds_at_once_do_not_share_a_training(bench):
    recipe = recipe_of(bench, train={"tokens": 40_000})
    first = start(bench, recipe, "--no-load")
    while first.poll() is None and not (bench / "runs/x/training/log.jsonl").exists():
        time.sleep(0.01)
    assert "another run is writing this folder now" in hybridize("build", recipe, "--no-load", code=1).stderr
    assert first.communicate() and first.returncode == 0


@pytest.mark.slow
def test_a_damaged_record_of_a_training_is_refused(bench):
    recipe = recipe_of(bench)
    hybridize("build", recipe)
    subprocess.run(["rm", "-r", bench / "runs/x/model"], check=True)
    path = bench / "runs/x/training/training.json"
    record = json.loads(path.read_text())
    del record["steps"]
    path.write_text(json.dumps(record))
    assert "training.json: `steps`: Field required" in hybridize("build", recipe, code=2).stderr


@pytest.mark.slow
def test_a_full_disk_stops_the_training_and_loses_nothing(bench):
    recipe = recipe_of(bench)
    limit = 700_000  # bytes per file: room for the spliced model, none for a checkpoint

    def shrink():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(bench, recipe, "--no-load", preexec_fn=shrink)
    stderr = process.communicate()[1]
    assert process.returncode == 1 and "File too large" in stderr and "Free some space" in stderr, stderr
    assert not list((bench / "runs/x").rglob("*.partial")) and not (bench / "runs/x/model").exists()
    hybridize("build", recipe, "--no-load")


def test_a_disk_too_small_for_the_checkpoints_is_found_before_the_first_step(bench, monkeypatch):
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 2_000_000))
    stderr = hybridize("build", recipe_of(bench), code=1).stderr
    assert "the output needs 37" in stderr and not (bench / "runs/x/training").exists(), stderr


@pytest.mark.slow
def test_a_build_that_is_killed_anywhere_ends_with_the_same_bytes(bench):
    train = {"tokens": 12_000, "checkpoint_minutes": 0.0}
    hybridize("build", recipe_of(bench, "whole", train=train), "--no-load")
    recipe = recipe_of(bench, "killed", train=train)
    generator, log = random.Random(int(os.environ.get("PYTEST_SEED", "7"))), bench / "runs/killed/training/log.jsonl"
    for _ in range(3):
        process = start(bench, recipe, "--no-load")
        steps = generator.randrange(1, 8) + (len(log.read_text().splitlines()) if log.exists() else 0)
        while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < steps):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (bench / "runs/killed/model/manifest.json").exists() or process.returncode == 0
    stdout, stderr = start(bench, recipe, "--no-load").communicate()
    assert "is complete and verified" in stdout, stderr
    whole, killed = (load_file(bench / f"runs/{name}/model/model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
