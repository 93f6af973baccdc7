"""Mixers that a plan fits, computed once and kept in the cache: the executor reads their tensors from there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridizer.checkpoint.header import TensorEntry, read_header
from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import CheckpointError, InputError, Problem
from hybridizer.core.files import write_file
from hybridizer.core.progress import Monitor
from hybridizer.core.records import content_hash, to_jsonable
from hybridizer.donors.donor import Donor
from hybridizer.families.mixer_shapes import SHAPES, AttentionShape, MixerShape
from hybridizer.families.target import LAYER_PREFIX
from hybridizer.plan.origin import Fitted
from hybridizer.plan.plan import Plan, PlannedTensor

if TYPE_CHECKING:
    from torch import Tensor

FORM = 1  # of the fit: another number where the same plan is to give other tensors


def fitted_tensors(plan: Plan) -> tuple[PlannedTensor, ...]:
    """The tensors of `plan` that are fitted."""
    return tuple(tensor for tensor in plan.tensors if isinstance(tensor.source, Fitted))


def fitted_path(plan: Plan) -> Path:
    """The file in the cache that holds the fitted tensors of `plan`, by all that decides them."""
    content = {
        "tensors": [(tensor.name, tensor.shape, to_jsonable(tensor.source)) for tensor in fitted_tensors(plan)],
        "donor": plan.donors[plan.host].fingerprint,
        "shapes": to_jsonable(mixer_shapes(plan)),
        "form": FORM,
    }
    return cache_folder() / f"mixers-{content_hash(content).removeprefix('sha256:')[:32]}.safetensors"


def read_fitted(plan: Plan) -> dict[str, TensorEntry] | None:
    """The fitted tensors of `plan` by name, as float32; None where they are not in the cache."""
    path = fitted_path(plan)
    try:
        found = read_header(path).tensors if path.is_file() else {}
    except CheckpointError:  # damaged: it is fitted again
        return None
    wanted = {tensor.name: tensor.shape for tensor in fitted_tensors(plan)}
    return found if {name: entry.shape for name, entry in found.items()} == wanted else None


def fit_planned(plan: Plan, host: Donor, documents: Iterable[str], monitor: Monitor) -> None:
    """Fit the mixers of `plan` on the beginning of `documents`, and keep their tensors in the cache.

    Loads the host in float32 and runs its layers up to the deepest mixer. Raises InputError for a text that is shorter
    than two windows.
    """
    import torch
    from safetensors.torch import save

    from hybridizer.mixers.fit import fit_mixers, new_mixers
    from hybridizer.models.load import load_causal_lm
    from hybridizer.models.parts import find_parts

    source = fitted_tensors(plan)[0].source
    assert isinstance(source, Fitted)
    inits = {
        int(place_of(tensor)[0]): t.init for tensor in fitted_tensors(plan) if isinstance(t := tensor.source, Fitted)
    }
    model, tokenizer = load_causal_lm(host.folder, torch.float32, trust_remote_code="remote_code" in host.allow)
    windows = read_windows(tokenizer, documents, max(2, source.tokens // source.window), source.window)
    parts = find_parts(model)
    shape, attention = mixer_shapes(plan)
    makers = {init: new_mixers(parts, source.mixer, init, shape, attention, source.seed) for init in inits.values()}
    with monitor.task("fit mixers", max(inits) + 1, "layers") as advance:
        fitted = fit_mixers(
            model, parts, windows, sorted(inits), lambda layer: makers[inits[layer]](layer), advance=advance
        )
    tensors: dict[str, Tensor] = {}
    for mixer in fitted:
        tensors |= {f"{LAYER_PREFIX}{mixer.layer}.{suffix}": tensor for suffix, tensor in mixer.tensors.items()}
        share = f"{mixer.explained_heldout:.0%} of what the attention gives on held-out windows"
        monitor.note(f"layer {mixer.layer}: {source.mixer} explains {share}")
    path = fitted_path(plan)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def mixer_shapes(plan: Plan) -> tuple[MixerShape, AttentionShape]:
    """The sizes of the new mixers of `plan` and of the attention that they replace, by its config."""
    return SHAPES[plan.config["model_type"]].of_config(plan.config), AttentionShape.of_config(plan.config)


def place_of(tensor: PlannedTensor) -> tuple[str, str]:
    """The number of the layer of a tensor in a layer, as text, and its suffix."""
    number, _, suffix = tensor.name.removeprefix(LAYER_PREFIX).partition(".")
    return number, suffix


def read_windows(tokenizer: Any, documents: Iterable[str], num_windows: int, window: int) -> Tensor:
    """The first `num_windows` windows of `documents`, one after the other, or as many as there are, int64 (windows,
    tokens).

    Raises InputError for a text that is shorter than two windows.
    """
    import torch

    ids = list[int]()
    for document in documents:
        ids += tokenizer(document, verbose=False)["input_ids"]
        if len(ids) >= num_windows * window:
            break
    count = min(len(ids) // window, num_windows)
    if count < 2:
        what = f"{len(ids)} tokens, and a fit needs two windows of {window}."
        raise InputError(Problem("calibration", what, "Give more text, or a smaller `calibration.window`."))
    return torch.tensor(ids[: count * window]).view(count, window)
