"""Where an output tensor comes from: the union `Source`, of which every planned tensor has exactly one.

Each kind says which donor tensors it reads (`origins`) and how it is made, in words (`describe`), so that manifest,
card and inspect print any kind without knowing it. `kind` tags it in JSON. What makes a tensor is an executor of
hybridizer.splice.executors; each refuses the kinds that it does not make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Origin:
    """One tensor of one donor."""

    donor: str
    tensor: str


@dataclass(frozen=True)
class BlendUse:
    """How a blended slice mixes: mergekit's method, its parameters, those of each source, the index of the base."""

    method: str
    parameters: Mapping[str, float | int | bool]
    per_source: tuple[Mapping[str, float | int | bool], ...]
    base: int | None


@dataclass(frozen=True)
class _OneTensor:
    donor: str
    tensor: str

    @property
    def origins(self) -> tuple[Origin, ...]:
        """The one tensor that is read."""
        return (Origin(self.donor, self.tensor),)


@dataclass(frozen=True)
class Copy(_OneTensor):
    """A donor's tensor, byte for byte."""

    kind: Literal["copy"] = "copy"

    def describe(self, blends: Sequence[BlendUse]) -> str:
        """How the tensor is made."""
        return "copy"


@dataclass(frozen=True)
class Convert(_OneTensor):
    """A donor's tensor, rounded to another dtype."""

    kind: Literal["convert"] = "convert"

    def describe(self, blends: Sequence[BlendUse]) -> str:
        """How the tensor is made."""
        return "convert"


@dataclass(frozen=True)
class Join:
    """Tensors of donors, one under the other along their first axis; `converted` says that they are also rounded."""

    origins: tuple[Origin, ...]
    converted: bool = False
    kind: Literal["join"] = "join"

    def describe(self, blends: Sequence[BlendUse]) -> str:
        """How the tensor is made."""
        return "join, convert" if self.converted else "join"


@dataclass(frozen=True)
class Affine(_OneTensor):
    """A donor's tensor times `factor` plus `shift`, computed in float32 and rounded to the output's dtype."""

    factor: float
    shift: float
    kind: Literal["affine"] = "affine"

    def describe(self, blends: Sequence[BlendUse]) -> str:
        """How the tensor is made."""
        parts = [f"times {self.factor:g}"] if self.factor != 1 else []
        parts += [f"{'plus' if self.shift > 0 else 'minus'} {abs(self.shift):g}"] if self.shift else []
        return ", ".join(parts) or "convert"


@dataclass(frozen=True)
class Spread(_OneTensor):
    """A donor's tensor with `rows` rows of zeros after every `rows` of its rows."""

    rows: int
    kind: Literal["spread"] = "spread"

    def describe(self, blends: Sequence[BlendUse]) -> str:
        """How the tensor is made."""
        return f"spread, {self.rows} zero rows after every {self.rows}"


@dataclass(frozen=True)
class Merge:
    """Tensors of several donors, mixed by the plan's blend number `blend`, which has a source for each of them."""

    blend: int
    origins: tuple[Origin, ...]
    kind: Literal["merge"] = "merge"

    def describe(self, blends: Sequence[BlendUse]) -> str:
        """How the tensor is made."""
        return blends[self.blend].method


ZERO = "zero"  # the initialisation of `Fresh` tensors that need no initialiser


@dataclass(frozen=True)
class Fresh:
    """A new tensor that no donor has. `init` names its initialisation, ZERO or an initialiser, drawn from `seed`."""

    init: str
    seed: int
    kind: Literal["fresh"] = "fresh"

    @property
    def origins(self) -> tuple[Origin, ...]:
        """No tensor."""
        return ()

    def describe(self, blends: Sequence[BlendUse]) -> str:
        """How the tensor is made."""
        return f"fresh ({self.init}, seed {self.seed})"


@dataclass(frozen=True)
class Derived:
    """A tensor of a new `mixer`, made from its `origins`, the attention that it replaces; `seed` draws the rest."""

    mixer: str
    origins: tuple[Origin, ...]
    seed: int
    kind: Literal["derived"] = "derived"

    def describe(self, blends: Sequence[BlendUse]) -> str:
        """How the tensor is made."""
        return f"{self.mixer} from attention (seed {self.seed})"


@dataclass(frozen=True)
class Fitted:
    """A tensor of a new `mixer` that was fitted to what the attention, its `origins`, gives on a text.

    `init` names what the fit starts from, "fresh" or "attention", drawn from `seed`. `text` is the sha256 of the text,
    of which the first `tokens` were used, in windows of `window`.
    """

    mixer: str
    init: str
    origins: tuple[Origin, ...]
    seed: int
    text: str
    tokens: int
    window: int
    kind: Literal["fitted"] = "fitted"

    def describe(self, blends: Sequence[BlendUse]) -> str:
        """How the tensor is made."""
        of = f"{self.tokens:,} tokens of {self.text.removeprefix('sha256:')[:8]}"
        return f"{self.mixer} fitted on {of} ({self.init}, seed {self.seed})"


Source: TypeAlias = Copy | Convert | Join | Affine | Spread | Merge | Fresh | Derived | Fitted
