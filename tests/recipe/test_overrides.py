"""`--set a.b=c`: what it changes, in which order, and the same checks as for the file."""

from __future__ import annotations

import pytest

from hybridizer.recipe.models import DonorEntry, Layout, Slice

TEXT = "donors:\n  a: x\n  b: y\nlayout:\n  host: a\n  deep: a\n  shallow: b\n"
SLICES = "donors: {a: x}\nlayout:\n  slices:\n    - {donor: a, layers: 0..3}\n    - {donor: a, layers: 4}\n"


def test_a_value_is_replaced_and_located_at_its_override(load, tmp_path) -> None:
    recipe = load(TEXT, "layout.boundary=2")
    assert recipe.layout == Layout("a", "a", "b", 2)
    assert recipe.locate(("layout", "boundary")) == "--set layout.boundary=2"
    assert recipe.locate(("layout", "deep")) == f"{tmp_path / 'recipe.yaml'}:6"


def test_the_later_override_wins(load) -> None:
    recipe = load(TEXT, "seed=1", "layout.boundary=2", "seed=3")
    assert recipe.seed == 3
    assert recipe.locate(("seed",)) == "--set seed=3"


def test_overrides_reach_into_lists(load) -> None:
    recipe = load(SLICES, "layout.slices.0.layers=0..1", "layout.slices.1.layers=[7, 9..10]")
    assert recipe.layout.slices == (Slice("a", (0, 1)), Slice("a", (7, 9, 10)))
    assert recipe.locate(("layout", "slices", 1, "layers", 0)) == "--set layout.slices.1.layers=[7, 9..10]"


def test_a_section_is_replaced_as_a_whole(load) -> None:
    recipe = load(SLICES, "layout={deep: a, shallow: a, boundary: 0.25}")
    assert recipe.layout == Layout("a", "a", "a", 0.25)
    assert recipe.locate(("layout", "slices", 0)) == "--set layout={deep: a, shallow: a, boundary: 0.25}"


def test_sections_and_donors_are_made_where_there_are_none(load) -> None:
    recipe = load(TEXT, "output.dtype=float16", "donors.c=z", "donors.b.allow=[pickle]", "layout.deep=c")
    assert recipe.output.dtype == "float16"
    assert recipe.donors == (
        DonorEntry("x", name="a"),
        DonorEntry("y", ("pickle",), name="b"),
        DonorEntry("z", name="c"),
    )


def test_text_with_an_equals_sign_is_a_value(load) -> None:
    assert load(TEXT, "donors.a=/data/x=1/b").donor("a").source == "/data/x=1/b"


def test_an_override_mends_a_value_of_the_file(load) -> None:
    assert load(TEXT + "  boundary: deep\n", "layout.boundary=0.3").layout.boundary == 0.3


def test_replacing_one_copy_of_an_alias_leaves_the_other(load) -> None:
    text = "donors: {a: x}\nlayout:\n  slices:\n    - &s {donor: a, layers: 0..3}\n    - *s\n"
    assert load(text, "layout.slices.1.layers=9").layout.slices == (Slice("a", (0, 1, 2, 3)), Slice("a", (9,)))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("layout.boundary", "--set layout.boundary: an override without `=`.\n  Write --set key.key=value"),
        ("=3", "--set =3: the key '' has an empty part."),
        ("layout..deep=a", "the key 'layout..deep' has an empty part."),
        ("seed=", "--set seed=: `seed` is given no value."),
        ("seed=~", "`seed` is given no value."),
        ("layout.bondary=2", "--set layout.bondary=2: `layout` has no key `bondary`.\n  Did you mean 'boundary'?"),
        ("layuot.boundary=2", "--set layuot.boundary=2: the recipe has no key `layuot`.\n  Did you mean 'layout'?"),
        ("output.dtype=fp16", "--set output.dtype=fp16: `dtype` cannot be 'fp16'"),
        ("output.shards=1", "--set output.shards=1: `output` has no key `shards`."),
        ("layout.host=c", "--set layout.host=c: `host` names 'c', which is not a donor here."),
        ("seed.x=1", "--set seed.x=1: `seed` is the number 4 and has no `x` inside.\n  Set `seed` as a whole."),
        ("seed=[1", "--set seed=[1: a bracket that opens here and never closes."),
        ("seed=.inf", "--set seed=.inf: `seed`: .inf is not a finite number."),
        ("seed=1_0", "--set seed=1_0: `seed`: `1_0` is a different number"),
        ("layout={host: a, host: b}", "`host` is given twice, first at --set layout={host: a, host: b}."),
        ("layout.boundary=\x1b[31m", "--set layout.boundary=?[31m: the character U+001B cannot stand in YAML text."),
        ("seed=\udcff", "--set seed=?: the character U+DCFF cannot stand in YAML text."),
        ("\udcff=1", "--set ?=1: the character U+DCFF cannot stand in YAML text."),
    ],
)
def test_refusals_name_the_override(refuse, override: str, words: str) -> None:
    assert words in "\n".join(map(str, refuse(TEXT + "seed: 4\n", override)))


@pytest.mark.parametrize("position", ["2", "-1", "x", "", "٠", "9" * 5000])
def test_positions_outside_a_list_are_refused(refuse, position: str) -> None:
    problems = "\n".join(map(str, refuse(SLICES, f"layout.slices.{position}.layers=1")))
    assert "`slices` is a list with entries 0..1" in problems or "has an empty part" in problems


def test_a_value_refused_in_reading_is_reported_once(refuse) -> None:
    assert [problem.where for problem in refuse(TEXT, "layout.boundary=1_0")] == ["--set layout.boundary=1_0"]


def test_a_file_and_its_override_are_both_reported_in_that_order(refuse) -> None:
    wheres = [problem.where for problem in refuse(TEXT + "  boundary: 1_0\nseed: x\n", "layout.boundary=a:3")]
    assert wheres == ["recipe.yaml:8", "recipe.yaml:9", "--set layout.boundary=a:3"]


def test_one_bad_override_does_not_hide_another(refuse) -> None:
    wheres = [problem.where for problem in refuse(TEXT, "x", "seed=a", "layout.boundary=1.5", "seed.b=1")]
    assert sorted(wheres) == ["--set layout.boundary=1.5", "--set seed.b=1", "--set seed=a", "--set x"]
