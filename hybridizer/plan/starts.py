"""What new mixers start from: which can be derived from an attention or fitted to it, and the text of the fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hybridizer.checkpoint.hashing import fingerprint_files
from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import HybridizerError, PlanError, Problem, RecipeError
from hybridizer.core.records import content_hash
from hybridizer.data.documents import find_files, look_for_document
from hybridizer.donors.donor import Donor
from hybridizer.families.target import Facts, Sizes, Target
from hybridizer.plan.layout import LayerSource
from hybridizer.plan.swap import locate_slice
from hybridizer.recipe.models import Calibration, DataEntry, Recipe

# The tensors of an attention that a mixer is derived from and fitted to, by the ends of their names.
ATTENTION = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")


def find_calibration(recipe: Recipe) -> Calibration | None:
    """The text of the fit: the recipe's `calibration`, or its first training source that is in files."""
    if recipe.layout.calibration is not None:
        return recipe.layout.calibration
    found = first_source(recipe)
    return None if found is None else Calibration(found.path or found.name, found.field)


def first_source(recipe: Recipe) -> DataEntry | None:
    """The first training source that is in files, or will be once a donor has written it."""
    sources = recipe.train.data if recipe.train else ()
    return next((entry for entry in sources if entry.path is not None or entry.generate is not None), None)


def pin_calibration(recipe: Recipe, sources: Sequence[LayerSource]) -> tuple[str, int, int]:
    """The sha256 of the text of the fit, the number of tokens and that of a window; empty where nothing is fitted.

    Raises RecipeError, at its line, where there is no text.
    """
    if all(source.fit == "none" for source in sources):
        return "", 0, 0
    found = find_calibration(recipe)
    if found is None:
        what = "`fit: ridge` needs a text, and there is neither `layout.calibration` nor a file in `train.data`."
        raise RecipeError(Problem(recipe.locate(("layout",)), what, "Add `calibration: {path: FILE}` to `layout`."))
    where = recipe.locate(("layout", "calibration"))
    entry = None if recipe.layout.calibration is not None else first_source(recipe)
    if entry is not None and entry.generate is not None:  # by what it is made from: it is written by a build
        return content_hash({"generated": entry.generate.identity}), found.tokens, found.window
    try:
        files = find_files(found.path, recipe.folder)
    except HybridizerError as error:
        raise RecipeError(*(Problem(where, f"`{p.where}`: {p.what}", p.fix) for p in error.problems)) from error
    if problem := look_for_document(found.path, files, found.field, DataEntry.max_document_bytes):
        raise RecipeError(Problem(where, f"`{problem.where}`: {problem.what}", problem.fix))
    hashes = [fingerprint_files({"": path}, cache_folder()) for path in files]
    return content_hash({"files": hashes, "field": found.field}), found.tokens, found.window


def check_starts(
    recipe: Recipe, target: Target, host: Donor, facts: Facts, sizes: Sizes, sources: Sequence[LayerSource]
) -> None:
    """Return if every mixer can start as it is to. Raises PlanError with all that cannot, at their lines."""
    problems = list(dict.fromkeys(_refuse(recipe, target, host, sources)))
    derived = [source for source in sources if source.init == "attention"]
    if derived and not problems:
        problems = [
            Problem(_line(recipe, derived[0]), what, "Leave `mixer_sizes` out, or give the mixers `init: fresh`.")
            for what in _not_derivable(facts, sizes)
        ]
    if problems:
        raise PlanError(*problems)


def _not_derivable(facts: Facts, sizes: Sizes) -> Iterator[str]:
    """Why a mixer of `sizes` cannot be made from an attention of `facts`, by the rules of hybridizer.mixers.derive."""
    own = f"the attention's {facts.heads} heads of {facts.head_dim}"
    if "heads" not in sizes:
        if facts.heads * facts.head_dim != facts.hidden:
            yield f"{own} do not fill the {facts.hidden} channels of a convolution."
        return
    if sizes["head_dim"] != facts.head_dim or sizes["heads"] % facts.heads:
        yield f"{sizes['heads']} heads of {sizes['head_dim']} cannot be derived from {own}."
    if sizes["state"] % facts.head_dim:
        yield f"a state of {sizes['state']} is not a multiple of the width of the attention's heads, {facts.head_dim}."


def _refuse(recipe: Recipe, target: Target, host: Donor, sources: Sequence[LayerSource]) -> Iterator[Problem]:
    started = [source for source in sources if source.init != "fresh" or source.fit != "none"]
    for source in started:
        if source.mixer not in target.derived:
            kinds = " or ".join(target.derived) or "none"
            what = f"a {source.mixer} of {target.family} can neither be derived from an attention nor fitted to one."
            fix = f"Leave `init` and `fit` out. Kinds of this family that can: {kinds}."
            yield Problem(_line(recipe, source), what, fix)
    if not any(source.fit != "none" for source in sources):
        return
    for source in sources:
        if source.parts and source.mixer is not None and source.fit == "none":
            what = "a mixer without `fit` in a model in which others are fitted, each with those beneath it in place."
            yield Problem(_line(recipe, source), what, "Give every mixer `fit: ridge`, or none.")
    deepest = max(layer for layer, source in enumerate(sources) if source.fit != "none")
    for layer, source in enumerate(sources[: deepest + 1]):
        if [(part.donor, part.layer) for part in source.parts] != [(host.name, layer)]:
            what = f"layer {layer} is not layer {layer} of '{host.name}', and a mixer above it is to be fitted."
            fix = "Below the deepest fitted mixer keep the host's layers in their order, or leave `fit` out."
            yield Problem(_line(recipe, source), what, fix)
            return


def _line(recipe: Recipe, source: LayerSource) -> str:
    return locate_slice(recipe, source.slice)
