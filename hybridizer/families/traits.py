"""What the layers of one model may differ in, and how the config is rewritten for another order of layers.

A *trait* is the kind of attention, a dense or a sparse MLP, rotary positions or none. A config may hold one trait
in several encodings, for old and new versions of transformers: all that a file uses are rewritten together, and what is
written is read back and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hybridizer.families.encodings import CannotExpress, Config, Encoding, Values, apply_edits


def _any_order(values: Values) -> str | None:
    return None


@dataclass(frozen=True)
class Trait:
    """Something that layers of one family may differ in, and its encodings in the order in which they take precedence.

    `shown` traits make up the kind of a layer in tables. Values in `chained` are of layers that use what the layer
    before them computed: they may only follow their own predecessor. `rule` returns what is wrong with an order.
    """

    name: str
    encodings: tuple[Encoding, ...]
    shown: bool = False
    chained: frozenset[str] = frozenset()
    rule: Callable[[Values], str | None] = _any_order

    @property
    def keys(self) -> frozenset[str]:
        """Every config key (dotted when nested) in which this trait is written."""
        return frozenset(key for encoding in self.encodings for key in encoding.keys)

    def decode(self, config: Config, num_layers: int) -> Values:
        """One value per layer. Raises ValueError when the config has no value, or an invalid one."""
        for encoding in self.encodings:
            values = encoding.decode(config, num_layers)
            if values is not None:
                return values
        keys = " or ".join(f"`{key}`" for key in sorted(self.keys))
        raise ValueError(f"{keys} is missing, so the {self.name} of the layers is unknown.")

    def encode(self, config: Config, values: Values) -> dict[str, Any]:
        """A copy of `config` that means `values`, in every encoding it already uses. Raises CannotExpress.

        An encoding that cannot express the new order is removed if another one can, so that a config never contradicts
        itself.
        """
        if problem := self.rule(values):
            raise CannotExpress(problem)
        edited, reasons = dict(config), []
        for encoding in self.encodings:
            if encoding.is_used(config) and not _means(encoding, config, values):
                try:
                    edited = apply_edits(edited, encoding.encode(edited, values))
                except CannotExpress as error:
                    reasons.append(str(error))
                    edited = _without(edited, encoding.keys)
        if _means(self, edited, values):
            return edited
        for encoding in reversed(self.encodings):  # the oldest encoding that suffices is read by most versions
            try:
                attempt = apply_edits(edited, encoding.encode(edited, values))
            except CannotExpress as error:
                reasons.append(str(error))
                continue
            if _means(self, attempt, values):
                return attempt
        raise CannotExpress(", or ".join(dict.fromkeys(reasons)))


def _means(reader: Encoding | Trait, config: Config, values: Values) -> bool:
    try:
        return reader.decode(config, len(values)) == values
    except ValueError:
        return False


def _without(config: Config, keys: tuple[str, ...]) -> dict[str, Any]:
    """A copy of `config` without these keys; a dotted key goes one level down."""
    trimmed = dict(config)
    for key in keys:
        outer, _, inner = key.partition(".")
        if inner and isinstance(trimmed.get(outer), Mapping):
            trimmed[outer] = {name: value for name, value in trimmed[outer].items() if name != inner}
        elif not inner:
            trimmed.pop(outer, None)
    return trimmed
