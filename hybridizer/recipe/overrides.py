"""`--set layout.boundary=2`: one value put into a recipe's tree, read and checked as the file is."""

from __future__ import annotations

from typing import Any

from hybridizer.core.errors import Problem, RecipeError
from hybridizer.recipe.tree import KeyPath, Tree, clip, name_of, show
from hybridizer.recipe.yaml import find_unprintable, read_yaml

_FORM = "Write --set key.key=value, for example --set layout.boundary=0.5 or --set layout.slices.0.layers=0..3."


def apply(tree: Tree, override: str) -> None:
    """Put the value of `override` ("a.b=value", the value in YAML) into `tree`, at a path of keys and list positions.

    Raises RecipeError where the text has no `=`, an empty key or no value, is not YAML, or passes through something
    that holds no keys. Whether the keys exist is left to the checks that the whole tree goes through.
    """
    where = f"--set {clip(override)}"
    if strange := find_unprintable(override, lambda _line: where):
        raise RecipeError(strange)
    keys, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(Problem(where, "an override without `=`.", _FORM))
    steps = [step.strip() for step in keys.split(".")]
    if not all(steps):
        raise RecipeError(Problem(where, f"the key '{clip(keys)}' has an empty part.", _FORM))
    value_tree = Tree()
    holder, path = _descend(tree, steps, where)
    value = read_yaml(text, value_tree, lambda _line: where, path)
    if value is None:
        raise RecipeError(*value_tree.problems, Problem(where, f"{name_of(path)} is given no value.", _FORM))
    _forget(tree, path)
    holder[path[-1]] = value
    _replace_rival(tree, path)
    tree.places |= value_tree.places
    tree.problems += value_tree.problems
    tree.refused |= value_tree.refused


def _descend(tree: Tree, steps: list[str], where: str) -> tuple[Any, KeyPath]:
    """What holds the last step, dict or list, and the whole path; sections that are not there yet are made."""
    holder: Any = tree.values
    path: KeyPath = ()
    for step in steps[:-1]:
        key = _key(holder, step, path, where)
        path = (*path, key)
        if isinstance(holder, dict) and holder.get(key) is None:
            holder[key] = {}
            tree.places[path] = where
        holder = holder[key]
    return holder, (*path, _key(holder, steps[-1], path, where))


def _key(holder: object, step: str, path: KeyPath, where: str) -> str | int:
    if isinstance(holder, dict):
        return step
    if not isinstance(holder, list):
        what = f"{name_of(path)} is {show(holder)} and has no `{clip(step)}` inside."
        raise RecipeError(Problem(where, what, f"Set {name_of(path)} as a whole."))
    if step.isascii() and step.isdigit() and len(step) < 10 and int(step) < len(holder):
        return int(step)
    entries = f"entries 0..{len(holder) - 1}" if holder else "no entries"
    what = f"{name_of(path)} is a list with {entries}, found '{clip(step)}'."
    raise RecipeError(Problem(where, what, "Take the position of an entry, or set the list as a whole."))


def _replace_rival(tree: Tree, path: KeyPath) -> None:
    """`train.objective.align` takes the place of the recipe's `distill`, and the other way round.

    One that another override gave stays, so that both at once are an error.
    """
    for depth, step in enumerate(path[:-1]):
        rival = {"align": "distill", "distill": "align"}.get(str(path[depth + 1]))
        if step != "objective" or rival is None:
            continue
        other = (*path[: depth + 1], rival)
        if any(tree.places.get(other[:end], "").startswith("--set ") for end in range(depth + 1, len(other) + 1)):
            continue
        above: Any = tree.values
        for key in other[:-1]:
            above = above[key]
        if above.pop(rival, None) is not None:
            _forget(tree, other)


def _forget(tree: Tree, path: KeyPath) -> None:
    for place in [place for place in tree.places if place[: len(path)] == path]:
        del tree.places[place]
    tree.refused = {place for place in tree.refused if place[: len(path)] != path}
