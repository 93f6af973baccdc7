"""The JSON Schema: valid itself, true to what loads, and against what cannot load."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hybridizer.core.errors import RecipeError
from hybridizer.recipe.load import load_recipe
from hybridizer.recipe.models import Stage
from hybridizer.recipe.schema import json_schema
from hybridizer.recipe.sections import keys_of
from hybridizer.recipe.template import starter
from hybridizer.recipe.tree import Tree
from hybridizer.recipe.yaml import read_yaml

RECIPES = Path(__file__).parents[2] / "recipes"
VALUES: dict[str, Any] = {
    "name": "mix",
    "seed": 7,
    "donors": {"a": {"source": "x", "allow": ["pickle"], "fingerprint": f"sha256:{64 * 'a'}"}, "b": "y"},
    "layout": {
        "host": "a",
        "slices": [
            {"donor": "a", "layers": "0..2"},
            {"donor": "b", "layers": [5, "3..4"], "as": "identity"},
            {"donor": "b", "layers": 6, "mixer": {"kind": "mamba2", "parallel": True}, "zero_output": True},
            {"donor": "b", "layers": 7, "mixer": {"kind": "mamba2", "init": "attention", "fit": "ridge"}},
            {"fresh": "mamba2", "count": 2, "zero_output": True},
            {
                "blend": {
                    "method": "ties",
                    "base": "a",
                    "parameters": {"lambda": 0.5},
                    "sources": [
                        {"donor": "a", "layers": 1},
                        {"donor": "b", "layers": 2, "parameters": {"weight": True}},
                    ],
                }
            },
        ],
        "mixer_sizes": {"heads": 4, "head_dim": 16, "state": 8, "groups": 2, "conv": 4, "chunk": 64},
        "calibration": {"path": "x.txt", "field": "text", "tokens": "8k", "window": 256},
        "target": "granitemoehybrid",
    },
    "output": {"dtype": "keep", "max_shard_bytes": "5GB"},
    "trace": {
        "probes": "antonyms-zh",
        "perturb": "both",
        "mask_ratio": 0.5,
        "mask_with": "auto",
        "noise_ratio": 0.2,
        "lens": "tuned",
        "tau": 0,
        "p_min": 1,
        "epsilon": 1e-9,
        "num_resamples": 100,
        "dtype": "keep",
        "batch_size": 8,
    },
    "train": {
        "data": [
            {"path": "corpus/*.txt", "weight": 2, "field": "body", "max_document_bytes": "1MB"},
            {"hub": "org/data", "split": "train", "config": "en", "revision": "main", "max_documents": "10k"},
            {
                "generate": {
                    "from": "a",
                    "prompts": ["x"],
                    "tokens": "1k",
                    "max_new_tokens": 9,
                    "temperature": 0.7,
                    "seed": 3,
                }
            },
        ],
        "tokens": "2M",
        "freeze": [0, "15..29"],
        "embedding": "freeze",
        "final_norm": "freeze",
        "head": "side",
        "objective": {"distill": {"teacher": "b", "direction": "reverse", "temperature": 2, "weight": 0.5}},
        "lora": {"rank": 8, "alpha": 16, "dropout": 0.1},
        "seq_len": 512,
        "packed": False,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "heldout_ratio": 0.1,
        "optimizer": "adamw8bit",
        "lr": 3e-5,
        "lr_scale": {"deep": 0.1, "0..5": 0.5, "*.mlp.*": 2, "layer_decay": 0.9},
        "betas": [0.9, 0.99],
        "eps": 1e-8,
        "weight_decay": 0,
        "max_grad_norm": 1,
        "schedule": "wsd",
        "warmup_ratio": 0.1,
        "min_lr_ratio": 0,
        "decay_ratio": 0.2,
        "precision": "bfloat16",
        "gradient_checkpointing": True,
        "compile": False,
        "max_steps": 10,
        "max_minutes": 1.5,
        "checkpoint_minutes": 0,
        "divergence": "warn",
        "trackers": ["tensorboard"],
    },
    "evaluate": {
        "bits_per_byte": [{"name": "news", "path": "news/*.txt", "field": "text"}],
        "max_tokens": "100k",
        "context": 512,
        "prompts": ["Once"],
        "new_tokens": 8,
        "gate": "limits.yaml",
        "every": 50,
        "retention": 0.01,
    },
}
for section in ("train", "trace", "evaluate"):  # a new setting needs no line above
    for key, described in json_schema()["$defs"][section.capitalize()]["properties"].items():
        VALUES[section].setdefault(key, described.get("default"))
del VALUES["train"]["stages"]  # beside which `tokens` is refused
TRIAL: dict[str, Any] = {
    "arms": {"one": {"train.lr": [1e-4, 2e-4]}, "two": {"train": {"lora": {"rank": 2}}}},
    "seeds": [0, 1],
    "lr": [1e-4],
    "primary": "exam-en accuracy",
    "parts": "freeze",
    "evaluate": {
        "items": [
            {"name": "exam-en", "shots": 2, "style": "text"},
            {"name": "own", "path": "own.jsonl", "examples": "shots.jsonl", "language": "zh"},
        ],
        "recall": [8, 32],
    },
    "keep": "all",
}
STRANGERS = (-1, 15, 0.5, True, "a", "", [1, "0..3"], {"a": "x"})


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def plain(text: str) -> Any:
    return read_yaml(text, Tree(), str)


def test_recipes_and_starter_are_valid(validator) -> None:
    for text in [starter(), *(path.read_text() for path in RECIPES.rglob("*.yaml"))]:
        validator.validate(plain(text))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("sed",), 3),
        (("seed",), None),
        (("layout", "host"), None),
        (("seed",), -1),
        (("name",), "a/b"),
        (("donors",), {}),
        (("donors", "a.b"), "x"),
        (("donors", "a", "allow"), ["pickel"]),
        (("donors", "a"), {}),
        (("layout", "deep"), "a"),
        (("layout", "boundary"), 0.5),
        (("layout", "slices"), []),
        (("layout", "slices", 0, "layers"), "3-4"),
        (("layout", "slices", 0, "layers"), []),
        (("layout", "slices", 0, "blend"), VALUES["layout"]["slices"][5]["blend"]),
        (("layout", "slices", 5, "layers"), 3),
        (("layout", "slices", 5, "blend", "sources"), [{"donor": "a"}]),
        (("layout", "slices", 5, "blend", "parameters", "t"), "x"),
        (("layout", "slices", 2, "mixer"), {"kind": "mamba3"}),
        (("layout", "slices", 2, "blend"), VALUES["layout"]["slices"][5]["blend"]),
        (("layout", "slices", 4, "donor"), "a"),
        (("layout", "slices", 4, "mixer"), {"kind": "mamba2"}),
        (("layout", "slices", 0, "count"), 2),
        (("donors", "a", "fingerprint"), "sha256:abc"),
        (("output", "dtype"), "fp16"),
        (("trace", "mask_ratio"), 1.5),
        (("trace", "lens"), "logit"),
        (("output", "max_shard_bytes"), "5 gigs"),
        (("train", "tokens"), "2 millions"),
        (("train", "tokens"), 0),
        (("train", "freeze"), "deeep"),
        (("train", "freeze"), []),
        (("train", "lr"), 0),
        (("train", "betas"), [0.9]),
        (("train", "heldout_ratio"), 1),
        (("train", "data"), []),
        (("train", "data", 0, "weight"), 0),
        (("train", "lr_scale"), 0.1),
        (("train", "lr_scale", "deep"), 0),
        (("train", "stages"), [{"tokens": "1M"}]),
        (("train", "lora", "rank"), 0),
        (("train", "objective"), "next-tokens"),
        (("train", "objective", "distill", "weight"), 0),
        (("evaluate", "bits_per_byte", 0), {"name": "x"}),
    ],
)
def test_known_mistakes_are_invalid(validator, path: tuple[Any, ...], value: Any) -> None:
    assert validator.is_valid(VALUES)
    assert not validator.is_valid(changed(VALUES, path, value))


def test_a_list_of_stages_stands_in_the_place_of_the_tokens(validator) -> None:
    train = {"data": [{"path": "x"}], "stages": [{"tokens": "1M"}, {"tokens": "1M", "freeze": "none", "lr": 1e-5}]}
    assert validator.is_valid(VALUES | {"train": train})
    for wrong in ({"lr": 1e-5}, {"tokens": "1M", "seq_len": 64}, {"tokens": "1M", "lr": 0}):
        assert not validator.is_valid(VALUES | {"train": {**train, "stages": [wrong]}}), wrong
    assert not validator.is_valid(VALUES | {"train": {"data": [{"path": "x"}]}})


def test_both_ways_to_lay_out_exclude_each_other(validator) -> None:
    dial = {"host": "a", "deep": "a", "shallow": "b"}
    assert validator.is_valid(VALUES | {"layout": dial})
    assert not validator.is_valid(VALUES | {"layout": {"host": "a", "deep": "a"}})
    assert not validator.is_valid(VALUES | {"layout": {"deep": "a", "shallow": "b"}})
    assert validator.is_valid({"donors": {"a": "x"}, "layout": {"deep": "a", "shallow": "a"}})


def test_every_key_is_described(validator) -> None:
    sections = [validator.schema, *validator.schema["$defs"].values()]
    for section in sections:
        assert section["additionalProperties"] is False
        assert section["title"] and not section["title"].endswith("Model")
        for key, value in section["properties"].items():
            assert value.get("description"), key


@pytest.mark.slow
def test_whatever_loads_is_valid(validator, tmp_path: Path) -> None:
    dial = VALUES | {"layout": {"host": "a", "deep": "a", "shallow": "b", "boundary": 0.5}}
    budget = VALUES | {"layout": {"host": "a", "candidates": 9}}
    swap = {"mixer": {"kind": "mamba2", "init": "attention", "fit": "ridge"}, "donor": "a", "count": 0.5, "place": "kl"}
    swap |= {"seed": 1, "score_tokens": 64, "zero_output": False}
    swapped = VALUES | {"layout": {"host": "a", "swap": swap, "calibration": {"path": "x.txt"}}}
    timed = {key: value for key, value in VALUES["train"].items() if key != "max_minutes"}  # which a trial refuses
    tried = VALUES | {"train": timed, "trial": TRIAL}
    stage = {key: VALUES["train"][key] for key in keys_of(Stage) if key != "name"} | {"name": "first"}
    staged = VALUES | {"train": {"data": VALUES["train"]["data"], "stages": [stage]}}
    align = changed(VALUES, ("train", "objective"), {"align": {"teacher": "b", "at": 3, "loss": "mse", "weight": 1}})
    kept = changed(VALUES, ("train", "objective"), {"distill": {"teacher": "b", "top_k": 8}})
    keys = {key for section in [validator.schema, *validator.schema["$defs"].values()] for key in section["properties"]}
    loaded = (VALUES, dial, budget, swapped, tried, staged, align, kept)
    assert keys <= {step for values in loaded for path in paths(values) for step in path}
    num_loaded = 0
    starts = [
        *((VALUES, path) for path in paths(VALUES)),
        *((dial, path) for path in paths(dial) if path[0] == "layout"),
        *((budget, path) for path in paths(budget) if path[0] == "layout"),
        *((swapped, path) for path in paths(swapped) if path[0] == "layout"),
        *((tried, path) for path in paths(tried) if path[0] == "trial"),
        *((staged, path) for path in paths(staged) if path[:2] == ("train", "stages")),
        *((align, path) for path in paths(align) if "objective" in path),
        *((kept, path) for path in paths(kept) if "top_k" in path),
    ]
    for start, path in starts:
        for stranger in STRANGERS:
            values = changed(start, path, stranger)
            file = tmp_path / "recipe.yaml"
            file.write_text(json.dumps(values))
            try:
                load_recipe(file)
            except RecipeError as error:
                assert all(problem.where and problem.what and problem.fix for problem in error.problems)
            else:
                num_loaded += 1
                assert validator.is_valid(values), (path, stranger)
    assert num_loaded > 30


def paths(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from paths(value, (*path, key))


def changed(values: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    values = copy.deepcopy(values)
    holder: Any = values
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    return values
