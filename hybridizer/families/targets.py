"""The table of targets, and which of them a layout needs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hybridizer.families.falcon_h1 import FALCON_H1
from hybridizer.families.granite import GRANITE
from hybridizer.families.lfm2 import LFM2
from hybridizer.families.olmo_hybrid import OLMO_HYBRID
from hybridizer.families.qwen_hybrid import QWEN3_5, QWEN3_NEXT
from hybridizer.families.target import Target

# In the order in which they are chosen.
_ALL: Final = (GRANITE, LFM2, QWEN3_5, QWEN3_NEXT, OLMO_HYBRID, FALCON_H1)
TARGETS: Final[Mapping[str, Target]] = MappingProxyType({target.family: target for target in _ALL})
# What layers of these families have, and no target does.
_WHY_NOT: Final[Mapping[str, str]] = MappingProxyType({
    "gemma2": "soft caps on scores and logits, and norms on both sides of attention and network",
    "gemma3_text": "norms on queries and keys, and on both sides of attention and network",
    "gpt2": "learned positions",
    "olmo2": "norms behind attention and network",
    "olmo3": "norms behind attention and network",
    "phi3": "queries, keys and values in one matrix",
    "qwen3": "norms on queries and keys",
})  # fmt: skip


def find_target(family: str, kinds: frozenset[str], asked: str | None) -> tuple[Target | None, str, str]:
    """The target for layers of `family` beside mixers of `kinds`, the reason, and what to do where there is none.

    `asked` names the one that must be taken. Without it the first of the table that fits is taken.
    """
    words = " and ".join(sorted(kinds)) or "attention alone"
    fitting = [t for t in TARGETS.values() if family in t.donors and kinds <= t.mixers.keys()]
    for target in fitting:
        if asked in (None, target.family):
            others = [other.family for other in fitting if other is not target]
            also = f"; {', '.join(others)} would hold them too" if others and asked is None else ""
            chosen = "requested" if asked else "chosen"
            return target, f"{target.family} is {chosen}: it holds layers of {family} beside {words}{also}.", ""
    if asked is not None:
        what = f"'{asked}' does not hold layers of '{family}' beside {words}."
        return None, what, _nearest(family, kinds, fitting)
    because = f" (they have {_WHY_NOT[family]})" if family in _WHY_NOT else ""
    what = f"no family of transformers that is known here holds layers of '{family}'{because} beside {words}."
    return None, what, _nearest(family, kinds, fitting)


def nearest_hybrids(family: str) -> str:
    """What a model of layers of `family` and layers of another mixer could be, in a sentence; empty for none."""
    ways = [
        f"{' or '.join(sorted(target.mixers))} ({target.family})"
        for target in TARGETS.values()
        if family in target.donors and target.no_swap is None and target.branch is None
    ]
    if not ways:
        return ""
    return f"The nearest native layout: layers of {family} with some of their attention replaced, by {', '.join(ways)}."


def _nearest(family: str, kinds: frozenset[str], fitting: list[Target]) -> str:
    if fitting:
        return f"Leave `target` out, or name {' or '.join(target.family for target in fitting)}."
    ways = [
        f"{' or '.join(sorted(target.mixers))} for '{family}' ({target.family})"
        for target in TARGETS.values()
        if family in target.donors
    ]
    ways += [
        f"donors of {', '.join(target.donors)} for {' and '.join(sorted(kinds))} ({target.family})"
        for target in TARGETS.values()
        if kinds and kinds <= target.mixers.keys()
    ]
    return f"Nearest: {'; '.join(ways)}." if ways else f"Targets: {', '.join(TARGETS)}."
