"""Recipes into frozen values: defaults, both ways to lay out, places, and the way back to text."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pydantic import ValidationError

from hybridizer.recipe.dump import to_yaml
from hybridizer.recipe.load import MAX_FILE_BYTES, load_recipe
from hybridizer.recipe.models import (
    Blend,
    BlendSource,
    DataEntry,
    DonorEntry,
    Layout,
    Output,
    Recipe,
    Slice,
    Train,
)
from hybridizer.recipe.objective import Align, Distill, Objective

DIAL = "donors:\n  a: x\nlayout: {deep: a, shallow: a}\n"
FULL = """\
name: mix
seed: 7
donors:
  instruct: {source: "pkg:p/q.gguf"}
  domain: donors/domain
  odd: {source: ./x y+z@1, allow: [remote_code, pickle]}
layout:
  host: instruct
  slices:
    - {donor: domain, layers: 0..2}
    - {donor: instruct, layers: [5, 3..4, 5]}
    - {donor: odd}
    - blend:
        method: ties
        base: instruct
        parameters: {normalize: true, lambda: 0.5}
        sources:
          - {donor: instruct, layers: 1..2}
          - {donor: odd, layers: [7, 9], parameters: {weight: 1, density: 0.3}}
output: {dtype: bfloat16, max_shard_bytes: 2GiB}
"""


def test_every_recipe_of_the_project_loads_and_comes_back_the_same(load) -> None:
    paths = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
    assert paths
    for path in paths:
        recipe = load_recipe(path)
        assert load(to_yaml(recipe.resolved())) == recipe


def test_the_name_of_an_objective_is_short_for_its_defaults_and_next_token_for_none(load) -> None:
    text = f"{DIAL}train:\n  data: [{{path: x}}]\n  tokens: 2M\n  objective: "
    assert load(f"{text}next-token").train.objective is None
    assert "objective" not in load(f"{text}next-token").resolved()["train"]
    assert load(f"{text}distill").train.objective == Objective(distill=Distill())
    aligned = load(f"{text}{{align: {{at: [3, 1..2]}}}}")
    assert aligned.train.objective == Objective(align=Align(at=(1, 2, 3)))
    assert load(to_yaml(aligned.resolved())) == aligned


def test_defaults_are_filled_in(load) -> None:
    recipe = load(DIAL, name="my run.yaml")
    assert recipe.name == "my run"
    assert recipe.seed == 0
    assert recipe.donors == (DonorEntry("x", (), name="a"),)
    assert recipe.layout == Layout("a", "a", "a", 0.5)
    assert recipe.output == Output("keep", 5_000_000_000)


def test_everything_said_is_kept(load, tmp_path: Path) -> None:
    recipe = load(FULL)
    assert recipe.donors == (
        DonorEntry("pkg:p/q.gguf", name="instruct"),
        DonorEntry("donors/domain", name="domain"),
        DonorEntry("./x y+z@1", ("pickle", "remote_code"), name="odd"),
    )
    assert recipe.layout == Layout(
        "instruct",
        slices=(
            Slice("domain", (0, 1, 2)),
            Slice("instruct", (5, 3, 4, 5)),
            Slice("odd", None),
            Slice(
                blend=Blend(
                    "ties",
                    (
                        BlendSource("instruct", (1, 2)),
                        BlendSource("odd", (7, 9), (("density", 0.3), ("weight", 1))),
                    ),
                    (("lambda", 0.5), ("normalize", True)),
                    "instruct",
                )
            ),
        ),
    )
    assert recipe.output == Output("bfloat16", 2 * 1024**3)
    assert (recipe.name, recipe.seed) == ("mix", 7)
    assert recipe.folder == tmp_path
    assert recipe.donor("odd").source == "./x y+z@1"


@pytest.mark.parametrize(("text", "boundary"), [("0.25", 0.25), ("1", 1), ("15", 15)])
def test_a_boundary_keeps_its_kind(load, text: str, boundary: float) -> None:
    found = load(DIAL.replace("shallow: a", f"shallow: a, boundary: {text}")).layout.boundary
    assert found == boundary
    assert type(found) is type(boundary)


def test_a_recipe_is_frozen_through_and_through(load) -> None:
    recipe = load(FULL)
    assert hash(recipe) == hash(load(FULL))
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.layout.slices[0].donor = "x"


@pytest.mark.parametrize("text", [DIAL, FULL])
def test_a_resolved_recipe_loads_as_the_same_recipe(load, text: str) -> None:
    recipe = load(text)
    again = load(to_yaml(recipe.resolved()), name="recipe.resolved.yaml")
    assert again == recipe
    assert again.resolved() == recipe.resolved()


def test_a_resolved_recipe_leaves_no_default_open(load) -> None:
    assert load(DIAL).resolved() == {
        "name": "recipe",
        "seed": 0,
        "donors": {"a": {"source": "x", "allow": []}},
        "layout": {"host": "a", "deep": "a", "shallow": "a", "boundary": 0.5},
        "output": {"dtype": "keep", "max_shard_bytes": 5_000_000_000},
    }


def test_the_host_need_not_be_the_first_donor(load) -> None:
    assert load("donors: {a: x, b: y}\nlayout: {host: b, deep: a, shallow: a}\n").layout.host == "b"


def test_a_name_makes_up_for_a_file_name_that_is_none(load) -> None:
    assert load("name: good\n" + DIAL, name="a:b.yaml").name == "good"


def test_a_section_made_in_python_is_checked_as_one_that_is_loaded() -> None:
    with pytest.raises(ValidationError, match="'float16'"):
        Output("half")
    with pytest.raises(ValidationError, match="greater than 0"):
        dataclasses.replace(Train((DataEntry("a.txt"),), 100), lr=0)


@pytest.mark.parametrize("text", ["path: x\n" + DIAL, DIAL.replace("a: x", "a: {source: x, name: b}")])
def test_what_loading_fills_in_is_no_key(refuse, text: str) -> None:
    (problem,) = refuse(text)
    assert "has no key" in problem.what


@pytest.mark.parametrize("layers", ["[1_000]", "[0x1F, 3]", "no", "0..3, 20"])
def test_what_the_reading_refused_is_not_refused_again(refuse, layers: str) -> None:
    problems = refuse(f"donors: {{a: x}}\nlayout: {{slices: [{{donor: a, layers: {layers}}}]}}\n")
    assert [problem.where for problem in problems] == ["recipe.yaml:2"]


def test_values_are_located_by_line(load, tmp_path: Path) -> None:
    recipe: Recipe = load(FULL)
    file = tmp_path / "recipe.yaml"
    assert recipe.locate(("donors", "domain", "source")) == f"{file}:5"
    assert recipe.locate(("layout", "slices", 1, "layers")) == f"{file}:11"
    assert recipe.locate(("layout", "slices", 3, "blend", "sources", 1, "parameters", "weight")) == f"{file}:19"
    assert recipe.locate(("layout", "boundary")) == f"{file}:7"
    assert recipe.locate(("trace", "probes")) == f"{file}:1"


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(load, tmp_path: Path) -> None:
    recipe = load(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    assert recipe == load(FULL)
    assert recipe.locate(("output",)) == f"{tmp_path / 'recipe.yaml'}:20"


def test_names_in_any_script_work(load) -> None:
    recipe = load("name: 混合 模型-1\ndonors: {指令: /数据/模型}\nlayout: {deep: 指令, shallow: 指令}\n", name="é.yaml")
    assert (recipe.name, recipe.layout.host) == ("混合 模型-1", "指令")


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "-rf", "a\\b", "x.", "a:b", "x" * 101, "字" * 100, "''"])
def test_names_that_are_no_folder_are_refused(refuse, name: str) -> None:
    (problem,) = refuse(f"name: {name}\n" + DIAL)
    assert "cannot be a folder's name" in problem.what
    assert problem.where == "recipe.yaml:1"


@pytest.mark.parametrize("name", ["a.b", "a b", "a/b", "-a", "x" * 65, "'[key]'", "''"])
def test_names_that_are_no_donor_are_refused(refuse, name: str) -> None:
    (problem,) = refuse(f"donors:\n  a: x\n  {name}: y\nlayout: {{host: a, deep: a, shallow: a}}\n")
    assert "cannot be a donor's name" in problem.what
    assert problem.where == "recipe.yaml:3"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the recipe is empty."),
        (b"# nothing yet\n", "the recipe is empty."),
        (b"\xef\xbb\xbf", "the recipe is empty."),
        (b"---\n...\n", "the recipe is empty."),
        (b"- a\n", "the recipe holds a list."),
        (b"a\n", "the recipe holds 'a'."),
        (b"a: 1\nb: \xff\n", "the byte 0xff is not UTF-8 text."),
        ("donors: {a: x}\n".encode("utf-16"), "the byte 0xff is not UTF-8 text."),
        (b"#" * (MAX_FILE_BYTES + 1), "more than 1 MB of text; recipes are a few kB."),
        (b"\x00" * 100, "the character U+0000 cannot stand in YAML text."),
    ],
)
def test_what_is_no_recipe_is_refused(refuse, content: bytes, what: str) -> None:
    (problem,) = refuse(content)
    assert problem.what == what
    assert problem.fix


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, load) -> None:
    load(DIAL, name="mine.yaml")
    for path, words in [
        (tmp_path / "mein.yaml", "there is no such recipe.\n  Did you mean 'mine.yaml'?"),
        (tmp_path / "no" / "x.yaml", f"there is no such recipe.\n  There is no folder {tmp_path / 'no'} either."),
        (tmp_path, "the recipe cannot be read: Is a directory."),
    ]:
        with pytest.raises(Exception, match=r"^/") as refusal:
            load_recipe(path)
        assert str(refusal.value).startswith(f"{path}: {words}")


def test_every_problem_is_reported_in_the_order_of_the_file(refuse) -> None:
    text = FULL.replace("seed: 7", "seed: no").replace("0..2", "2..0").replace("method: ties", "metod: ties")
    text = text.replace("host: instruct", "host: instuct").replace("bfloat16", "bf16") + "frieze: {}\n"
    found = refuse(text, "layout.deep=domain", "output.dtype=float23", "x")
    assert [problem.where for problem in found] == [
        *(f"recipe.yaml:{line}" for line in (2, 8, 9, 10, 13, 14, 21)),
        "--set x",
        "--set output.dtype=float23",
    ]
    assert all(problem.fix for problem in found)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("deep", "deep"), ("shallow", "shallow"), ("none", "none"), ("3", (3,)), ("15..17", (15, 16, 17)),
        ("0, 15..17", (0, 15, 16, 17)), ("[0, 15..17]", (0, 15, 16, 17)), ("\n    - 0\n    - 15..17", (0, 15, 16, 17)),
    ],
)  # fmt: skip
def test_every_form_of_freeze_that_is_documented_loads(tmp_path: Path, written: str, meant: object) -> None:
    file = tmp_path / "r.yaml"
    layout = "layout: {deep: a, shallow: a}"
    file.write_text(f"donors: {{a: x}}\n{layout}\ntrain:\n  data: [{{path: t}}]\n  tokens: 2M\n  freeze: {written}\n")
    train = load_recipe(file, ()).train
    assert train is not None and train.freeze == meant
