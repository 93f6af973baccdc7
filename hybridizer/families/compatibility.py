"""Why layers of several donors cannot be in one model.

One config describes all layers, so every key in which a donor's config differs from the host's is a problem, unless the
key is known not to affect layers or has one value per layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybridizer.core.errors import Problem
from hybridizer.families.encodings import Config
from hybridizer.families.families import read_traits
from hybridizer.families.keys import is_harmless, read_assumptions, unify
from hybridizer.families.reading import DEPTH_NAMES
from hybridizer.families.rope import ROPE_KEYS, read_rope
from hybridizer.families.structure import Source, Structure

_INFINITIES = ({"__float__": "Infinity"}, {"__float__": "-Infinity"})


def check_compatible(host: Structure, sources: Sequence[Source]) -> list[Problem]:
    """Every difference between the host and the donors of these layers, with both values; empty when there is none.

    Vocabulary and tokenizer are not compared: layers do not depend on them.
    """
    donors = {source.donor.where: source.donor for source in sources if source.donor.where != host.where}
    problems = []
    for donor in donors.values():
        if donor.text_family != host.text_family:
            what = f"a donor of family '{donor.text_family}', and {host.where} is of family '{host.text_family}'."
            fix = "One config describes one family: take donors of the same family."
            problems.append(Problem(donor.where, what, fix))
            continue
        layers = [source.layer for source in sources if source.donor.where == donor.where]
        problems += list(_compare_configs(host, donor)) or list(_compare_shapes(host, donor, layers))[:1]
    return problems


def _compare_configs(host: Structure, donor: Structure) -> Iterator[Problem]:
    assumptions = read_assumptions(host.text_family)
    ours, theirs = _meaning(host), _meaning(donor)
    for key in sorted((ours.keys() | theirs.keys()) - assumptions.derived):
        mine, other = (_plain(assumptions.value_of(key, config)) for config in (ours, theirs))
        if mine != other and not (_is_nothing(mine) and _is_nothing(other)):
            what = f"`{key}` is {_show(other)}, and {_show(mine)} in {host.where}."
            fix = "One config describes all layers: take donors that agree, or correct the config that is wrong."
            yield Problem(f"{donor.where}/config.json", what, fix)


def _meaning(structure: Structure) -> dict[str, Any]:
    """The config keys that affect layers, each under one name, rotary settings in one form; harmless keys left out."""
    text = structure.text_config
    carried = {key for trait in read_traits(structure.text_family) for key in trait.keys}
    elsewhere = ROPE_KEYS | {*DEPTH_NAMES, *carried}
    flat = {
        key: value for key, value in _flatten(text) if key not in elsewhere and key.partition(".")[0] not in elsewhere
    }
    if text.get("use_sliding_window") is False:  # version 4 keeps a window size that version 5 writes as null
        flat["sliding_window"] = None
    named = unify(flat)
    meaning = {key: value for key, value in named.items() if not is_harmless(key)}
    rope = read_rope(text, structure.text_family)
    return meaning | {f"rotary positions, {key}": value for key, value in rope.items()}


def _flatten(config: Config, start: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if value in _INFINITIES:
            yield f"{start}{key}", _plain(value)
        elif isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", _plain(value)


def _plain(value: Any) -> Any:
    """The value with transformers' encoding of infinities replaced by what they mean."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(value["__float__"]) if value in _INFINITIES else value


def _is_nothing(value: Any) -> bool:
    return value is None or value in ([], {}, "")


def _show(value: Any) -> str:
    return "absent" if value is None else repr(value)


def _compare_shapes(host: Structure, donor: Structure, layers: Sequence[int]) -> Iterator[Problem]:
    """Layers that both configs describe as one kind need the same tensors in the same shapes."""
    for layer in dict.fromkeys(layers):
        matching = _find_matching_layer(host, donor, layer)
        if matching is None:
            continue
        ours = {suffix: host.shapes[name] for suffix, name in host.layers[matching].items()}
        theirs = {suffix: donor.shapes[name] for suffix, name in donor.layers[layer].items()}
        for suffix in sorted(ours.keys() | theirs.keys()):
            if ours.get(suffix) != theirs.get(suffix):
                what = f"'{suffix}' of layer {layer} is {_show(theirs.get(suffix))}, and {_show(ours.get(suffix))} in "
                what += f"layer {matching} of {host.where}, which is of the same kind."
                yield Problem(donor.where, what, "Their configs do not explain the difference: one of them is wrong.")


def _find_matching_layer(host: Structure, donor: Structure, layer: int) -> int | None:
    """A layer of the host with the same traits, or None."""
    for matching in range(host.num_layers):
        if all(host.traits[name][matching] == values[layer] for name, values in donor.traits.items()):
            return matching
    return None
