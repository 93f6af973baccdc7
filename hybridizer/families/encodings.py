"""How a config.json encodes one value per layer: lists, letters, indices, overrides, rules.

Every encoding reads values from a config (`decode`) and returns the edits that make the config mean other values
(`encode`), or raises CannotExpress. families.py lists which family uses which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

Config = Mapping[str, Any]
Edits = dict[str, Any]
Values = tuple[Any, ...]

REMOVED: Final = object()
# The value of a trait that is absent from a config, so that the family decides: it can stay absent, not be written.
UNSET: Final = "left to the family"


class CannotExpress(Exception):
    """An encoding, or a whole family, cannot express these values in this order."""


class Encoding(Protocol):
    """One way to write a trait into a config."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The config keys this encoding writes; dotted where the key is in a nested dict."""

    def is_used(self, config: Config) -> bool:
        """Whether this config uses the encoding."""

    def decode(self, config: Config, num_layers: int) -> Values | None:
        """One value per layer; None when the config does not use the encoding. Raises ValueError if it is invalid."""

    def encode(self, config: Config, values: Values) -> Edits:
        """The edits after which this encoding decodes to `values`. Raises CannotExpress."""


def integer(config: Config, key: str, default: int) -> int:
    """The whole number under `key`, or `default` where it is absent or null. Raises ValueError for anything else."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int):
        raise ValueError(f"`{key}` is {value!r}, where a whole number is expected.")
    return value


def listed(config: Config, key: str, num_layers: int) -> list[Any] | None:
    """The list under `key`, one entry per layer; None when absent, null or empty. Raises ValueError otherwise."""
    value = config.get(key)
    if value is None or value == []:
        return None
    if not isinstance(value, list | tuple):
        raise ValueError(f"`{key}` is {value!r}, where a list with one entry per layer is expected.")
    if len(value) != num_layers:
        raise ValueError(f"`{key}` has {len(value)} entries, and the model has {num_layers} layers.")
    if strange := [entry for entry in value if not isinstance(entry, str | int | float)]:
        raise ValueError(f"`{key}` holds {strange[0]!r}, where a name or a number is expected.")
    return list(value)


def apply_edits(config: Config, edits: Edits) -> dict[str, Any]:
    """A copy of `config` with the edits in place; a key whose edit is REMOVED is removed."""
    return {key: value for key, value in {**config, **edits}.items() if value is not REMOVED}


class _OneKey:
    """What encodings under a single key share: the key, and that they are used where it has a value."""

    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def is_used(self, config: Config) -> bool:
        return config.get(self.key) is not None


@dataclass(frozen=True)
class Listed(_OneKey):
    """A list with one entry per layer. `names` maps values in the file to trait values; `old_names` are those that
    earlier versions wrote: they are read, and written again where the file itself still uses them."""

    key: str
    names: Mapping[Any, Any] = field(default_factory=dict)
    old_names: Mapping[Any, Any] = field(default_factory=dict)

    def is_used(self, config: Config) -> bool:
        return bool(config.get(self.key))

    def decode(self, config: Config, num_layers: int) -> Values | None:
        entries = listed(config, self.key, num_layers)
        if entries is None:
            return None
        return tuple({**self.names, **self.old_names}.get(entry, entry) for entry in entries)

    def encode(self, config: Config, values: Values) -> Edits:
        in_file = {value: name for name, value in self.names.items()}
        if set(config.get(self.key) or ()) & set(self.old_names):
            in_file |= {value: name for name, value in self.old_names.items()}
        return {self.key: [in_file.get(value, value) for value in values]}


@dataclass(frozen=True)
class Letters(_OneKey):
    """A string with one letter per layer, as in Nemotron-H's `hybrid_override_pattern` "M-M*"."""

    key: str
    alphabet: Mapping[str, str]

    def is_used(self, config: Config) -> bool:
        return isinstance(config.get(self.key), str)

    def decode(self, config: Config, num_layers: int) -> Values | None:
        text = config.get(self.key)
        if text is None:
            return None
        if not isinstance(text, str) or set(text) - set(self.alphabet):
            known = " ".join(self.alphabet)
            raise ValueError(f"`{self.key}` is {text!r}, where one letter of {known} per layer is expected.")
        if len(text) != num_layers:
            raise ValueError(f"`{self.key}` has {len(text)} letters, and the model has {num_layers} layers.")
        return tuple(self.alphabet[letter] for letter in text)

    def encode(self, config: Config, values: Values) -> Edits:
        letters = {value: letter for letter, value in self.alphabet.items()}
        if unknown := sorted(set(values) - set(letters)):
            raise CannotExpress(f"by one letter per layer, which has no letter for {', '.join(map(str, unknown))}")
        return {self.key: "".join(letters[value] for value in values)}


@dataclass(frozen=True)
class Indexed(_OneKey):
    """A list of the layers that are `hit`, counted from `first`; the others are `miss`."""

    key: str
    hit: str
    miss: str
    first: int = 0

    def decode(self, config: Config, num_layers: int) -> Values | None:
        indices = config.get(self.key)
        if indices is None:
            return None
        if not isinstance(indices, list | tuple) or not all(
            isinstance(index, int) and 0 <= index - self.first < num_layers for index in indices
        ):
            last = num_layers - 1 + self.first
            raise ValueError(f"`{self.key}` is {indices!r}, where layers {self.first}..{last} are expected.")
        return tuple(self.hit if layer + self.first in indices else self.miss for layer in range(num_layers))

    def encode(self, config: Config, values: Values) -> Edits:
        if unknown := sorted(set(values) - {self.hit, self.miss}):
            raise CannotExpress(f"by listing the {self.hit} layers, which cannot express {', '.join(unknown)}")
        return {self.key: [layer for layer, value in enumerate(values, self.first) if value == self.hit]}


@dataclass(frozen=True)
class OneOrList(_OneKey):
    """One value for all layers, or a list with one per layer."""

    key: str

    def decode(self, config: Config, num_layers: int) -> Values | None:
        value = config.get(self.key)
        if isinstance(value, str | int | float):
            return (value,) * num_layers
        entries = listed(config, self.key, num_layers)
        return None if entries is None else tuple(entries)

    def encode(self, config: Config, values: Values) -> Edits:
        if UNSET in values:
            raise CannotExpress(f"under `{self.key}`, which some of the donors leave out")
        uniform = values.count(values[0]) == len(values) and not isinstance(config.get(self.key), list)
        return {self.key: values[0] if uniform else list(values)}


@dataclass(frozen=True)
class Overrides(_OneKey):
    """`per_layer_config`: a dict from layer (a string, zero-padded) to the config keys that differ in that layer.

    A value is the canonical JSON of one layer's overrides.
    """

    key: str = "per_layer_config"

    def decode(self, config: Config, num_layers: int) -> Values | None:
        entries = config.get(self.key)
        if entries is None:
            return None
        if not isinstance(entries, Mapping) or not all(isinstance(entry, Mapping) for entry in entries.values()):
            raise ValueError(f"`{self.key}` is {entries!r}, where a dict of dicts by layer is expected.")
        by_layer = {str(int(name)) if str(name).isdecimal() else str(name): entries[name] for name in entries}
        if strange := sorted(by_layer.keys() - {str(layer) for layer in range(num_layers)}):
            raise ValueError(f"`{self.key}` names layer {strange[0]}, and the model has {num_layers} layers.")
        return tuple(json.dumps(by_layer.get(str(layer), {}), sort_keys=True) for layer in range(num_layers))

    def encode(self, config: Config, values: Values) -> Edits:
        if UNSET in values:
            raise CannotExpress(f"under `{self.key}`, which some of the donors leave out")
        overrides = {layer: entry for layer, value in enumerate(values) if (entry := json.loads(value))}
        digits = len(str(max(overrides, default=0)))
        return {self.key: {str(layer).zfill(digits): entry for layer, entry in overrides.items()}}


def _no_solution(config: Config, values: Values) -> Iterable[Edits]:
    return ()


@dataclass(frozen=True)
class Computed:
    """A rule `value(layer, num_layers, config)`, with parameters under `keys` or with none at all.

    `solve` proposes parameters for the requested values; a proposal is accepted when the rule decodes it to them. A
    rule without parameters and proposals makes the value depend on the layer's place alone.
    """

    keys: tuple[str, ...]
    style: str
    value: Callable[[int, int, Config], Any]
    solve: Callable[[Config, Values], Iterable[Edits]] = _no_solution

    def is_used(self, config: Config) -> bool:
        return any(config.get(key) is not None for key in self.keys)

    def decode(self, config: Config, num_layers: int) -> Values | None:
        return tuple(self.value(layer, num_layers, config) for layer in range(num_layers))

    def encode(self, config: Config, values: Values) -> Edits:
        for edits in ({}, *self.solve(config, values)):
            if self._means(apply_edits(config, edits), values):
                return edits
        raise CannotExpress(self.style)

    def _means(self, config: Config, values: Values) -> bool:
        try:
            return self.decode(config, len(values)) == values
        except ValueError:  # parameters that were valid for another depth
            return False


@dataclass(frozen=True)
class Nested:
    """An encoding inside a nested dict: `Nested("linear_attn_config", Indexed(...))`."""

    key: str
    inner: Encoding

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(f"{self.key}.{key}" for key in self.inner.keys)

    def is_used(self, config: Config) -> bool:
        return self.inner.is_used(self._inside(config))

    def decode(self, config: Config, num_layers: int) -> Values | None:
        return self.inner.decode(self._inside(config), num_layers)

    def encode(self, config: Config, values: Values) -> Edits:
        inside = self._inside(config)
        return {self.key: apply_edits(inside, self.inner.encode(inside, values))}

    def _inside(self, config: Config) -> Config:
        inside = config.get(self.key)
        return inside if isinstance(inside, Mapping) else {}
