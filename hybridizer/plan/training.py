"""Recipe and spliced plan -> what trains: frozen layers and parts, the texts pinned by content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hybridizer.checkpoint.hashing import fingerprint_files
from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import HybridizerError, InputError, Problem, RecipeError
from hybridizer.data.documents import find_files, look_for_document
from hybridizer.data.hub import pin_dataset
from hybridizer.donors.donor import Donor
from hybridizer.families.structure import Structure
from hybridizer.families.targets import TARGETS
from hybridizer.plan.default_stages import add_default_stages
from hybridizer.plan.freeze import REST, FreezeChoice, choose_frozen, with_adapters
from hybridizer.plan.generated import describe_generation, place_generated
from hybridizer.plan.identity import freeze_originals
from hybridizer.plan.make import make_plan
from hybridizer.plan.objective import resolve_objective
from hybridizer.plan.plan import DataPin, Evidence, Plan, StagePlan, TrainPlan, never_trained
from hybridizer.plan.rates import find_faults, find_idle, rate_lines, scale_tensors
from hybridizer.recipe.fields import MAX_LEARNING_RATE
from hybridizer.recipe.layers import first_deep_layer
from hybridizer.recipe.models import HUB_KEYS, DataEntry, Recipe, Train, plain
from hybridizer.recipe.tree import KeyPath

# Packages of a tracker, where their names differ from the tracker's.
_TRACKED_BY = {"tensorboard": ("tensorboard", "tensorboardX")}
# Weights of losses on the choice of experts, as families name them in their configs.
ROUTER_LOSSES = ("router_aux_loss_coef", "aux_loss_coef", "aux_loss_alpha", "moe_loss_weight", "router_z_loss_coef")
# Keys that decide when a training stops or saves, and keys whose meaning the plan holds in other words. A training that
# `max_steps` or `max_minutes` ended resumes when they are raised, under the same plan.
_ELSEWHERE = {
    "max_steps", "max_minutes", "checkpoint_minutes", "trackers", "divergence", "data", "freeze", "embedding",
    "final_norm", "head", "stages",
}  # fmt: skip


def pin_texts(recipe: Recipe, donors: Mapping[str, Donor]) -> Recipe:
    """The recipe with its texts known by content: hub datasets get their commits, what donors write its identity.

    Raises what `pin_datasets` and `place_generated` raise.
    """
    return place_generated(pin_datasets(recipe), donors)


def settle_training(recipe: Recipe, donors: Mapping[str, Donor]) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with all that its layers decide about its training, and sentences about what was chosen.

    Swapped and new layers get stages where it names none, `freeze: originals` its layers. The layout is resolved.
    Raises what `freeze_originals` raises.
    """
    staged, reasons = add_default_stages(recipe, donors)
    return freeze_originals(staged, donors), reasons


def pin_datasets(recipe: Recipe) -> Recipe:
    """The recipe with every hub dataset at the commit that its branch or tag names now; the hub is asked once.

    A folder that stands for a dataset, relative to the recipe, gets its whole path. Raises RecipeError at the lines of
    datasets that the hub does not have, and of folders with a revision.
    """
    if recipe.train is None:
        return recipe
    problems: list[Problem] = []
    pinned = list(recipe.train.data)
    for index, entry in enumerate(recipe.train.data):
        if entry.hub is None:
            continue
        where, folder = recipe.locate(("train", "data", index)), recipe.folder / entry.hub
        if not folder.is_dir():
            with _collecting(problems, where):
                pinned[index] = replace(entry, revision=pin_dataset(entry.hub, entry.revision))
        elif entry.revision is not None:
            problems.append(Problem(where, f"`{entry.hub}` is a folder here, without revisions.", "Delete `revision`."))
        else:
            pinned[index] = replace(entry, hub=str(folder.absolute()))
    if problems:
        raise RecipeError(*problems)
    return replace(recipe, train=replace(recipe.train, data=tuple(pinned)))


def check_texts(recipe: Recipe, plan: Plan) -> None:
    """Return if the texts have the content that was planned. Raises InputError naming the first that has not."""
    problems: list[Problem] = []
    found = _pin_data(recipe, recipe.train_section, True, problems)
    if problems:
        raise InputError(*problems)
    for entry, pin, planned in zip(recipe.train_section.data, found, plan.train_plan.data, strict=True):
        if pin != planned:
            what = "its content changed after planning."
            raise InputError(
                Problem(entry.name, what, "Run the command again, and do not change the texts while it runs.")
            )


def plan_with_training(
    recipe: Recipe,
    donors: Mapping[str, Donor],
    evidence: Evidence,
    teachers: Sequence[Donor | None] = (None,),
    *,
    pin: bool,
) -> Plan:
    """The plan of the model and, if the recipe has one, of its training: `make_plan`, then `plan_training`."""
    plan = make_plan(recipe, donors, evidence)
    return plan_training(recipe, plan, donors[plan.host].structure, pin=pin, teachers=teachers)


def plan_training(
    recipe: Recipe, plan: Plan, host: Structure, *, pin: bool, teachers: Sequence[Donor | None] = (None,)
) -> Plan:
    """`plan` with its training, if the recipe has one; the layout is resolved, `host` gives embedding and head.

    `teachers` has the donor that the objective of each stage needs, None for next-token.
    With `pin` the texts are hashed; without, only their existence is checked. Raises RecipeError, at lines of the
    recipe, for layers that do not exist, a choice that freezes everything, rows longer than the model takes, packages
    that are not installed, and text files that are missing or of an unknown kind.
    """
    train = recipe.train
    if train is None:
        return plan
    problems = [*_cannot_train(recipe, plan), *_long_rows(recipe, train, host), *_missing_packages(recipe, train)]
    boundary = _boundary(recipe, plan)
    stages: list[StagePlan] = []
    for index, (name, settings) in enumerate(zip(train.stage_names or ("",), train.as_stages(), strict=True)):
        try:
            stages.append(_plan_stage(recipe, name, settings, plan, boundary, host, teachers[index]))
        except RecipeError as error:
            problems += [replace(p, where=_locate_in_stage(recipe, index, p.where)) for p in error.problems]
    data = _pin_data(recipe, train, pin, problems)
    if problems:
        raise RecipeError(*problems)
    notes = tuple(_router_loss(plan))
    if train.stages is not None:
        training = TrainPlan(boundary, **never_trained(stages), settings={}, data=data, notes=notes, stages=(*stages,))
    else:
        (one,) = stages
        training = TrainPlan(boundary, one.frozen_layers, one.frozen_parts, one.settings, data, (*one.notes, *notes))
    return replace(plan, train=training)


def _locate_in_stage(recipe: Recipe, index: int, where: str) -> str:
    """The line of `train.<key>`, or of `train.<key>.<key>`, that holds for the stage `index`."""
    # The last key of `lr_scale` may have dots of its own.
    train, keys = recipe.train_section, where.split(".", 2)[1:] if "lr_scale" in where else where.split(".")[1:]
    own = train.stages is not None and (
        keys[0] in train.stages[index].changes or ("train", keys[0]) not in recipe.places
    )
    return recipe.locate(("train", "stages", index, *keys) if own else ("train", *keys))


def _plan_stage(
    recipe: Recipe, name: str, train: Train, plan: Plan, boundary: int, host: Structure, teacher: Donor | None
) -> StagePlan:
    """The plan of one stage of `recipe`, whose keys are those of `train`. Raises RecipeError at `train.<key>`."""
    choice = choose_frozen(train, len(plan.layers), boundary, host.tied)
    if train.lora is not None:
        choice = with_adapters(choice)
    settings = {key: value for key, value in plain(train).items() if key not in _ELSEWHERE}
    settings["compile"] = train.compile is True  # `auto` depends on the device, which a plan does not
    settings |= _kept(recipe)
    notes = choice.notes
    if train.frozen_dtype == "keep":
        del settings["frozen_dtype"]  # as in plans of versions without it
    elif not choice.frozen_layers and train.lora is None:
        notes += ("frozen_dtype has no effect: no layer is frozen",)
    if train.objective is not None:
        assert teacher is not None, "an objective has a teacher"
        settings["objective"], more = resolve_objective(recipe.layout, train, plan, choice, host, teacher)
        notes += more
    if train.lr_scale is not None:
        settings["lr_scale"] = [list(pair) for pair in train.lr_scale]  # their order counts
        notes = (*notes, *_plan_rates(train, choice, plan, host))
    return StagePlan(name, choice.frozen_layers, choice.frozen_parts, settings, notes)


def _plan_rates(train: Train, choice: FreezeChoice, plan: Plan, host: Structure) -> Iterator[str]:
    """Notes about the learning rates of `lr_scale`. Raises RecipeError at `train.lr_scale` for what it does not fit."""
    scales = train.lr_scale or ()
    places = _places(plan, host)
    trained = {name: place for name, place in places.items() if place not in choice.frozen_places}
    faults = list(find_faults(scales, places, choice.boundary, choice.num_layers))
    factors = scale_tensors(scales, trained, choice.boundary, choice.num_layers)
    highest = train.lr * max(factors.values(), default=0.0)
    if highest > MAX_LEARNING_RATE:
        faults.append(("", f"gives a learning rate of {highest:g}; at most {MAX_LEARNING_RATE:g}.", "Lower a factor."))
    if train.lora is not None:
        faults.append(("", "has no effect on adapters, whose tensors have other names.", "Delete one of the two."))
    if faults:
        raise RecipeError(*(Problem(f"train.lr_scale.{key}", what, fix) for key, what, fix in faults))
    yield "peak learning rates: " + "; ".join(rate_lines(factors, trained, train.lr))
    if idle := find_idle(scales, trained, choice.boundary):
        yield f"lr_scale has no effect for {', '.join(f'`{key}`' for key in idle)}: nothing there trains"


def _places(plan: Plan, host: Structure) -> dict[str, str]:
    """The place of every output tensor, as the training names places."""
    parts = {"embedding": host.embedding, "final norm": host.final_norm, "head": host.head}
    places = {name: part for part, names in parts.items() for name in names}
    layers = {
        tensor.name: f"layer {rest.partition('.')[0]}"
        for tensor in plan.tensors
        if (rest := tensor.name.removeprefix(host.layer_prefix)) != tensor.name
    }
    return {tensor.name: {**places, **layers}.get(tensor.name, REST) for tensor in plan.tensors}


def _kept(recipe: Recipe) -> dict[str, Any]:
    """What decides which step's weights are the result, where that is not the last: in the hash only then."""
    evaluate = recipe.evaluate
    if evaluate is None or evaluate.keep == "last":
        return {}
    return {key: getattr(evaluate, key) for key in ("keep", "every", "curve_tokens", "context")}


def _router_loss(plan: Plan) -> Iterator[str]:
    """A note where the config has a load-balancing loss of experts: the training loss is the next token's alone."""
    for config in (plan.config, plan.config.get("text_config") or {}):
        weights = {key: config[key] for key in ROUTER_LOSSES if config.get(key)}
        if weights:
            found = ", ".join(f"{key}: {weight}" for key, weight in weights.items())
            yield f"the load-balancing loss of the experts ({found}) is not added to the training loss"


def check_packages(recipe: Recipe) -> None:
    """Return if every package that the training of `recipe` needs is installed; RecipeError names all that are not."""
    if recipe.train is not None and (problems := list(_missing_packages(recipe, recipe.train))):
        raise RecipeError(*problems)


def _cannot_train(recipe: Recipe, plan: Plan) -> Iterator[Problem]:
    target = TARGETS.get(plan.config.get("model_type", ""))
    names = [tensor.name for tensor in plan.tensors if target is not None and tensor.name.endswith(target.renamed)]
    if target is not None and target.renamed and names:
        what = f"the model is of the family {target.family} and cannot be trained here: transformers saves "
        what += f"'{names[0]}' under another name than it reads."
        fix = "Delete `train`, or take donors that another family holds: `hybridize plan` names the family."
        yield Problem(recipe.locate(("train",)), what, fix)


def _long_rows(recipe: Recipe, train: Train, host: Structure) -> Iterator[Problem]:
    if host.max_tokens is not None and host.max_tokens < train.seq_len:
        what = f"rows of {train.seq_len} tokens; the model takes {host.max_tokens}."
        yield Problem(recipe.locate(("train", "seq_len")), what, f"Give at most {host.max_tokens}.")


def _missing_packages(recipe: Recipe, train: Train) -> Iterator[Problem]:
    """A problem for every package that this training needs and that is not installed here; none is imported."""
    needed: list[tuple[KeyPath, str, tuple[str, ...]]] = [
        (("train", "trackers"), f"the tracker {name}", _TRACKED_BY.get(name, (name,))) for name in train.trackers
    ]
    if train.lora is not None:
        needed.append((("train", "lora"), "training low-rank adapters", ("peft",)))
    if train.optimizer == "adamw8bit":
        needed.append((("train", "optimizer"), "adamw8bit", ("bitsandbytes",)))
    hubs = [index for index, entry in enumerate(train.data) if entry.hub is not None]
    needed += [(("train", "data", index), "a hub dataset", ("datasets",)) for index in hubs]
    for path, what, packages in needed:
        if not any(find_spec(package) for package in packages):
            yield Problem(recipe.locate(path), f"{what} needs the package {packages[0]}.", f"pip install {packages[0]}")


def _boundary(recipe: Recipe, plan: Plan) -> int:
    """The first deep layer of the output; for slices, which have none, the midpoint as in arXiv 2605.11416."""
    layout = recipe.layout
    if layout.slices or layout.shallow is None:
        return first_deep_layer(0.5, len(plan.layers))
    assert isinstance(layout.boundary, (int, float)), "strategies are resolved before training is planned"
    return first_deep_layer(layout.boundary, plan.donors[layout.shallow].num_layers)


def _pin_data(recipe: Recipe, train: Train, pin: bool, problems: list[Problem]) -> tuple[DataPin, ...]:
    """The pin of every source; sources and general texts that do not exist are added to `problems`."""
    pins: list[DataPin] = []
    for index, text in enumerate(recipe.evaluate.bits_per_byte if recipe.evaluate else ()):
        where = recipe.locate(("evaluate", "bits_per_byte", index))
        with _collecting(problems, where):
            _find_documents(recipe, text.path, text.field, DataEntry.max_document_bytes)
    for index, entry in enumerate(train.data):
        with _collecting(problems, recipe.locate(("train", "data", index))):
            pins.append(_pin_entry(recipe, entry, pin))
    return tuple(pins)


@contextmanager
def _collecting(problems: list[Problem], where: str) -> Iterator[None]:
    """Add the problems of an error inside the block to `problems`, as those of the line `where`."""
    try:
        yield
    except HybridizerError as error:
        problems += [Problem(where, f"`{p.where}`: {p.what}", p.fix) for p in error.problems]


def _pin_entry(recipe: Recipe, entry: DataEntry, pin: bool) -> DataPin:
    common = {"weight": entry.weight, "field": entry.field, "max_document_bytes": entry.max_document_bytes}
    if entry.generate is not None:  # by what it is made from: it is written when the model is built
        made = describe_generation(entry.generate, recipe.folder)
        return DataPin({**common, "generate": made, "content": entry.generate.identity})
    if entry.path is None:
        assert entry.hub is not None, "checked when the recipe was loaded"
        hub = {key: getattr(entry, key) for key in HUB_KEYS if key != "revision"}
        return DataPin({**common, **hub, "content": pin_dataset(entry.hub, entry.revision) if pin else ""})
    files = _find_documents(recipe, entry.path, entry.field, entry.max_document_bytes)
    hashes = [fingerprint_files({"": path}, cache_folder()) for path in files] if pin else []
    return DataPin(common, tuple(hashes))


def _find_documents(recipe: Recipe, pattern: str, text_field: str, max_bytes: int) -> tuple[Path, ...]:
    """The files of `pattern`. Raises InputError where there are none, or no usable document in them."""
    files = find_files(pattern, recipe.folder)
    if problem := look_for_document(pattern, files, text_field, max_bytes):
        raise InputError(problem)
    return files
