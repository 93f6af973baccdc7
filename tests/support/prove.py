"""Splices of tiny checkpoints, built from the structure alone and held against the real models, layer by layer.

The copier here is the simplest that can be: load, rename, save. What is under test is which names and which config.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hybridizer.families.config import splice_config
from hybridizer.families.reading import read_structure
from hybridizer.families.structure import Source, Structure

NUM_TOKENS = 24  # twice the tiny sliding window


@dataclass(frozen=True)
class Donor:
    """A tiny checkpoint on disk, its tensors, its structure and, loaded from the same files, its model."""

    folder: Path
    tensors: dict[str, torch.Tensor]
    structure: Structure
    model: PreTrainedModel


def open_donor(folder: Path) -> Donor:
    """The checkpoint in `folder`, read both ways: as files and as a model."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    structure = read_structure(config, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, folder.name)
    return Donor(folder, tensors, structure, _load(folder))


def orders(num_layers: int) -> dict[str, list[tuple[int, int]]]:
    """The four splices every family goes through: output layer -> (donor 0 or 1, its layer)."""
    last = num_layers - 1
    return {
        "same depth": [(layer % 2, layer) for layer in range(num_layers)],
        "grown": [(0, 0), (0, 1), (1, 1), (1, 2), (0, 2), (0, last)],
        "shrunk": [(0, 0), (1, 1), (1, last)],
        "shifted": [(layer % 2, layer) for layer in [*range(1, num_layers), 0]],
    }


def write_splice(donors: Sequence[Donor], order: Sequence[tuple[int, int]], folder: Path) -> None:
    """Write the spliced checkpoint; donor 0 is the host. Raises PlanError where the structure refuses."""
    host = donors[0]
    config = splice_config(host.structure, [Source(donors[which].structure, layer) for which, layer in order])
    kept = [*host.structure.embedding, *host.structure.final_norm, *host.structure.head]
    kept += [extra.name for extra in host.structure.extra if extra.kept]
    output = {name: host.tensors[name] for name in kept}
    for place, (which, layer) in enumerate(order):
        donor = donors[which]
        for suffix, name in donor.structure.layers[layer].items():
            output[f"{host.structure.layer_prefix}{place}.{suffix}"] = donor.tensors[name]
    folder.mkdir(parents=True)
    save_file({name: tensor.clone() for name, tensor in output.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def assert_exact(donors: Sequence[Donor], order: Sequence[tuple[int, int]], folder: Path) -> None:
    """Every layer of the model in `folder` holds and computes what its donor's layer does, bit for bit.

    Runs of layers that are neighbours in their donor too are replayed in the donor as a run: its first layer is given
    the hidden state that the output model gave; masks and rotary positions are the donor's own.
    """
    output = _load(folder)
    ids = torch.randint(3, 250, (2, NUM_TOKENS), generator=torch.Generator().manual_seed(7))
    inputs, outputs = _record(output, ids, replaced={})
    for start, stop in _runs(order):
        which, first = order[start]
        donor = donors[which].model
        _, replayed = _record(donor, ids, replaced={first: inputs[start]})
        for place in range(start, stop):
            layer = order[place][1]
            _assert_same_state(find_layers(output)[place], find_layers(donor)[layer], place)
            assert torch.equal(outputs[place], replayed[layer]), f"output layer {place} is not donor layer {layer}"


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's list of decoder layers: the outermost module list."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    return lists[min(lists, key=lambda name: name.count("."))]


def _load(folder: Path) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def _runs(order: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start = 0
    for place in range(1, len(order) + 1):
        if place == len(order) or order[place] != (order[place - 1][0], order[place - 1][1] + 1):
            yield start, place
            start = place


def _record(
    model: PreTrainedModel, ids: torch.Tensor, replaced: dict[int, torch.Tensor]
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """The hidden states that went into and came out of every layer; those in `replaced` are put in by force."""
    inputs: dict[int, torch.Tensor] = {}
    outputs: dict[int, torch.Tensor] = {}

    def before(place: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = replaced.get(place, args[0] if args else kwargs.get("hidden_states"))
            inputs[place] = hidden.clone()
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        return hook

    def after(place: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            outputs[place] = (output if isinstance(output, torch.Tensor) else output[0]).clone()

        return hook

    with _hooks(find_layers(model), before, after), torch.no_grad():
        model(input_ids=ids, use_cache=False)
    return inputs, outputs


@contextmanager
def _hooks(layers: nn.ModuleList, before: Any, after: Any) -> Iterator[None]:
    handles = []
    for place, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(before(place), with_kwargs=True))
        handles.append(layer.register_forward_hook(after(place)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _assert_same_state(ours: nn.Module, theirs: nn.Module, place: int) -> None:
    mine, donors = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == donors.keys(), f"output layer {place}: {sorted(mine.keys() ^ donors.keys())}"
    for name, tensor in donors.items():
        assert torch.equal(mine[name], tensor), f"output layer {place}: '{name}' differs"
