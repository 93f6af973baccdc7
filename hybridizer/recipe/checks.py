"""Rules that hold between keys: names that must be donors, keys that exclude each other, blends whose sides must match.

They read the plain values before validation, so that a mistake in one place does not hide a mistake in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hybridizer.core.errors import DidYouMean, RecipeError
from hybridizer.recipe.fields import read_name
from hybridizer.recipe.layers import MAX_LAYERS, count, read_ranges, warn_of_pair
from hybridizer.recipe.mixer import EVIDENCE_PLACES, MEASURED_PLACES, Swap
from hybridizer.recipe.models import AUTO, HUB_KEYS, ORIGINALS, Recipe
from hybridizer.recipe.train import FILE_KEYS
from hybridizer.recipe.tree import Finding, KeyPath, Tree, clip, locate, name_of, show

_DIAL = ("deep", "shallow", "boundary")
_WHOLE = {  # ways to give all layers, and what each says of other keys beside it
    "candidates": "leaves every layer to a scan, and other keys choose layers too",
    "slices": "gives the layout in full, and other keys give it too",
    "swap": "takes all layers of one donor, and other keys choose layers too",
}


def check(tree: Tree, default_name: str) -> Iterator[Finding]:
    """Every broken rule in `tree`, whose root is a dict; `default_name` names the run where the recipe does not."""
    if "name" not in tree.values:
        yield from _check_default_name(default_name)
    layout, donors = tree.values.get("layout"), _section(tree.values, "donors")
    if isinstance(layout, dict):
        pieces = list(_walk_slices(layout))
        yield from _check_dial(layout, tree)
        yield from _check_host(layout, donors)
        yield from _check_names(layout, pieces, donors)
        for path, piece in pieces:
            yield from _check_slice(path, piece)
        yield from _check_total(pieces)
        yield from _check_sizes(layout, pieces)
        yield from _check_swap(layout)
    yield from _check_training(tree.values)
    yield from _check_writers(_section(tree.values, "train"), donors)


def warn_of_pairs(recipe: Recipe) -> list[str]:
    """Warnings about lists of two layers, in slices, blends and `train.freeze`, that look like mergekit's ranges."""
    lists: list[tuple[KeyPath, tuple[int, ...] | None]] = []
    for index, piece in enumerate(recipe.layout.slices or ()):
        path: KeyPath = ("layout", "slices", index)
        lists.append(((*path, "layers"), piece.layers))
        for number, source in enumerate(piece.blend.sources if piece.blend else ()):
            lists.append(((*path, "blend", "sources", number, "layers"), source.layers))
    if recipe.train is not None:
        frozen: list[tuple[KeyPath, Any]] = [(("train", "freeze"), recipe.train.freeze)]
        for index, stage in enumerate(recipe.train.stages or ()):
            frozen.append((("train", "stages", index, "freeze"), stage.changes.get("freeze")))
        lists += [(where, layers) for where, layers in frozen if isinstance(layers, tuple)]
    found = [warn_of_pair(layers, recipe.locate(where)) for where, layers in lists if layers is not None]
    return [warning for warning in found if warning is not None]


def _check_default_name(name: str) -> Iterator[Finding]:
    try:
        read_name(name)
    except RecipeError as error:
        what = f"there is no `name`, and the file's name cannot be used: {error.problems[0].what}"
        yield Finding((), what, "Add `name`: letters, digits, - and _.")


def _walk_slices(layout: Mapping[str, Any]) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    slices = layout.get("slices")
    for index, piece in enumerate(slices if isinstance(slices, list) else []):
        if isinstance(piece, dict):
            yield ("layout", "slices", index), piece


def _walk_sources(path: KeyPath, piece: Mapping[str, Any]) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    sources = _section(piece, "blend").get("sources")
    for index, source in enumerate(sources if isinstance(sources, list) else []):
        if isinstance(source, dict):
            yield (*path, "blend", "sources", index), source


def _walk_names(
    layout: Mapping[str, Any], pieces: list[tuple[KeyPath, dict[str, Any]]]
) -> Iterator[tuple[KeyPath, Any]]:
    for key in ("host", "deep", "shallow"):
        yield ("layout", key), layout.get(key)
    yield ("layout", "swap", "donor"), _section(layout, "swap").get("donor")
    for path, piece in pieces:
        yield (*path, "donor"), piece.get("donor")
        yield (*path, "blend", "base"), _section(piece, "blend").get("base")
        for source_path, source in _walk_sources(path, piece):
            yield (*source_path, "donor"), source.get("donor")


def _check_host(layout: Mapping[str, Any], donors: Mapping[str, Any]) -> Iterator[Finding]:
    if "host" not in layout and len(donors) > 1:
        what = f"`layout` has no `host`, and there are {len(donors)} donors."
        fix = f"Add `host`, the donor that gives embeddings, final norm, head and tokenizer: {clip(', '.join(donors))}."
        yield Finding(("layout",), what, fix)


def _check_names(
    layout: Mapping[str, Any], pieces: list[tuple[KeyPath, dict[str, Any]]], donors: Mapping[str, Any]
) -> Iterator[Finding]:
    for path, name in _walk_names(layout, pieces):
        if path in (("layout", "deep"), ("layout", "shallow")) and name == AUTO:
            if AUTO in donors:
                what = f"`{path[-1]}` is auto, which is also a donor's name."
                yield Finding(path, what, "Give the donor another name.")
        elif isinstance(name, str) and name and donors and name not in donors:
            yield Finding(
                path, f"{name_of(path)} names '{clip(name)}', which is not a donor here.", DidYouMean(name, donors)
            )


def _check_dial(layout: Mapping[str, Any], tree: Tree) -> Iterator[Finding]:
    dial = [key for key in _DIAL if key in layout]
    way = next((way for way in _WHOLE if way in layout), None)
    if way is not None:
        others = [key for key in (*dial, *_WHOLE) if key in layout and key != way]
        if others:
            places = ", ".join(f"`{key}` at {locate(tree.places, ('layout', key))}" for key in others)
            fix = f"Keep one way: delete `{way}`, or delete {' and '.join(f'`{key}`' for key in others)}."
            yield Finding(("layout", way), f"`{way}` {_WHOLE[way]}: {places}.", fix)
        return
    missing = [key for key in ("deep", "shallow") if key not in layout]
    if len(missing) == 2:
        fix = "Add `deep` and `shallow`, each with a donor's name, or list the layers in full under `slices`."
        yield Finding(("layout",), "`layout` does not assign donors to layers.", fix)
    elif missing:
        what = f"`layout` has `{dial[0]}` and no `{missing[0]}`."
        yield Finding(("layout",), what, f"Add `{missing[0]}` with a donor's name; it may be the same donor.")


def _check_swap(layout: Mapping[str, Any]) -> Iterator[Finding]:
    swap = _section(layout, "swap")
    mixer = _section(swap, "mixer")
    place, fitted = swap.get("place", Swap.place), mixer.get("fit") == "ridge"
    if place in MEASURED_PLACES and not fitted:
        what = f"`place` is {place}, which scores fitted mixers, and the mixer is not fitted."
        yield Finding(("layout", "swap", "place"), what, "Add `fit: ridge` to the mixer, or choose another `place`.")
    if place in EVIDENCE_PLACES and mixer.get("parallel") is True:
        what = f"`place` is {place}, which says where attention can be missed, and a parallel mixer leaves it there."
        yield Finding(("layout", "swap", "place"), what, "Take uniform, shallow, deep or random.")
    if swap.get("zero_output") is True and fitted:
        what = "`swap` has `zero_output`, and the fit gives the output projection other values."
        yield Finding(("layout", "swap", "zero_output"), what, "Delete it, or delete `fit`.")


def _check_slice(path: KeyPath, piece: Mapping[str, Any]) -> Iterator[Finding]:
    if "donor" in piece and "blend" in piece:
        what = f"{name_of(path)} has both `donor` and `blend`."
        yield Finding((*path, "blend"), what, "Make two entries of it, or move the donor into the blend's `sources`.")
    elif "blend" in piece and "layers" in piece:
        what = f"{name_of(path)} has `layers` beside `blend`, where they have no effect."
        yield Finding((*path, "layers"), what, "Give each of the blend's sources its own `layers`.")
    elif not {"donor", "blend", "fresh"} & piece.keys():
        what = f"{name_of(path)} names no donor."
        yield Finding(path, what, "Add `donor` with a donor's name, a `blend`, or `fresh` with a kind of mixer.")
    for other in ("blend", "mixer", "fresh"):
        if other in piece and "as" in piece:
            what = f"{name_of(path)} has `as` beside `{other}`, and only a donor's own layers can be identity copies."
            yield Finding((*path, "as"), what, "Delete the line, or copy the layers of one donor.")
    yield from _check_new_parts(path, piece)
    sources = list(_walk_sources(path, piece))
    yield from _check_lengths(sources)
    yield from _check_base(path, piece, sources)


def _check_new_parts(path: KeyPath, piece: Mapping[str, Any]) -> Iterator[Finding]:
    """Rules of slices whose layers are new, or get a new mixer."""
    if "fresh" in piece:
        for key in ("donor", "layers", "blend", "mixer"):
            if key in piece:
                what = f"{name_of(path)} has `{key}` beside `fresh`, and new layers come from no donor."
                yield Finding((*path, key), what, "Make two entries of it.")
    elif "count" in piece:
        what = f"{name_of(path)} has `count`, which counts new layers, and no `fresh`."
        yield Finding((*path, "count"), what, "Delete `count`; repeat layers by listing them twice.")
    if "mixer" in piece and "blend" in piece:
        what = f"{name_of(path)} has `mixer` beside `blend`: only layers of one donor can get another mixer."
        yield Finding((*path, "mixer"), what, "Name a `donor`, or delete `mixer`.")
    if piece.get("zero_output") is True and _section(piece, "mixer").get("fit") == "ridge":
        what = f"{name_of(path)} has `zero_output`, and the fit gives the output projection other values."
        yield Finding((*path, "zero_output"), what, "Delete it, or delete `fit`.")
    if piece.get("zero_output") is True and not {"fresh", "mixer"} & piece.keys():
        what = f"{name_of(path)} has `zero_output` and no new part."
        yield Finding((*path, "zero_output"), what, "Delete it, or add `mixer`.")


def _check_lengths(sources: list[tuple[KeyPath, dict[str, Any]]]) -> Iterator[Finding]:
    counts = {where: count(ranges) for where, source in sources if (ranges := _ranges(source)) is not None}
    if len(set(counts.values())) > 1:
        first, *others = counts
        for other in others:
            if counts[other] != counts[first]:
                differ = f"{counts[other]} in {name_of(other)}, {counts[first]} in entry {first[-1]}"
                fix = "Give every source of the blend equally many."
                yield Finding((*other, "layers"), f"the number of layers differs: {differ}.", fix)


def _check_base(
    path: KeyPath, piece: Mapping[str, Any], sources: list[tuple[KeyPath, dict[str, Any]]]
) -> Iterator[Finding]:
    base = _section(piece, "blend").get("base")
    num_named = [source.get("donor") for _, source in sources].count(base)
    if isinstance(base, str) and sources and num_named != 1:
        what = f"`base` is '{clip(base)}', the donor of {num_named or 'none'} of the blend's sources."
        yield Finding((*path, "blend", "base"), what, "Name the donor of exactly one source.")


def _check_total(pieces: list[tuple[KeyPath, dict[str, Any]]]) -> Iterator[Finding]:
    parts = [part for path, piece in pieces for part in (piece, *(source for _, source in _walk_sources(path, piece)))]
    total = sum(count(_ranges(part) or ()) for part in parts) + sum(_count_new(piece) for _, piece in pieces)
    if total > MAX_LAYERS:
        what = f"the slices list {total} layers in all; {MAX_LAYERS} is the limit."
        yield Finding(("layout", "slices"), what, "List fewer layers.")


def _check_sizes(layout: Mapping[str, Any], pieces: list[tuple[KeyPath, dict[str, Any]]]) -> Iterator[Finding]:
    mixers = [_section(piece, "mixer") for _, piece in pieces] + [_section(_section(layout, "swap"), "mixer")]
    if (
        "mixer_sizes" in layout
        and "swap" not in layout
        and not any({"fresh", "mixer"} & piece.keys() for _, piece in pieces)
    ):
        what = "`mixer_sizes` are those of new mixers, and no slice has `fresh` or `mixer`."
        yield Finding(("layout", "mixer_sizes"), what, "Delete it, or add `mixer` to a slice.")
    if "calibration" in layout and not any(mixer.get("fit") == "ridge" for mixer in mixers):
        what = "`calibration` is what mixers are fitted on, and no mixer has `fit: ridge`."
        yield Finding(("layout", "calibration"), what, "Delete it, or add `fit: ridge` to a mixer.")


def _count_new(piece: Mapping[str, Any]) -> int:
    number = piece.get("count", 1) if "fresh" in piece else 0
    return number if isinstance(number, int) else 0  # reported by the models


def _check_training(values: Mapping[str, Any]) -> Iterator[Finding]:
    train, layout = _section(values, "train"), _section(values, "layout")
    if "evaluate" in values and "train" not in values:
        what = "`evaluate` measures what training did, and there is no `train`."
        yield Finding(("evaluate",), what, "Add `train`, or delete `evaluate`.")
    if "trial" in values and "train" not in values:
        what = "`trial` compares trainings, and there is no `train`."
        yield Finding(("trial",), what, "Add `train`, or delete `trial`.")
    yield from _check_frozen(train, layout)
    if train:
        yield from _check_stages(train)
    for part in ("embedding", "final_norm", "head"):
        if "lora" in train and train.get(part) == "train":
            what = f"`{part}` is set to train, and with `lora` only adapters on layers train."
            yield Finding(("train", part), what, f"Delete `{part}`, or delete `lora`.")
    for path, section in [(("train",), train), *_stages(train)]:
        yield from _check_objective((*path, "objective"), section.get("objective"))
    data = train.get("data")
    for index, entry in enumerate(data if isinstance(data, list) else []):
        if isinstance(entry, dict):
            yield from _check_source(("train", "data", index), entry)
    yield from _check_text_names(_section(values, "evaluate").get("bits_per_byte"))
    yield from _check_curve(_section(values, "evaluate"), train)


def _check_frozen(train: Mapping[str, Any], layout: Mapping[str, Any]) -> Iterator[Finding]:
    """What `freeze` asks for, in `train` and in its stages, that the layout does not have."""
    stages = _stages(train)
    listed = next((way for way in ("slices", "swap") if way in layout), None)
    if train and listed and not (stages and all("freeze" in stage for _, stage in stages)):
        yield from _check_sides(("train",), train, listed)
    if listed:
        for path, stage in stages:
            if "freeze" in stage:
                yield from _check_sides(path, stage, listed)
    grown = "swap" in layout or any(
        piece.get("as") == "identity" or {"fresh", "mixer"} & piece.keys() for _, piece in _walk_slices(layout)
    )
    for path, section in [(("train",), train), *stages]:
        if section.get("freeze") == ORIGINALS and not grown:
            what = "`freeze` is originals, which trains layers with something new alone, and the layout has none."
            yield Finding((*path, "freeze"), what, "Add `as: identity`, `mixer` or `fresh` to a slice.")


def _stages(train: Mapping[str, Any]) -> list[tuple[KeyPath, Mapping[str, Any]]]:
    """The stages that are sections, each with its path."""
    stages = train.get("stages")
    numbered = enumerate(stages if isinstance(stages, list) else [])
    return [(("train", "stages", index), stage) for index, stage in numbered if isinstance(stage, dict)]


def _check_sides(path: KeyPath, section: Mapping[str, Any], way: str) -> Iterator[Finding]:
    side = section.get("freeze", "deep")
    if side in ("deep", "shallow"):
        found = f"`freeze` is {side}" if "freeze" in section else "`freeze` is left out, which means deep"
        what = f"{found}, and a layout by `{way}` has no boundary to choose those layers by."
        yield Finding((*path, "freeze") if "freeze" in section else path, what, "List the layers: freeze: 15..29.")


def _check_stages(train: Mapping[str, Any]) -> Iterator[Finding]:
    if "stages" not in train and "tokens" not in train:
        what = "`train` has no `tokens`."
        yield Finding(("train",), what, "Add `tokens`: how many tokens to train on, such as 2M.")
    elif "stages" in train and "tokens" in train:
        what = "`tokens` is given beside `stages`, each of which has its own."
        yield Finding(("train", "tokens"), what, "Delete the line, or delete `stages`.")
    if "stages" in train and "lora" in train:
        what = "`lora` trains adapters that are merged at the end, and `stages` change what trains on the way."
        yield Finding(("train", "lora"), what, "Delete `lora`, or train the stages as recipes of their own.")


def _check_writers(train: Mapping[str, Any], donors: Mapping[str, Any]) -> Iterator[Finding]:
    data = train.get("data")
    for index, entry in enumerate(data if isinstance(data, list) else []):
        name = _section(entry, "generate").get("from") if isinstance(entry, dict) else None
        if isinstance(name, str) and name and donors and name not in donors:
            path = ("train", "data", index, "generate", "from")
            what = f"{name_of(path)} names '{clip(name)}', which is not a donor here."
            yield Finding(path, what, DidYouMean(name, donors))


def _check_objective(path: KeyPath, objective: Any) -> Iterator[Finding]:
    if not isinstance(objective, dict):
        return
    given = [key for key in ("distill", "align") if key in objective]
    if len(given) != 1:
        found = "both `distill` and `align`" if given else "neither `distill` nor `align`"
        yield Finding(path, f"`objective` has {found}.", "Give one of the two, or write `objective: next-token`.")


def _check_source(path: KeyPath, entry: Mapping[str, Any]) -> Iterator[Finding]:
    given = [f"`{key}`" for key in ("path", "hub", "generate") if key in entry]
    if not given:
        found, fix = "neither `path` nor `hub`", "Give one of the two: where the text comes from."
        yield Finding(path, f"{name_of(path)} has {found}.", fix)
    elif len(given) > 1:
        found, fix = " and ".join(given), "Give one of them: where the text comes from."
        yield Finding(path, f"{name_of(path)} has {'both ' if len(given) == 2 else ''}{found}.", fix)
    elif "generate" in entry:
        for key in (*FILE_KEYS, *HUB_KEYS):
            if key in entry:
                what = f"{name_of((*path, key))} has no effect on text that a donor writes."
                yield Finding((*path, key), what, "Delete the line.")
    elif "path" in entry:
        for key in HUB_KEYS:
            if key in entry:
                what = f"{name_of((*path, key))} is for hub datasets, and has no effect on the files of `path`."
                yield Finding((*path, key), what, "Delete the line.")


def _check_text_names(texts: Any) -> Iterator[Finding]:
    names = [text.get("name") for text in texts if isinstance(text, dict)] if isinstance(texts, list) else []
    for index, name in enumerate(names):
        if name is not None and name in names[:index]:
            path = ("evaluate", "bits_per_byte", index, "name")
            yield Finding(path, f"a second text is called {show(name)}.", "Give every text a name of its own.")


def _check_curve(evaluate: Mapping[str, Any], train: Mapping[str, Any]) -> Iterator[Finding]:
    """Keys of the held-out curves that have no effect, or ask for what is not measured."""
    limit, keeps_best = evaluate.get("retention") is not None, evaluate.get("keep") == "best"
    texts, held_out = evaluate.get("bits_per_byte"), train.get("heldout_ratio") != 0
    if not evaluate.get("every"):
        for key, is_set in (("retention", limit), ("keep", keeps_best)):
            if is_set:
                what = f"`{key}` is decided at the measurements of `every`, and there are none."
                yield Finding(("evaluate", key), what, f"Add `every`, such as every: 50, or delete `{key}`.")
    elif not texts and not held_out:
        what = "there is nothing to measure: no text in `bits_per_byte`, and `train.heldout_ratio` is 0."
        yield Finding(("evaluate", "every"), what, "Add a text, hold documents out, or delete `every`.")
    if limit and not texts:
        what = "`retention` limits what general texts lose, and `bits_per_byte` has none."
        yield Finding(("evaluate", "retention"), what, "Add a text, or delete `retention`.")
    if evaluate.get("on_forgetting") == "stop" and not limit:
        what = "`on_forgetting` is stop without a limit on forgetting."
        yield Finding(("evaluate", "on_forgetting"), what, "Add `retention`, such as retention: 0.01.")
    if keeps_best and not held_out:
        what = "`keep` is best, which held-out documents decide, and `train.heldout_ratio` is 0."
        yield Finding(("evaluate", "keep"), what, "Hold documents out, or keep the last weights.")


def _section(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = values.get(key)
    return section if isinstance(section, dict) else {}


def _ranges(part: Mapping[str, Any]) -> tuple[range, ...] | None:
    # A list of layers that cannot be read is reported by the models.
    try:
        return read_ranges(part["layers"]) if "layers" in part else None
    except RecipeError:
        return None
