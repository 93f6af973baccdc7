"""The starter recipe: it loads, it names every key, and its commented half loads too."""

from __future__ import annotations

import re
from typing import Any

from hybridizer.recipe.recipe import Blend, DataEntry, Evaluate, Layout, Slice, TextEntry, Train
from hybridizer.recipe.schema import json_schema
from hybridizer.recipe.template import starter


def test_the_starter_loads(load) -> None:
    recipe = load(starter())
    assert recipe.layout == Layout("instruct", "instruct", "domain", 0.5)
    assert [donor.source for donor in recipe.donors] == ["donors/instruct", "donors/domain"]


def test_any_source_can_be_put_in(load) -> None:
    sources = ("pkg:a_b/x y.gguf", "C: {no} # 'x'\\%@")
    assert tuple(donor.source for donor in load(starter(*sources)).donors) == sources


def test_the_starter_names_every_key_and_choice() -> None:
    text = starter()
    for word in words(json_schema()):
        assert re.search(rf"\b{word}\b", text), word


def test_the_layout_in_full_loads_once_its_signs_are_taken_away(load) -> None:
    dial, full = re.split(r"\n  # Or all layers.*\n", starter())
    head = re.sub(r"\n  (deep|shallow|boundary):.*", "", dial)
    recipe = load(head + "\n" + full.replace("\n  # ", "\n  ").replace("  # slices", "  slices", 1))
    assert [type(piece) for piece in recipe.layout.slices] == [Slice, Slice, Blend]


def test_the_training_sections_load_once_their_signs_are_taken_away(load) -> None:
    head, training = starter().split("# Continued pre-training", 1)
    sections = re.sub(r"\n# (?=train:|evaluate:|  )", "\n", training)
    recipe = load(head + "#" + sections)
    assert recipe.train == Train((DataEntry("corpus/**/*.txt"),), 2_000_000)
    assert recipe.evaluate == Evaluate((TextEntry("news", "heldout/news.jsonl"),))


def words(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return {word for item in schema for word in words(item)}
    if not isinstance(schema, dict):
        return set()
    inner = {word for value in schema.values() for word in words(value)}
    properties = schema.get("properties", {})
    return inner | {key for key in properties if isinstance(properties, dict)} | set(schema.get("enum", []))
