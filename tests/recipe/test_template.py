"""The starter recipe: it loads, it names every key, and its commented half loads too."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hybridizer.core.errors import DonorError
from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.plan import check
from hybridizer.recipe.models import DataEntry, Evaluate, Layout, Lora, Output, Trace, Train
from hybridizer.recipe.schema import json_schema
from hybridizer.recipe.template import starter


def test_the_starter_loads(load) -> None:
    recipe = load(starter())
    assert recipe.layout == Layout("instruct", "instruct", "domain", 0.5)
    assert [donor.source for donor in recipe.donors] == ["./donors/instruct", "./donors/domain"]


def test_any_source_can_be_put_in(load) -> None:
    sources = ("pkg:a_b/x y.gguf", "C: {no} # 'x'\\%@")
    assert tuple(donor.source for donor in load(starter(*sources)).donors) == sources


def test_the_starter_names_every_key_and_choice() -> None:
    text = starter()
    for word in words(json_schema()):
        assert re.search(rf"\b{word}\b", text), word


def take_in(text: str, start: str, column: int = 0) -> str:
    """`text` with the block that begins at `start` commented in, up to the first line that is not commented out."""
    head, rest = text.split(start, 1)
    block, end, tail = (start + rest).partition("\n\n")
    return head + re.sub(rf"(?m)^(.{{{column}}})# ?", r"\1", block) + end + tail


def test_the_layout_in_full_loads_once_its_signs_are_taken_away(load) -> None:
    text = re.sub(r"\n  (deep|shallow|# boundary):.*(\n {10,}#.*)?", "", starter())
    text = re.sub(r"(?s)\n  # swap:.*?(?=\n  # mixer_sizes:)", "", text)  # another way to give the layers
    recipe = load(take_in(text, "  # slices", 2))
    assert [piece.donor for piece in recipe.layout.slices] == ["domain", "instruct", "instruct", None, None]
    assert recipe.layout.slices[4].blend.method == "slerp"


def test_the_optional_sections_load_once_their_signs_are_taken_away_and_hold_the_defaults(load) -> None:
    text = starter()
    for section in ("output", "trace", "train", "evaluate"):
        text = take_in(text, f"# {section}:")
    recipe = load(text)
    assert (recipe.output, recipe.trace, recipe.evaluate) == (Output(), Trace(), Evaluate())
    assert recipe.train == Train((DataEntry("corpus/**/*.txt"),), 2_000_000)


def test_every_key_in_the_starter_holds_its_default_or_an_example_that_loads(load) -> None:
    # All at once exclude each other: what is for hub datasets, and the layout in full.
    text = take_in(starter(), "# train:")
    keys = "name|seed|allow|fingerprint|boundary|weight|field|max_document_bytes|lora|max_steps|max_minutes"
    text = re.sub(rf"(?m)^( *)# (?=({keys}):)", r"\1", text)
    recipe = load(text.replace("  #   rank", "    rank").replace("  #   alpha", "    alpha"))
    assert recipe.train.lora == Lora() and recipe.train.max_steps == 1000
    assert recipe.donors[0].fingerprint is not None


def test_lines_are_no_longer_than_a_screen() -> None:
    assert max(map(len, starter().splitlines())) <= 120


def test_an_untouched_starter_lacks_nothing_but_its_donors(tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(starter())
    with pytest.raises(DonorError) as refusal:
        check(path, (), SilentMonitor(), deep=False)
    lines = [starter().splitlines().index(f"  {name}:") + 1 for name in ("instruct", "domain")]
    assert [problem.where for problem in refusal.value.problems] == [f"{path}:{line}" for line in lines]


def words(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return {word for item in schema for word in words(item)}
    if not isinstance(schema, dict):
        return set()
    inner = {word for value in schema.values() for word in words(value)}
    properties = schema.get("properties", {})
    return inner | {key for key in properties if isinstance(properties, dict)} | set(schema.get("enum", []))
