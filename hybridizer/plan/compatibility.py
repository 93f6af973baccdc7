"""Whether the donors of a plan fit together: vocabulary, tied embeddings, dtypes. Layers are compared by families/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hybridizer.core.errors import Problem
from hybridizer.donors.donor import Donor
from hybridizer.donors.vocabulary import compare_vocabularies, has_tokenizer
from hybridizer.families.compatibility import check_compatible
from hybridizer.families.structure import Source
from hybridizer.families.targets import nearest_hybrids


def find_incompatibilities(
    host: Donor,
    guests: Mapping[str, Sequence[int]],
    donors: Mapping[str, Donor],
    where: Mapping[str, str],
    convert: bool,
) -> tuple[list[Problem], list[str]]:
    """Problems that prevent layers of `guests` from being used in a model of `host`, and warnings.

    `guests` gives the layers taken from each donor except the host, `where` the line of each donor in the recipe.
    With `convert` all weights get one dtype anyway.
    """
    problems: list[Problem] = []
    warnings: list[str] = []
    if not has_tokenizer(host):
        what = f"the host '{host.name}' has no tokenizer, so the model would have none."
        if "no_tokenizer" in host.allow:
            warnings.append(what)
        else:
            fix = "Put its tokenizer files in its folder, or add `allow: [no_tokenizer]` to build a model without one."
            problems.append(Problem(where[host.name], what, fix))
    for name, layers in guests.items():
        guest, place = donors[name], where[name]
        foreign = check_compatible(host.structure, [Source(guest.structure, layer) for layer in layers])
        problems += [Problem(place, f"donor {problem.where}: {problem.what}", problem.fix) for problem in foreign]
        if guest.structure.text_family != host.structure.text_family:
            ways = _native_ways(host, guest)
            problems = [replace(p, fix=f"{p.fix} {ways}") if ways and p.where == place else p for p in problems]
            continue
        side = _compare_embedding_side(host, guest)
        if has_tokenizer(host) and not has_tokenizer(guest):
            warnings.append(
                f"donor '{name}' has no tokenizer: whether its tokens are those of the host '{host.name}' is not known"
            )
        if "vocabulary" in guest.allow:
            warnings += side
        else:
            fix = "Use donors of one vocabulary, or add `allow: [vocabulary]`: only the host's embedding side is kept."
            problems += [Problem(place, what, fix) for what in side]
        if not convert and guest.main_dtype != host.main_dtype:
            what = f"donor '{guest.name}' holds {guest.main_dtype}, the host '{host.name}' {host.main_dtype}."
            problems.append(Problem(place, what, "Set `output: {dtype: bfloat16}`, or another dtype, to convert both."))
    return problems, warnings


def _native_ways(host: Donor, guest: Donor) -> str:
    """Where one of the donors is a hybrid: what is nearest to its layers beside those of the other, if anything is."""
    for one, other in ((host, guest), (guest, host)):
        if {"linear_attention", "mamba"} & set(other.structure.traits.get("attention", ())):
            return nearest_hybrids(one.structure.text_family)
    return ""


def _compare_embedding_side(host: Donor, guest: Donor) -> list[str]:
    found = []
    if guest.structure.tied != host.structure.tied:
        words = {True: "ties its head to its embeddings", False: "has a head of its own"}
        ours, theirs = words[host.structure.tied], words[guest.structure.tied]
        found.append(f"donor '{guest.name}' {theirs}, the host '{host.name}' {ours}.")
    difference = compare_vocabularies(host, guest)
    return [*found, difference] if difference else found
