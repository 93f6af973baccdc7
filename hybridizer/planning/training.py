"""What a plan says about training: what stays frozen, what is read, and every setting that decides the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataPin:
    """One source of training text as the hash sees it: its settings, and the sha256 of each of its files in order.

    A hub dataset has no files; its commit is among the settings, as `content`.
    """

    settings: Mapping[str, Any]
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainPlan:
    """Which layers and parts (embedding, final norm, head) stay frozen in a model of `boundary` shallow layers.

    `settings` are the recipe's, without what may change between two starts of a run. `notes` are for the reader.
    """

    boundary: int
    frozen_layers: tuple[int, ...]
    frozen_parts: tuple[str, ...]
    settings: Mapping[str, Any]
    data: tuple[DataPin, ...]
    notes: tuple[str, ...] = ()


def train_plan_from_json(value: Mapping[str, Any]) -> TrainPlan:
    """The training part of a plan's JSON. Raises KeyError or TypeError where it is not whole."""
    return TrainPlan(
        boundary=value["boundary"],
        frozen_layers=tuple(value["frozen_layers"]),
        frozen_parts=tuple(value["frozen_parts"]),
        settings=value["settings"],
        data=tuple(DataPin(pin["settings"], tuple(pin["files"])) for pin in value["data"]),
        notes=tuple(value["notes"]),
    )
