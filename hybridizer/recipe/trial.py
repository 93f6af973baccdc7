"""The `trial` section of a recipe: arms, each a set of overrides, that are trained and compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic.dataclasses import dataclass

from hybridizer.core.errors import DidYouMean
from hybridizer.recipe.dump import to_yaml
from hybridizer.recipe.fields import MAX_LEARNING_RATE, Name, Text, WrittenAs, as_validator, refusal
from hybridizer.recipe.measures import MAX_PAIRS, ItemsEntry
from hybridizer.recipe.sizes import MAX_SEED
from hybridizer.recipe.train import Train
from hybridizer.recipe.tree import clip, show

# As in recipe.models: built together with the root.
_CONFIG = ConfigDict(extra="forbid", defer_build=True)
WITH_TABLE = "+table"  # an arm whose name ends so trains embedding and head too
IN_DOMAIN = "in-domain"
NO_TRIAL = "none"  # in place of the section
TEXT_METRICS, ITEM_METRICS, RECALL_METRICS = (
    ("bits_per_byte",),
    ("accuracy", "answer_bits", "margin_bits"),
    ("accuracy",),
)
ALL_METRICS = (*TEXT_METRICS, *ITEM_METRICS)
RATE_KEY = "train.lr"
# What all arms share: the text and its order, the held-out documents, the budget and the schedule.
SHARED = (
    "name", "seed", "trial", "evaluate", "train.data", "train.tokens", "train.seq_len", "train.packed",
    "train.global_batch_size", "train.heldout_ratio", "train.max_steps", "train.max_minutes", "train.schedule",
    "train.warmup_ratio", "train.min_lr_ratio", "train.decay_ratio",
)  # fmt: skip

# Those of them that a stage may give itself.
SHARED_IN_STAGES = ("global_batch_size", "schedule", "warmup_ratio", "min_lr_ratio", "decay_ratio")
STAGES_KEY = "train.stages"


class Arm(NamedTuple):
    """One arm: its name, and what it changes in the recipe, as dotted keys with their values."""

    name: str
    overrides: tuple[tuple[str, Any], ...]


Arms: TypeAlias = tuple[Arm, ...]


def _read_arms(arms: Mapping[str, Mapping[str, Any]]) -> Arms:
    return tuple(Arm(name, tuple(_flatten(overrides, ""))) for name, overrides in arms.items())


def _flatten(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    """`{train: {freeze: deep}}` is `{train.freeze: deep}`; other keys of the section stay as the recipe has them.

    A section with dots in its keys, as patterns of `lr_scale` have, is one value.
    """
    for key, value in values.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and value and not any("." in str(inner) for inner in value):
            yield from _flatten(value, f"{path}.")
        else:
            yield path, tuple(value) if isinstance(value, list) else value


def _read_whole_numbers(value: object, what: str, low: int, high: int) -> tuple[int, ...]:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    wrong = [n for n in numbers if isinstance(n, bool) or not isinstance(n, int) or not low <= n <= high]
    if wrong or not numbers:
        fix = f"Write it as [{low}, {low + 1}]."
        raise refusal(f"must be a list of {what} from {low} to {high}; got {show(wrong[0] if wrong else value)}.", fix)
    return _once(tuple(numbers))


def _read_seeds(value: object) -> tuple[int, ...]:
    return _read_whole_numbers(value, "whole numbers", 0, MAX_SEED)


def _read_pairs(value: object) -> tuple[int, ...]:
    return () if value in ([], ()) else _read_whole_numbers(value, "numbers of pairs", 2, MAX_PAIRS)


def _read_rates(value: object) -> tuple[float, ...]:
    rates = value if isinstance(value, (list, tuple)) else [value]
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= MAX_LEARNING_RATE:
            what = f"must be learning rates above 0 and at most {MAX_LEARNING_RATE:g}; got {show(rate)}."
            raise refusal(what, "Write a list such as [1e-4, 2e-4].")
    return _once(tuple(map(float, rates)))


def _once(numbers: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [number for number in numbers if numbers.count(number) > 1]
    if twice:
        raise refusal(
            f"must be different numbers, each of its own run; got {twice[0]} twice.", "Give each number once."
        )
    return numbers


_NUMBER = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_LEARNING_RATE}


def _one_or_list(item: dict[str, Any], least: int) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": least, "uniqueItems": True}]})


Seeds: TypeAlias = Annotated[
    tuple[int, ...],
    PlainValidator(as_validator(_read_seeds)),
    _one_or_list({"type": "integer", "minimum": 0, "maximum": MAX_SEED}, 1),
]
Rates: TypeAlias = Annotated[tuple[float, ...], PlainValidator(as_validator(_read_rates)), _one_or_list(_NUMBER, 0)]
PairCounts: TypeAlias = Annotated[
    tuple[int, ...],
    PlainValidator(as_validator(_read_pairs)),
    _one_or_list({"type": "integer", "minimum": 2, "maximum": MAX_PAIRS}, 0),
]


@dataclass(frozen=True, config=_CONFIG)
class TrialEvaluate:
    """What arms are measured on, besides held-out training text and the texts of the recipe's `evaluate` section."""

    items: tuple[ItemsEntry, ...] = Field(
        default=(), description="multiple-choice items", examples=[[{"name": "exam-en", "style": "text"}]]
    )
    recall: PairCounts = Field(default=(), description="numbers of pairs of the recall probe", examples=[[8, 32]])


@dataclass(frozen=True, config=_CONFIG)
class Trial:
    """A controlled trial: arms that differ in their overrides alone, each trained with several seeds, and compared.

    `hybridize trial` runs it; `build` builds the recipe without it.
    """

    arms: Annotated[Arms, WrittenAs(dict[Name, dict[str, Any]], _read_arms)] | None = Field(
        default=None,
        description="named sets of overrides; deep, shallow, full, lora and last-4 if left out",
        examples=[{"deep": {"train.freeze": "deep"}, "full": {"train.freeze": "none"}}],
    )
    seeds: Seeds = Field(default=(0, 1, 2), description="one run of each arm for each seed")
    lr: Rates = Field(
        default=(),
        description="learning rates to choose from for each arm, by held-out documents that are not reported; the "
        "recipe's own if left out",
        examples=[[1e-4, 2e-4]],
    )
    primary: Text = Field(
        default=IN_DOMAIN,
        description="the outcome that the trial is about: in-domain, or the name of a text or task, with a metric "
        "after it if it has several",
    )
    parts: Literal["freeze", "train", "recipe"] = Field(
        default="freeze",
        description="the fate of embedding, final norm and head in all arms, where neither recipe nor arm names it; "
        f"recipe: as without a trial; an arm called NAME{WITH_TABLE} trains embedding and head",
    )
    evaluate: TrialEvaluate = Field(default_factory=TrialEvaluate, description="what is measured besides text")
    keep: Literal["none", "all"] = Field(
        default="none", description="the models that stay on disk once they are measured; records always do"
    )


def choose_primary(primary: str, outcomes: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[str, str]:
    """The text or task and the metric that `primary` names.

    `outcomes` are names with their metrics, the main one first; the first name is what "in-domain" stands for. Raises
    RecipeError, without a place, for what is not there.
    """
    name, _, metric = primary.rpartition(" ")
    if not (name and metric in ALL_METRICS):
        name, metric = primary, ""
    known = {IN_DOMAIN: outcomes[0][1], **dict(outcomes)}
    if name not in known:
        raise refusal(f"`primary` is '{clip(name)}', which this trial does not measure.", DidYouMean(name, known))
    if metric and metric not in known[name]:
        what = f"`primary` asks for {metric} of '{clip(name)}', which has {', '.join(known[name])}."
        raise refusal(what, "Name one of them.")
    return outcomes[0][0] if name == IN_DOMAIN else name, metric or known[name][0]


def as_override(key: str, value: Any) -> str:
    """`key=value` as `--set` takes it, from which the same value is read."""
    if isinstance(value, str):
        return f"{key}={to_yaml({'_': value}).removeprefix('_: ').strip()}"
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def rates_of(trial: Trial, arm: Arm, own: float) -> tuple[float, ...]:
    """The learning rates that `arm` chooses from: its own, else the trial's, else the recipe's `own`."""
    given = dict(arm.overrides).get(RATE_KEY)
    if given is None:
        return trial.lr or (own,)
    rates = _read_rates(given)
    if not rates:
        raise refusal(f"`{RATE_KEY}` lists no learning rate.", "Give one or more, such as [1e-4, 2e-4].")
    return rates


def idle_in_stages(rates: Sequence[float], arm: Arm, train: Train | None) -> Iterator[tuple[str, str]]:
    """(what is wrong, fix) for each key of `arm` that has no effect, because every stage of its `train` gives it.

    `rates` are the trial's learning rates.
    """
    stages = (train.stages if train else None) or ()
    if not stages:
        return
    keys = [key for key, _ in arm.overrides]
    if len(rates) > 1 and RATE_KEY not in keys:
        keys.append(RATE_KEY)
    for key in keys:
        section, _, name = key.partition(".")
        if section == "train" and all(name in stage.changes for stage in stages):
            what = f"has `{key}` of its own, and each of its stages gives `{name}`, so that it has no effect."
            yield what, f"Leave `{name}` out of a stage, or set train.stages.0.{name}."


def fixed_parts(trial: Trial, arm: Arm, base: Mapping[str, str]) -> dict[str, str]:
    """The overrides that `arm` gets so that embedding, final norm and head have the same fate as in other arms.

    `base` has the recipe's own values of `embedding`, `final_norm` and `head`. What the arm names itself stays; of
    embedding and head, which may be one tensor, the one that is not named follows the other.
    """
    own = {key.removeprefix("train."): value for key, value in arm.overrides}
    if arm.name.endswith(WITH_TABLE) and not {"embedding", "head"} & own.keys():
        own |= {"embedding": "train", "head": "train"}
    fallback = {} if trial.parts == "recipe" else {"embedding": trial.parts, "head": trial.parts}
    named = {part: value for part, value in base.items() if value != "side"}
    table = next((s for s in (own, named, fallback) if "embedding" in s or "head" in s), {})
    found = {}
    for part, other in (("embedding", "head"), ("head", "embedding")):
        if table:
            found[part] = table.get(part) or table[other]
    norm = own.get("final_norm") or named.get("final_norm") or (None if trial.parts == "recipe" else trial.parts)
    found |= {} if norm is None else {"final_norm": norm}
    given = dict(arm.overrides)
    return {f"train.{part}": value for part, value in found.items() if f"train.{part}" not in given}
