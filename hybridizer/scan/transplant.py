"""Competence by side: one side of a donor placed on the other side of the host, in memory, and measured.

The whole of a donor does not show which half of it is sound. Its deep layers over the host's shallow ones do, at the
boundary that the splice will use, on the same items as the host's own layers: so the two can be paired. A donor that
cannot be composed with the host, because its family or shape is another, is measured whole, with its own tokens.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybridizer.core.bootstrap import Array
from hybridizer.core.cache import NPZ_DAMAGE
from hybridizer.core.errors import InputError, PlanError, Problem
from hybridizer.core.files import write_file
from hybridizer.models.compose import LayerList
from hybridizer.recipe.layers import first_deep_layer
from hybridizer.scan.score import Items, Score, Scorer

LoadedDonor = tuple[Any, Any, Any]
"""A model, its tokenizer and its parts."""


@dataclass(frozen=True)
class Sides:
    """Both sides of one donor: `deep` is the host's shallow side under the donor's layers from its boundary on,
    `shallow` the donor's layers before it under the host's deep side.

    `why_whole` is None, or the reason why the donor was measured whole: both scores are then its own.
    """

    deep: Score
    shallow: Score
    boundary: int
    num_layers: int
    why_whole: str | None = None


@dataclass(frozen=True)
class Transplants:
    """All donors on one host. `own` is the score of the host's own layers, which its two sides have as well.

    `num_bytes` are those of each document (documents,), `num_passes` the runs over all items that it took.
    """

    host: str
    own: Score
    donors: Mapping[str, Sides]
    num_bytes: Array
    num_passes: int

    def fits(self, names: Collection[str], num_prompts: int, num_documents: int) -> bool:
        """Whether these are the scores of those donors, on so many prompts and documents."""
        scores = [self.own, *(score for sides in self.donors.values() for score in (sides.deep, sides.shallow))]
        prompts, documents = {(num_prompts,)}, {(num_documents,)}
        return (
            set(self.donors) == set(names)
            and {score.bits.shape for score in scores} | {self.num_bytes.shape} == documents
            and {array.shape for score in scores for array in (score.hit, score.target_prob)} == prompts
        )


def transplant(
    host: str,
    names: Sequence[str],
    load: Callable[[str], LoadedDonor],
    prepare: Callable[[Any], Items],
    boundary: float | Mapping[str, int],
    *,
    advance: Callable[[int], None] = lambda passes: None,
) -> Transplants:
    """Both sides of each donor of `names` on `host`, at `boundary`: a share of each depth, or a layer, for all or each.

    `load` opens a donor, the host and one more at a time; `prepare` makes the items for a tokenizer, with the same
    documents and prompts in the same order. Costs at most 2 N + 1 passes over the items for N donors, of which those of
    deep sides start from the host's hidden states. `advance` gets 1 for every pass.

    Raises InputError for a boundary that leaves a side of a donor empty, and what scoring raises.
    """
    model, tokenizer, parts = load(host)
    scorer = Scorer({host: (model, parts)}, host, prepare(tokenizer), advance=advance)
    cut = _boundary_of(host, boundary, parts.num_layers)
    own = scorer.keep(scorer.host_path, cuts=[cut])
    passes, found = 0, {}
    for name in names:
        if name == host:
            found[name] = Sides(own, own, cut, parts.num_layers)
            continue
        loaded = load(name)
        measured = _measure(scorer, name, loaded, boundary)
        if isinstance(measured, str):
            whole = Scorer({name: (loaded[0], loaded[2])}, name, prepare(loaded[1]), advance=advance)
            score = whole.score(whole.host_path)
            depth = loaded[2].num_layers
            measured = Sides(score, score, _boundary_of(name, boundary, depth), depth, measured)
            passes += whole.num_passes
        found[name] = measured
    return Transplants(host, own, found, scorer.items.num_bytes, scorer.num_passes + passes)


def write_transplants(path: Path, found: Transplants) -> None:
    """Write them into one file; names and numbers in `about`, scores as arrays."""
    arrays: dict[str, Any] = {"num_bytes": found.num_bytes, **_columns("own", found.own)}
    about: dict[str, Any] = {"host": found.host, "num_passes": found.num_passes, "donors": {}}
    for number, (name, sides) in enumerate(found.donors.items()):
        about["donors"][name] = [sides.boundary, sides.num_layers, sides.why_whole]
        arrays |= {**_columns(f"deep{number}", sides.deep), **_columns(f"shallow{number}", sides.shallow)}
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), **arrays)
    write_file(path, buffer.getvalue())


def read_transplants(path: Path) -> Transplants | None:
    """What `write_transplants` wrote; None for a damaged file, which is to be written again."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            donors = {
                name: Sides(_score_in(stored, f"deep{number}"), _score_in(stored, f"shallow{number}"), *rest)
                for number, (name, rest) in enumerate(about["donors"].items())
            }
            own = _score_in(stored, "own")
            return Transplants(about["host"], own, donors, stored["num_bytes"], about["num_passes"])
    except (*NPZ_DAMAGE, AttributeError):
        return None


def _columns(start: str, score: Score) -> dict[str, Array]:
    return {f"{start}_{name}": getattr(score, name) for name in ("bits", "hit", "target_prob")}


def _score_in(stored: Any, start: str) -> Score:
    return Score(*(stored[f"{start}_{name}"] for name in ("bits", "hit", "target_prob")))


def deep_over(host: str, donor: str, boundaries: tuple[int, int], depth: int) -> LayerList:
    """The host's layers before its boundary, then the donor's from its own on; `depth` is the donor's."""
    return [(host, layer) for layer in range(boundaries[0])] + [(donor, i) for i in range(boundaries[1], depth)]


def _measure(scorer: Scorer, name: str, loaded: LoadedDonor, boundary: float | Mapping[str, int]) -> Sides | str:
    """Both sides of a donor on the scorer's host, or why it cannot be composed with it."""
    host, depths = scorer.composer.host, (len(scorer.host_path), loaded[2].num_layers)
    cuts = tuple(_boundary_of(who, boundary, depth) for who, depth in zip((host, name), depths, strict=True))
    paths = deep_over(host, name, (cuts[0], cuts[1]), depths[1]), deep_over(name, host, (cuts[1], cuts[0]), depths[0])
    composer = scorer.composer
    composer.add(name, (loaded[0], loaded[2]))
    try:
        for path in paths:  # both, before anything runs
            composer.compose(path)
        return Sides(scorer.score(paths[0]), scorer.score(paths[1]), cuts[1], depths[1])
    except PlanError as error:
        return error.problems[0].what
    finally:
        composer.remove(name)


def _boundary_of(name: str, boundary: float | Mapping[str, int], depth: int) -> int:
    layer = boundary[name] if isinstance(boundary, Mapping) else first_deep_layer(boundary, depth)
    if not 0 < layer < depth:
        what = f"boundary {layer} leaves one side of '{name}' empty: it has {depth} layers."
        raise InputError(Problem("boundary", what, "Give a share between 0 and 1, or a layer that leaves both sides."))
    return layer
