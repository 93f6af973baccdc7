"""Models of several packs on one base, in memory: what they have in common is there once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hybridizer.checkpoint.header import TensorEntry
from hybridizer.donors.donor import Donor
from hybridizer.models.load import load_from_tensors
from hybridizer.models.tensors import read_tensor, torch_dtype
from hybridizer.splice.packs import FILES, check_base, locate_tensors, read_pack


def load_grafts(base: Donor, packs: Mapping[str, Path]) -> dict[str, nn.Module]:
    """The models of `packs`, by the same names, in eval mode; tensors that packs do not hold are the base's, once.

    `base` is open with its fingerprint. The models share memory, so none of them may be
    trained. Families whose weights transformers restacks on loading (experts) get copies of those. Raises what `graft`
    raises for another base or a damaged pack, and DonorError for what transformers cannot load.
    """
    common: dict[tuple[str, str], Tensor] = {}
    models = {}
    for name, folder in packs.items():
        pack = read_pack(folder)
        check_base(base, pack)
        tensors: dict[str, Tensor] = {}
        for tensor in (tensor for found in locate_tensors(base, folder, pack).values() for tensor in found):
            if tensor.name in pack.tensors:
                assert isinstance(tensor.source, TensorEntry), "what a pack holds has the model's dtype"
                tensors[tensor.name] = read_tensor(tensor.source)
                continue
            key = (tensor.name, tensor.dtype)
            if key not in common:
                common[key] = read_tensor(base.checkpoint.tensors[tensor.name]).to(torch_dtype(tensor.dtype))
            tensors[tensor.name] = common[key]
        models[name] = load_from_tensors(_read_config(base, folder), tensors, str(folder))
    return models


def _read_config(base: Donor, folder: Path) -> dict[str, Any]:
    stored = folder / FILES / "config.json"
    config: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else dict(base.config)
    return config
