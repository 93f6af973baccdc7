"""Every kind of source is printed, and an executor that cannot make one refuses it before it writes."""

import io
import json
from dataclasses import replace
from typing import get_args

import pytest
from rich.console import Console

from hybridizer.core.errors import PlanError
from hybridizer.core.progress import SilentMonitor
from hybridizer.core.records import to_jsonable
from hybridizer.pipeline.plan import plan_recipe
from hybridizer.plan.manifest import make_manifest
from hybridizer.plan.origin import (
    Affine,
    Convert,
    Copy,
    Derived,
    Fitted,
    Fresh,
    Join,
    Merge,
    Origin,
    Source,
    Spread,
)
from hybridizer.plan.plan import LayerRow, read_plan
from hybridizer.report.plan_tables import origins_table, plan_table
from hybridizer.splice.card import write_card
from hybridizer.splice.executors import EXECUTORS, find_executor
from support.lines import hybridize, make_donor, write_recipe

FRESH = Fresh("zero", 3)
READ = tuple(Origin("a", f"model.layers.0.self_attn.{name}_proj.weight") for name in "qkvo")
FITTED = Fitted("mamba2", "attention", READ, 0, "sha256:0123456789", 1000, 64)
SAYS_FITTED = "mamba2 fitted on 1,000 tokens of 01234567 (attention, seed 0)"
SOURCES = (
    Copy("a", "x"), Convert("a", "x"), Join(READ, True), Affine("a", "x", 2.0, -1.0), Spread("a", "x", 4),
    Merge(0, READ), FRESH, Derived("mamba2", READ, 3), FITTED,
)  # fmt: skip


@pytest.fixture
def planned(bench):
    """The plan of a tiny llama spliced with itself, its middle layers blended, and its donors."""
    make_donor(bench / "a")
    sides = [{"donor": "a", "layers": layers, "parameters": {"weight": 0.5}} for layers in ("1..2", "2..3")]
    slices = [{"donor": "a", "layers": 0}, {"blend": {"method": "linear", "sources": sides}}]
    path = write_recipe(bench / "x.yaml", donors={"a": "a"}, layout={"host": "a", "slices": slices})
    return plan_recipe(path, (), SilentMonitor())


def with_source(plan, source):
    """`plan`, its first tensor made from `source`."""
    return replace(plan, tensors=(replace(plan.tensors[0], source=source), *plan.tensors[1:]))


def test_a_tensor_is_copied_converted_or_merged_as_the_recipe_asks(planned, tmp_path):
    names = {tensor.name: tensor.source for tensor in planned.plan.tensors}
    assert names["model.norm.weight"] == Copy("a", "model.norm.weight")
    suffix = "mlp.up_proj.weight"
    origins = tuple(Origin("a", f"model.layers.{layer}.{suffix}") for layer in (1, 2))
    assert names[f"model.layers.1.{suffix}"] == Merge(0, origins)
    rounded = plan_recipe(tmp_path / "x.yaml", ("output.dtype=bfloat16",), SilentMonitor()).plan.tensors
    assert {type(tensor.source) for tensor in rounded} == {Convert, Merge}


def test_the_sources_of_these_tests_are_of_every_kind():
    assert tuple(type(source) for source in SOURCES) == get_args(Source)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.kind)
def test_every_kind_of_source_comes_back_from_json_as_it_was(planned, source):
    plan = with_source(planned.plan, source)
    again = read_plan(json.loads(json.dumps(plan.to_json())), "plan.json")
    assert again.tensors == plan.tensors and again.blends == plan.blends and again.layers == plan.layers
    assert again.hash == plan.hash != planned.plan.hash


def rendered(table):
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("source", "says"),
    [(Fresh("normal", 3), "fresh (normal, seed 3)"), (FITTED, SAYS_FITTED)],
    ids=["fresh", "fitted"],
)
def test_copy_refuses_what_it_cannot_make_before_it_writes(planned, tmp_path, source, says):
    plan = with_source(planned.plan, source)
    (tmp_path / "out").mkdir()
    with pytest.raises(PlanError) as caught:
        EXECUTORS["copy"](plan, planned.donors, tmp_path / "out", SilentMonitor())
    assert f"tensor '{plan.tensors[0].name}': the executor 'copy' cannot make it: {says}." in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_plan_names_its_executor(planned):
    assert find_executor(planned.plan) is EXECUTORS["copy"]
    with pytest.raises(PlanError, match="no executor 'stack', which this plan names"):
        find_executor(replace(planned.plan, executor="stack"))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (FRESH, "fresh (zero, seed 3)"),
        (FITTED, f"{SAYS_FITTED} of " + " + ".join(f"a:{origin.tensor}" for origin in READ)),
    ],
    ids=["fresh", "fitted"],
)
def test_manifest_inspect_tables_and_card_print_any_source(planned, tmp_path, source, says):
    row = LayerRow(0, (), source.kind, "linear_attention", 10, "F32")
    plan = replace(with_source(planned.plan, source), layers=(row, *planned.plan.layers[1:]))
    manifest = make_manifest(plan, {}, {})
    name = plan.tensors[0].name
    assert to_jsonable(manifest.tensors[name])["kind"] == source.kind and str(manifest.tensors[name]) == says
    assert f"| 0 | {source.kind} | linear_attention |" in write_card(plan, {})
    for table in (plan_table(plan), origins_table(manifest)):
        assert source.kind in rendered(table)
    (tmp_path / "m").mkdir()
    (tmp_path / "m/manifest.json").write_text(json.dumps(manifest.to_json()))
    shown = hybridize("inspect", "m", "--tensors").stdout
    assert f"{name}  F32 {list(plan.tensors[0].shape)}  {says}\n" in shown
    assert "linear of a:model.layers.1.mlp.up_proj.weight + a:model.layers.2.mlp.up_proj.weight" in shown
