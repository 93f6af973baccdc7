"""Checkpoints described by their config alone: the same tensors as in the files, and plans that say what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hybridizer.checkpoint.reader import open_checkpoint
from hybridizer.core.errors import DonorError
from hybridizer.core.progress import SilentMonitor
from hybridizer.donors.configured import describe_checkpoint
from hybridizer.pipeline.plan import plan_from_configs, plan_recipe
from support.lines import hybridize, hybridize_json, make_donor, write_recipe
from support.marks import slow_except
from support.tiny import FAMILIES, make_tiny

pytestmark = pytest.mark.usefixtures("bench")


def strip_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()


@pytest.mark.filterwarnings("ignore")  # of the modelling code of transformers
@pytest.mark.parametrize("family", slow_except(FAMILIES, "llama", "mixtral", "gpt_oss", "mamba2"))
def test_a_config_gives_the_names_shapes_and_dtypes_of_the_checkpoint(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / "donor")
    files = {name: (entry.dtype, entry.shape) for name, entry in open_checkpoint(folder).tensors.items()}
    described = describe_checkpoint(folder, json.loads((folder / "config.json").read_text()))
    assert {name: (entry.dtype, entry.shape) for name, entry in described.tensors.items()} == files


def test_a_tied_head_is_not_listed_and_bfloat16_is_kept(tmp_path: Path) -> None:
    folder = make_tiny("qwen3", tmp_path / "donor", tie_word_embeddings=True, dtype="bfloat16")
    described = describe_checkpoint(folder, json.loads((folder / "config.json").read_text()))
    assert "lm_head.weight" not in described.tensors and "model.embed_tokens.weight" in described.tensors
    assert {entry.dtype for entry in described.tensors.values()} == {"BF16"}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The deep half of one donor on the shallow half of another, trained."""
    for seed, name in enumerate("ab"):
        make_donor(tmp_path / name, seed=seed)
    (tmp_path / "t.txt").write_text("the cat sat on the mat " * 40)
    train = {"data": [{"path": "t.txt"}], "tokens": 400, "seq_len": 32, "freeze": "deep"}
    layout = {"host": "a", "deep": "a", "shallow": "b"}
    return write_recipe(tmp_path / "x.yaml", donors={"a": "a", "b": "b"}, layout=layout, train=train)


def test_a_plan_from_configs_has_the_layers_and_tensors_of_the_plan_from_weights(recipe: Path, tmp_path: Path) -> None:
    whole = plan_recipe(recipe, (), SilentMonitor()).plan
    strip_weights(tmp_path / "b")
    mixed = plan_from_configs(recipe, (), SilentMonitor()).plan
    strip_weights(tmp_path / "a")
    bare = plan_from_configs(recipe, (), SilentMonitor()).plan
    for plan in (mixed, bare):
        assert sorted(map(str, plan.tensors)) == sorted(map(str, whole.tensors)) and plan.config == whole.config
        assert [row.parameters for row in plan.layers] == [row.parameters for row in whole.layers]
        assert plan.train is not None and whole.train is not None
        assert plan.train.frozen_layers == whole.train.frozen_layers
    assert "'a' is planned from its config.json: its weights were not read" in bare.warnings
    assert not any("'a' is planned" in warning for warning in mixed.warnings)


def test_the_command_line_marks_such_a_plan_and_stores_none(recipe: Path, tmp_path: Path) -> None:
    cost = hybridize_json("plan", recipe)["cost"]
    shutil.rmtree(tmp_path / "runs")
    strip_weights(tmp_path / "a")
    shown = hybridize("plan", recipe, "--configs").output
    assert "'a' is planned from its config.json: its weights were not read" in shown
    assert "it cannot be built" in shown and "plan.json" not in shown and not (tmp_path / "runs").exists()
    assert hybridize_json("plan", recipe, "--configs")["cost"] == cost


def test_without_the_option_a_donor_without_weights_is_refused(recipe: Path, tmp_path: Path) -> None:
    strip_weights(tmp_path / "a")
    with pytest.raises(DonorError, match="neither model.safetensors nor"):
        plan_recipe(recipe, (), SilentMonitor())


def test_a_layout_that_needs_traces_is_assumed_and_said_to_be(recipe: Path, tmp_path: Path) -> None:
    strip_weights(tmp_path / "a")
    plan = plan_from_configs(recipe, ("layout.boundary=auto", "layout.deep=auto"), SilentMonitor()).plan
    assert len(plan.layers) == 4
    assert any(warning.startswith("the layout is assumed") for warning in plan.warnings)
