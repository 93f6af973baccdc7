"""A recipe file and its overrides into a frozen Recipe, or every problem in them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError

from hybridizer.core.errors import DidYouMean, Problem, RecipeError
from hybridizer.recipe.checks import check, warn_of_pairs
from hybridizer.recipe.dump import to_yaml
from hybridizer.recipe.fields import FROM_RECIPE
from hybridizer.recipe.messages import rewrite
from hybridizer.recipe.models import AUTO, DEFAULT_CANDIDATES, Recipe
from hybridizer.recipe.objective import expand_objectives
from hybridizer.recipe.overrides import apply
from hybridizer.recipe.sections import fill_in
from hybridizer.recipe.tree import Finding, Tree, clip, locate, show
from hybridizer.recipe.trial import (
    ITEM_METRICS,
    NO_TRIAL,
    RATE_KEY,
    RECALL_METRICS,
    SHARED,
    STAGES_KEY,
    TEXT_METRICS,
    Arm,
    as_override,
    choose_primary,
    fixed_parts,
    idle_in_stages,
    rates_of,
)
from hybridizer.recipe.yaml import read_yaml

MAX_FILE_BYTES = 1_000_000
RecipeSource: TypeAlias = Path | Mapping[str, Any]


def load_recipe(source: RecipeSource, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in the file `source` with `overrides` ("a.b=value") put in, the later ones last.

    Instead of a path, `source` may be the content as a mapping: it is called "recipe", and relative paths in it count
    from the working folder. Donors are not looked up, so no path in the recipe needs to exist. Raises RecipeError
    with every problem found, each at its "file:line" or at its "--set a.b=value", in the order of the file and then
    of the overrides.
    """
    tree = Tree()
    if isinstance(source, Path):
        path, where = source, _lines_of_file(source)
        text = _decode(_read_bytes(path), where)
    else:
        path, text = Path("recipe"), to_yaml(source)
        where = _lines_of_mapping(text)
    tree.values = read_yaml(text, tree, where)
    if not isinstance(tree.values, dict):
        found = "is empty" if tree.values is None else f"holds {show(tree.values)}"
        fix = "Write `key: value` lines; `hybridize init` writes a recipe to start from."
        raise RecipeError(*tree.problems, Problem(where(1), f"the recipe {found}.", fix))
    _apply_all(tree, overrides)
    return _checked(tree, path)


def read_recipe_values(values: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe whose values `Recipe.resolved` gave, and that are stored in `path` among other things.

    Raises RecipeError as `load_recipe` does; the place of every problem is `path`, without a line.
    """
    return _checked(Tree(values=dict(values), places={(): str(path)}), path)


def _checked(tree: Tree, path: Path) -> Recipe:
    recipe, findings = _validate(tree.values)
    findings += check(tree, path.stem)
    problems = tree.problems + [Problem(locate(tree.places, f.path), f.what, f.fix) for f in _fresh(tree, findings)]
    if problems or recipe is None:
        raise RecipeError(*sorted(problems, key=_line))
    layout = fill_in(recipe.layout, host=recipe.layout.host or recipe.donors[0].name)
    named = fill_in(recipe, name=recipe.name or path.stem, layout=layout, path=path, places=tree.places)
    if trial_problems := list(_trial_problems(named)):
        raise RecipeError(*trial_problems)
    return fill_in(named, warnings=tuple(warn_of_pairs(named)))


def _trial_problems(recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with the trial of a recipe that is right otherwise."""
    if recipe.trial is None:
        return
    outcomes = trial_outcomes(recipe)
    names = [name for name, _ in outcomes]
    if twice := [name for name in names if names.count(name) > 1]:
        what = f"'{clip(twice[0])}' is the name of two texts or tasks that the trial measures."
        yield Problem(recipe.locate(("trial",)), what, "Give each a name of its own.")
    try:
        choose_primary(recipe.trial.primary, outcomes)
    except RecipeError as error:
        yield from (replace(found, where=recipe.locate(("trial", "primary"))) for found in error.problems)
    if recipe.train is not None and recipe.train.max_minutes is not None:
        what = "`max_minutes` ends a training by the clock, and the arms of a trial have the same number of tokens."
        yield Problem(recipe.locate(("train", "max_minutes")), what, "Delete it, or give `max_steps`.")
    measured = recipe.evaluate
    if measured is not None and (measured.keep == "best" or measured.on_forgetting == "stop"):
        key = "keep" if measured.keep == "best" else "on_forgetting"
        what = f"`{key}: {getattr(measured, key)}` looks at held-out text that the trial reports."
        yield Problem(recipe.locate(("evaluate", key)), what, "Delete the line: curves are measured without it.")
    for arm in recipe.trial.arms or ():
        yield from _arm_problems(arm, recipe)


def trial_outcomes(recipe: Recipe) -> list[tuple[str, tuple[str, ...]]]:
    """What a trial of `recipe` measures: the names of texts and tasks with their metrics, in-domain text first."""
    train, trial = recipe.train, recipe.trial
    assert train is not None and trial is not None, "checked when the recipe was loaded"
    texts = [entry.name for entry in train.data]
    texts += [text.name for text in recipe.evaluate.bits_per_byte] if recipe.evaluate else []
    found: list[tuple[str, tuple[str, ...]]] = [(name, TEXT_METRICS) for name in texts]
    found += [(entry.name, ITEM_METRICS) for entry in trial.evaluate.items]
    return [*found, *((f"recall-{count}", RECALL_METRICS) for count in trial.evaluate.recall)]


def _arm_problems(arm: Arm, recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with an arm of a recipe that is right itself: every problem at the arm's own line."""
    place = recipe.locate(("trial", "arms", arm.name))
    for key, _ in arm.overrides:
        if shared := next((name for name in SHARED if key == name or key.startswith(f"{name}.")), None):
            what = f"arm '{arm.name}' sets `{key}`, and all arms of a trial share `{shared}`."
            yield Problem(place, what, "Set it in the recipe itself.")
    if STAGES_KEY in dict(arm.overrides) and recipe.train is not None and recipe.train.stages is None:
        what = f"arm '{arm.name}' sets `{STAGES_KEY}`, and the recipe has `tokens`, which its stages have."
        one = f"stages: [{{tokens: {recipe.train.tokens}}}]"
        fix = f"Write the recipe with one stage, which is the same training: {one}."
        yield Problem(place, what, fix)
        return
    try:
        for overrides in arm_settings(recipe, arm):
            tree = Tree(values=_plain_without_trial(recipe), places={(): place})
            _apply_all(tree, overrides)
            checked = _checked(tree, recipe.path)
            for what, fix in idle_in_stages(recipe.trial.lr if recipe.trial else (), arm, checked.train):
                yield Problem(place, f"arm '{arm.name}' {what}", fix)
                return
    except RecipeError as error:
        for found in error.problems:
            at = f"{found.where.removeprefix('--set ')}: " if found.where else ""
            yield Problem(place, f"arm '{arm.name}': {at}{found.what}", found.fix)


def arm_settings(recipe: Recipe, arm: Arm) -> list[tuple[str, ...]]:
    """The overrides that make `arm` of `recipe`, as `--set` takes them: once for each of its learning rates."""
    trial, train = recipe.trial, recipe.train
    assert trial is not None and train is not None, "checked when the recipe was loaded"
    parts = {"embedding": train.embedding, "final_norm": train.final_norm, "head": train.head}
    own = [as_override(key, value) for key, value in arm.overrides if key != RATE_KEY]
    own += [as_override(key, value) for key, value in fixed_parts(trial, arm, parts).items()]
    return [(*own, as_override(RATE_KEY, rate)) for rate in rates_of(trial, arm, train.lr)]


def _plain_without_trial(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in recipe.resolved().items() if key != "trial"}


def _lines_of_file(path: Path) -> Callable[[int], str]:
    return lambda line: f"{path}:{line}"


def _lines_of_mapping(text: str) -> Callable[[int], str]:
    """A mapping has no lines that its writer has seen: a place is the text of the line, key and value."""
    lines = text.splitlines() or [""]
    return lambda line: f"the recipe at `{clip(lines[line - 1])}`"


def _read_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would be waited for, without end
            what = "the recipe is not a regular file."
            raise RecipeError(Problem(str(path), what, "Name a YAML file."))
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(Problem(str(path), "there is no such recipe.", _suggest(path))) from None
    except OSError as error:
        what = f"the recipe cannot be read: {error.strerror}."
        raise RecipeError(Problem(str(path), what, "Name a YAML file that you may read.")) from None
    if len(content) > MAX_FILE_BYTES:
        what = f"more than {MAX_FILE_BYTES // 1_000_000} MB of text; recipes are a few kB."
        raise RecipeError(Problem(str(path), what, "Name the recipe, not a weights or data file."))
    return content


def _suggest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either."
    return DidYouMean(path.name, [file.name for file in path.parent.glob("*.y*ml")])


def _decode(content: bytes, where: Callable[[int], str]) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"the byte 0x{content[error.start]:02x} is not UTF-8 text."
        raise RecipeError(Problem(where(line), what, "Save the file as UTF-8.")) from None


def _apply_all(tree: Tree, overrides: Sequence[str]) -> None:
    _expand(tree.values)
    for override in overrides:
        try:
            apply(tree, override)
        except RecipeError as error:
            tree.problems += error.problems
        _expand(tree.values)


def _expand(values: dict[str, Any]) -> None:
    """`domain: donors/domain` is short for `domain: {source: donors/domain}`, and `layout: auto` for a scan.

    The names of objectives are short for them with all defaults, and `trial: none` is a recipe without one.
    """
    expand_objectives(values.get("train"))
    if values.get("trial") == NO_TRIAL:
        del values["trial"]
    if values.get("layout") == AUTO:
        values["layout"] = {"candidates": DEFAULT_CANDIDATES}
    donors = values.get("donors")
    if isinstance(donors, dict):
        short = {name: {"source": donor} for name, donor in donors.items() if isinstance(donor, str)}
        donors.update(short)


def _validate(values: dict[str, Any]) -> tuple[Recipe | None, list[Finding]]:
    try:
        return _door().validate_python(values, context=FROM_RECIPE), []
    except ValidationError as error:
        return None, rewrite(error)


@cache
def _door() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)


def _fresh(tree: Tree, findings: list[Finding]) -> Iterator[Finding]:
    """The findings that are not about a value which the reading has refused already."""
    lists = {refused[:-1] for refused in tree.refused if refused and isinstance(refused[-1], int)}
    for finding in findings:
        upwards = (finding.path[:end] for end in range(len(finding.path) + 1))
        if finding.path not in lists and tree.refused.isdisjoint(upwards):
            yield finding


def _line(problem: Problem) -> float:
    # Overrides come after the file, in their own order, which sorting keeps.
    line = problem.where.rpartition(":")[2]
    return int(line) if line.isdigit() and not problem.where.startswith("--set ") else math.inf
