"""The structure of a checkpoint, read from config.json and the names and shapes of its tensors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.families.encodings import Config, Values
from hybridizer.families.families import read_traits, why_bound
from hybridizer.families.keys import read_assumptions, unify
from hybridizer.families.names import (
    EMBEDDINGS,
    FINAL_NORMS,
    HEADS,
    NameTable,
    Shapes,
    is_draft_head,
    is_recomputed,
    layer_lists,
    pick,
    sort_names,
)
from hybridizer.families.structure import Extra, Structure

# The names of the number of layers, of the layers of a draft head, and of the decoder's part of a config.
DEPTH_NAMES = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_blocks")
DRAFT_COUNTS = ("num_nextn_predict_layers", "num_mtp_layers")
TEXT_CONFIGS = ("text_config", "llm_config", "language_config")


def read_structure(config: Mapping[str, Any], shapes: Shapes, where: str) -> Structure:
    """The structure of one checkpoint. `config` is config.json as it is on disk, `shapes` every tensor's shape by name.

    Reads no weights and imports nothing heavy. Raises CheckpointError, naming `where`, when config and files contradict
    each other: another number of layers, a layer without a tensor that layers of its kind have, no embedding, no head.
    """
    text_path, text, family, text_family = _read_family(config, where)
    num_layers = _read_depth(text, text_family, where)
    table = sort_names({name: shape for name, shape in shapes.items() if not is_recomputed(name, shape)})
    prefix, layers = _find_layers(layer_lists(table), num_layers, text, where)
    traits = _read_traits(text, text_family, num_layers, where)
    if not why_bound(text_family, text):
        _check_siblings(layers, traits, shapes, where)
    embedding, final_norm, head = _find_ends(table, prefix)
    tied = _read_tie(config, text, text_family, bool(head))
    _check_ends(embedding, head, tied, where)
    named = {*embedding, *final_norm, *head, *(name for layer in layers for name in layer.values())}
    return Structure(
        where=where,
        family=family,
        text_family=text_family,
        config=config,
        text_path=text_path,
        shapes=shapes,
        num_layers=num_layers,
        layer_prefix=prefix,
        layers=layers,
        embedding=embedding,
        final_norm=final_norm,
        head=head,
        extra=tuple(_explain(name, shapes, prefix) for name in shapes if name not in named),
        tied=tied,
        vocab_size=_first_number(text, ("vocab_size",)) or _first_number(config, ("vocab_size",)),
        max_tokens=_read_max_tokens(text, text_family),
        traits=traits,
        kinds=_name_kinds(text_family, traits, num_layers),
    )


def _contradiction(where: str, what: str, fix: str) -> CheckpointError:
    return CheckpointError(Problem(where, what, fix))


def _read_family(config: Config, where: str) -> tuple[tuple[str, ...], Config, str, str]:
    """The path to the decoder's part of the config, that part, the model's family and the decoder's."""
    family = config.get("model_type") if isinstance(config, Mapping) else None
    if not isinstance(family, str) or not family:
        fix = "transformers reads the family from it; take the config.json of the original model."
        raise _contradiction(f"{where}/config.json", f"`model_type` is {family!r}, not a family's name.", fix)
    for key in TEXT_CONFIGS:
        text = config.get(key)
        if isinstance(text, Mapping):
            return (key,), text, family, str(text.get("model_type") or f"{family}_text")
    return (), config, family, family


def _first_number(config: Config, names: tuple[str, ...]) -> int:
    return next((config[name] for name in names if isinstance(config.get(name), int)), 0)


def _read_max_tokens(text: Config, family: str) -> int | None:
    longest = read_assumptions(family).value_of("max_position_embeddings", unify(text))
    return longest if type(longest) is int and longest > 0 else None


def _read_depth(text: Config, family: str, where: str) -> int:
    """The number of layers; from the per-layer lists where no key does (Nemotron-H)."""
    said = {name: text[name] for name in DEPTH_NAMES if isinstance(text.get(name), int)}
    if family == "longcat_flash":  # its `num_hidden_layers` counts the two attentions of each layer
        said = {name: said[name] for name in said if name == "num_layers"}
    if family == "nemotron_h" or not said:
        keys = sorted(key for trait in read_traits(family) for key in trait.keys)
        said = {key: len(text[key]) for key in keys if text.get(key) and isinstance(text[key], list | str)} or said
    if not said or len(set(said.values())) > 1 or min(said.values()) < 1:
        found = " and ".join(f"`{name}` {value}" for name, value in said.items()) or "no key holds it"
        raise _contradiction(
            f"{where}/config.json", f"the number of layers: {found}.", "Correct it: one number, at least 1."
        )
    num_layers: int = next(iter(said.values()))
    return num_layers


def _find_layers(
    lists: Mapping[str, Mapping[int, Mapping[str, str]]], num_layers: int, text: Config, where: str
) -> tuple[str, tuple[Mapping[str, str], ...]]:
    """The one list of tensors that has the config's number of layers, plus what a draft head may append to it."""
    drafts = _first_number(text, DRAFT_COUNTS)
    fitting = {
        prefix: places
        for prefix, places in lists.items()
        if len(places) >= num_layers  # before a set of a billion layers is made
        and places.keys() >= set(range(num_layers))
        and max(places) < num_layers + drafts
    }
    if len(fitting) == 1:
        prefix, places = next(iter(fitting.items()))
        return prefix, tuple(places[place] for place in range(num_layers))
    found = ", ".join(f"{prefix}* ({_describe(places)})" for prefix, places in lists.items()) or "no list of layers"
    what = f"the config has {num_layers} layers, and the files hold {found}."
    if len(fitting) > 1:
        raise _contradiction(where, what, "It is ambiguous which list is the decoder; this family is not supported.")
    raise _contradiction(where, what, "Files and config are not of the same model, or files are missing.")


def _describe(places: Mapping[int, Any]) -> str:
    missing = list(itertools.islice((place for place in range(max(places)) if place not in places), 5))
    return f"{len(places)} layers" + (f" without {', '.join(map(str, missing))}" if missing else "")


def _read_traits(text: Config, family: str, num_layers: int, where: str) -> dict[str, Values]:
    traits = {}
    for trait in read_traits(family):
        try:
            traits[trait.name] = trait.decode(text, num_layers)
        except ValueError as error:
            fix = "Correct the config, or take the original one."
            raise _contradiction(f"{where}/config.json", str(error), fix) from None
    return traits


def _check_siblings(
    layers: tuple[Mapping[str, str], ...], traits: Mapping[str, Values], shapes: Shapes, where: str
) -> None:
    """Raise CheckpointError unless layers of one kind have the same tensors in the same shapes."""
    first_of_kind: dict[tuple[Any, ...], int] = {}
    for layer, tensors in enumerate(layers):
        first = first_of_kind.setdefault(tuple(values[layer] for values in traits.values()), layer)
        if lacking := sorted(layers[first].keys() ^ tensors.keys()):
            owner, other = (first, layer) if lacking[0] in layers[first] else (layer, first)
            what = f"layer {other} has no tensor '{lacking[0]}', and layer {owner}, of the same kind, has one."
            raise _contradiction(where, what, "The checkpoint is incomplete, or its config describes another model.")
        for suffix, name in tensors.items():
            if shapes[name] != shapes[layers[first][suffix]]:
                what = f"'{name}' has shape {shapes[name]}, and layer {first}, of the same kind, has "
                what += f"{shapes[layers[first][suffix]]}."
                raise _contradiction(where, what, "The config does not explain the difference; correct it.")


def _find_ends(table: NameTable, prefix: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The names of embedding, final norm and head: weight, and bias where there is one."""
    module = prefix.rstrip(".").rpartition(".")[0]
    stem = f"{module}." if module else ""
    beside_layers = [name for name in table.single if name.count(".") == stem.count(".") + 1]
    embedding = pick(table.single, EMBEDDINGS, stem) or pick(table.single, EMBEDDINGS)
    return embedding, pick(beside_layers, FINAL_NORMS, stem), pick(table.single, HEADS)


def _read_tie(config: Config, text: Config, family: str, has_head: bool) -> bool:
    """Whether head and embedding are one tensor: by the config, by the family's default, or by the files."""
    said = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    assumed = read_assumptions(family).tied
    return bool(said) if said is not None else assumed if assumed is not None else not has_head


def _check_ends(embedding: tuple[str, ...], head: tuple[str, ...], tied: bool, where: str) -> None:
    if not embedding:
        what = f"no tensor is an embedding (one of {', '.join(EMBEDDINGS)})."
        raise _contradiction(where, what, "The checkpoint is incomplete: take all of its files.")
    if not tied and not head:
        what = "`tie_word_embeddings` is false, and no tensor is an output head."
        raise _contradiction(where, what, "transformers would make a random head: take a checkpoint that has one.")


def _explain(name: str, shapes: Shapes, prefix: str) -> Extra:
    if is_recomputed(name, shapes[name]):
        return Extra(name, "buffer")
    return Extra(name, "draft" if name.startswith(prefix) or is_draft_head(name) else "model")


def _name_kinds(family: str, traits: Mapping[str, Values], num_layers: int) -> tuple[str, ...]:
    shown = [traits[trait.name] for trait in read_traits(family) if trait.shown]
    return tuple("+".join(str(values[layer]) for values in shown) for layer in range(num_layers))
