"""A training in several processes: the model of one, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridizer.pipeline import build
from hybridizer.train.run import open_runtime
from hybridizer.train.runtime import Runtime
from support.lines import hybridize, make_donor, write_recipe
from support.train_bench import make_bench, recipe_of


@pytest.fixture
def bench(bench):
    """The working folder, with two donors and a text."""
    return make_bench(bench)


def test_processes_that_planned_differently_do_not_train(bench, monkeypatch):
    monkeypatch.setattr(build, "join_processes", lambda recipe, runs: open_runtime(recipe, runs / recipe.name))
    monkeypatch.setattr(Runtime, "all_gather", lambda self, text: [text, "sha256:another"])
    stderr = hybridize("build", recipe_of(bench), code=2).stderr
    assert "x: the processes made different plans" in stderr and "sha256:another... by process 1" in stderr
    assert not (bench / "runs/x/training").exists()


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "family"), [({}, "llama"), (FSDP2, "llama"), (FSDP2, "bamba")], ids=["ddp", "fsdp2", "fsdp2-hybrid"]
)
def test_two_processes_build_the_model_of_one(bench, sharding, family):
    make_donor(bench / "m", family, seed=3)
    model = {"layout": {"host": "m", "deep": "m", "shallow": "m"}, "donors": ("m",)}
    hybridize("build", recipe_of(bench, "one", **model), "--no-load")
    recipe = recipe_of(bench, "two", **model)
    # accelerate's launcher goes through torch's on GPUs, and through mpirun on CPUs.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", **sharding,
    }  # fmt: skip
    command = [sys.executable, *launch, "-m", "hybridizer", "build", str(recipe), "--no-load"]
    done = subprocess.run(command, cwd=bench, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("is complete and verified") == 1, "only one process prints"
    assert done.stderr.count("modules that would mix the documents of a row") == (family == "bamba")
    one, two = (load_file(bench / f"runs/{name}/model/model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-4)  # Adam magnifies rounding of tiny gradients
    assert json.loads((bench / "runs/two/training/training.json").read_text())["num_processes"] == 2


def test_rows_that_the_processes_cannot_share_are_refused(bench, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    stderr = hybridize("build", recipe_of(bench), code=2).stderr
    assert "8 rows in a step cannot be shared evenly by 3 processes" in stderr and "x.yaml:" in stderr


def test_several_processes_without_training_are_refused(bench, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = write_recipe(Path("s.yaml"), donors={"a": "a"}, layout={"host": "a", "slices": [{"donor": "a"}]})
    assert "2 processes were started, and this recipe has no `train`" in hybridize("build", recipe, code=2).stderr
