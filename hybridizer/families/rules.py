"""Per-layer rules with parameters that many families share: every n-th layer, the first k, period and offset.

Each function returns one `Computed` encoding. `default` is the parameter that transformers 5.23 assumes when the key is
absent.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

from hybridizer.families.encodings import Computed, Config, Edits, Values, integer

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
DENSE, MOE = "dense", "moe"


def always(value: str) -> Computed:
    """Every layer is `value`; no key changes it."""
    return Computed((), f"not at all: every layer is {value}", lambda layer, num_layers, config: value)


def by_place(style: str, value: Callable[[int, int, Config], Any]) -> Computed:
    """A value that depends on the layer's place alone; no key changes it. `style` describes it in messages."""
    return Computed((), style, value)


def every(key: str, default: int, hit: str, miss: str, from_first: bool = False) -> Computed:
    """Layers n-1, 2n-1, ... are `hit` (0, n, 2n, ... with `from_first`), n being the number under `key`."""

    def value(layer: int, num_layers: int, config: Config) -> str:
        step = integer(config, key, default)
        if step < 1:
            raise ValueError(f"`{key}` is {step}, where a step of at least 1 is expected.")
        return hit if (layer + (not from_first)) % step == 0 else miss

    def solve(config: Config, values: Values) -> Iterable[Edits]:
        return ({key: step} for step in range(1, len(values) + 2))

    return Computed((key,), f"by every n-th layer (`{key}`)", value, solve)


def sliding_unless_every(key: str, default: int) -> Computed:
    """Every n-th layer has full attention, the others a sliding window."""
    return every(key, default, FULL, SLIDING)


def first(key: str, default: int, below: str, above: str) -> Computed:
    """The first k layers are `below`, all later ones `above`, k being the number under `key`."""

    def value(layer: int, num_layers: int, config: Config) -> str:
        return below if layer < integer(config, key, default) else above

    def solve(config: Config, values: Values) -> Iterable[Edits]:
        return [{key: values.count(below)}]

    return Computed((key,), f"by the number of {below} layers at the start (`{key}`)", value, solve)


def period(period_key: str, offset_key: str, defaults: tuple[int, int], hit: str, miss: str) -> Computed:
    """Layers that leave the remainder `offset` when divided by `period` are `hit` (Jamba)."""

    def value(layer: int, num_layers: int, config: Config) -> str:
        step, offset = integer(config, period_key, defaults[0]), integer(config, offset_key, defaults[1])
        if not 0 <= offset < step:
            raise ValueError(f"`{offset_key}` {offset} is outside `{period_key}` {step}.")
        return hit if layer % step == offset else miss

    def solve(config: Config, values: Values) -> Iterable[Edits]:
        offset = values.index(hit) if hit in values else len(values)
        return ({period_key: step, offset_key: offset} for step in range(offset + 1, offset + len(values) + 2))

    return Computed((period_key, offset_key), f"by period and offset (`{period_key}`, `{offset_key}`)", value, solve)


def window_from(key: str, default: int, flag: str | None) -> Computed:
    """Layers from `key` on have a sliding window, if the config has one and the `flag` (where there is one) is set."""

    def value(layer: int, num_layers: int, config: Config) -> str:
        on = bool(config.get("sliding_window", 4096)) and (flag is None or bool(config.get(flag)))
        return SLIDING if on and layer >= integer(config, key, default) else FULL

    def solve(config: Config, values: Values) -> Iterable[Edits]:
        return [{key: values.count(FULL)}]

    return Computed((key,), f"by the first layer that has a window (`{key}`)", value, solve)


def sparse_step(dense_by_default: tuple[int, ...]) -> Computed:
    """Every n-th layer is sparse (`decoder_sparse_step`), except those listed in `mlp_only_layers` (Qwen MoE)."""
    only, step_key = "mlp_only_layers", "decoder_sparse_step"

    def value(layer: int, num_layers: int, config: Config) -> str:
        num_experts = integer(config, "num_experts", integer(config, "num_local_experts", 1))
        dense = config.get(only)
        if not isinstance(dense, list | tuple | None):
            raise ValueError(f"`{only}` is {dense!r}, where a list of layers is expected.")
        listed_dense = layer in (dense_by_default if dense is None else dense)
        return MOE if num_experts > 0 and not listed_dense and _on_step(layer, config) else DENSE

    def _on_step(layer: int, config: Config) -> bool:
        return (layer + 1) % max(integer(config, step_key, 1), 1) == 0

    def solve(config: Config, values: Values) -> Iterable[Edits]:
        dense = [layer for layer, value in enumerate(values) if value == DENSE]
        return [{only: [layer for layer in dense if _on_step(layer, config)]}, {only: dense, step_key: 1}]

    return Computed((only, step_key), f"by a step and exceptions (`{step_key}`, `{only}`)", value, solve)


def sparse_range() -> Computed:
    """Every n-th layer between two bounds is sparse (Ernie 4.5 MoE). The end -1 stands for the last layer."""
    keys = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")

    def value(layer: int, num_layers: int, config: Config) -> str:
        start, end, step = (integer(config, key, default) for key, default in zip(keys, (1, -1, 1), strict=True))
        end = num_layers - 1 if end == -1 else end
        return MOE if start <= layer <= end and (layer + 1) % max(step, 1) == 0 else DENSE

    def solve(config: Config, values: Values) -> Iterable[Edits]:
        sparse = [layer for layer, value in enumerate(values) if value == MOE] or [len(values)]
        steps = range(1, len(values) + 1)
        return (dict(zip(keys, (sparse[0], sparse[-1], step), strict=True)) for step in steps)

    return Computed(keys, "by first layer, last layer and step (`moe_layer_*`)", value, solve)


def cycle(key: str, default: tuple[str, ...], names: dict[str, str]) -> Computed:
    """The entries under `key`, repeated as often as needed (RecurrentGemma)."""

    def value(layer: int, num_layers: int, config: Config) -> str:
        entries = config.get(key) or default
        if not isinstance(entries, list | tuple) or not all(isinstance(e, str) and e in names for e in entries):
            raise ValueError(f"`{key}` is {entries!r}, where a list of names among {', '.join(names)} is expected.")
        return names[entries[layer % len(entries)]]

    def solve(config: Config, values: Values) -> Iterable[Edits]:
        in_file = {value: name for name, value in names.items()}
        return [{key: [in_file[value] for value in values]}]

    return Computed((key,), f"by a cycle (`{key}`)", value, solve)


def runs(key: str, default: list[Any]) -> Computed:
    """Pairs of a group of names and how often it repeats, as in GPT-Neo: [[["global", "local"], 12]]."""

    def value(layer: int, num_layers: int, config: Config) -> str:
        try:
            groups = [(list(group), int(count)) for group, count in config.get(key) or default]
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"`{key}` is {config.get(key)!r}, where [[names, repeats], ...] is expected.") from None
        if (total := sum(len(group) * count for group, count in groups)) != num_layers:
            raise ValueError(f"`{key}` gives {total} layers, and the model has {num_layers}.")
        names = [str(name) for group, count in groups for name in group * count]
        return names[layer]

    def solve(config: Config, values: Values) -> Iterable[Edits]:
        return [{key: [[[name], len(list(group))] for name, group in groupby(values)]}]

    return Computed((key,), f"by runs (`{key}`)", value, solve)


def residual_scale() -> Computed:
    """MiniCPM3 multiplies every branch by `scale_depth` / sqrt(number of layers): a change of depth changes the key.

    The values are rounded to float32, which is what torch multiplies float32 and bfloat16 tensors by; in float64 one
    quotient in twelve could not be represented at another depth.
    """
    key = "scale_depth"

    def value(layer: int, num_layers: int, config: Config) -> float:
        scale = config.get(key, 1.4)
        if not isinstance(scale, int | float | None):
            raise ValueError(f"`{key}` is {scale!r}, where a number is expected.")
        return 1.0 if scale is None else _to_float32(scale / math.sqrt(num_layers))

    def solve(config: Config, values: Values) -> Iterable[Edits]:
        return [{key: values[0] * math.sqrt(len(values))}]

    return Computed((key,), f"by one factor for the whole depth (`{key}`)", value, solve)


def _to_float32(number: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", number))[0])
    except OverflowError:
        raise ValueError(f"{number} is beyond float32.") from None
