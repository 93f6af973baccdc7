"""Splices of tiny checkpoints, planned and built by hybridizer, and compared with the real models layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hybridizer.core.errors import CheckpointError, DonorError, HybridizerError, PlanError
from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.build import build
from support.lines import write_recipe
from support.tiny import NUM_LAYERS

NUM_TOKENS = 24  # twice the tiny sliding window


def orders() -> dict[str, list[tuple[int, int]]]:
    """The four splices that every family is tested with: output layer -> (donor 0 or 1, its layer)."""
    last = NUM_LAYERS - 1
    return {
        "same depth": [(layer % 2, layer) for layer in range(NUM_LAYERS)],
        "grown": [(0, 0), (0, 1), (1, 1), (1, 2), (0, 2), (0, last)],
        "shrunk": [(0, 0), (1, 1), (1, last)],
        "shifted": [(layer % 2, layer) for layer in [*range(1, NUM_LAYERS), 0]],
    }


def try_splices(donors: Sequence[Path], folder: Path) -> dict[str, HybridizerError | None]:
    """For each of the four orders: None where the built model computes what its donors compute, or why it is refused.

    Two donors of four layers each; the runs are made in `folder`. Raises AssertionError for a model that is not exact.
    """
    found: dict[str, HybridizerError | None] = {}
    models: list[PreTrainedModel] = []
    for name, order in orders().items():
        try:
            model = build_splice(donors, order, folder, name.replace(" ", "-"))
        except (CheckpointError, DonorError, PlanError) as error:
            found[name] = error
            continue
        models = models or [load(donor) for donor in donors]
        assert_exact(models, order, model)
        found[name] = None
    return found


def build_splice(donors: Sequence[Path], order: Sequence[tuple[int, int]], folder: Path, name: str) -> Path:
    """The model folder that `hybridize build` makes of `order`, from a recipe; the first donor is the host.

    Raises what `build` raises: PlanError where the plan refuses.
    """
    names = ("a", "b")
    layout = {"host": "a", "slices": [{"donor": names[which], "layers": layer} for which, layer in order]}
    entries = {name: {"source": str(donor)} for name, donor in zip(names, donors, strict=True)}
    entries["a"]["allow"] = ["no_tokenizer"]  # tiny donors are made without one, which is faster
    recipe = write_recipe(folder / f"{name}.yaml", donors=entries, layout=layout)
    built = build(recipe, (), folder / "runs", SilentMonitor(), replace=False, deep=False, load=False)
    assert built is not None
    return built.folder / "model"


def assert_exact(donors: Sequence[PreTrainedModel], order: Sequence[tuple[int, int]], model: Path) -> None:
    """Every layer of the model in the folder `model` holds and computes what its donor's layer does, bit for bit.

    Runs of layers that are neighbours in their donor too are replayed in the donor as a run: its first layer is given
    the hidden state that the output model gave; masks and rotary positions are the donor's own.
    """
    output = load(model)
    ids = torch.randint(3, 250, (2, NUM_TOKENS), generator=torch.Generator().manual_seed(7))
    inputs, outputs = _record(output, ids, replaced={})
    for start, stop in _runs(order):
        which, first = order[start]
        donor = donors[which]
        _, replayed = _record(donor, ids, replaced={first: inputs[start]})
        for place in range(start, stop):
            layer = order[place][1]
            _assert_same_state(find_layers(output)[place], find_layers(donor)[layer], place)
            assert torch.equal(outputs[place], replayed[layer]), f"output layer {place} is not donor layer {layer}"


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's list of decoder layers: the outermost module list."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    return lists[min(lists, key=lambda name: name.count("."))]


def load(folder: Path) -> PreTrainedModel:
    """The model in `folder` in float32, after checking that every tensor of its files fits one of the model."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    for parameter in model.parameters():
        # As mapped from a file it starts at any multiple of 8 bytes, on which the last bit of a product depends:
        # two files of the same tensors gave outputs 3.7e-9 apart in dbrx.
        parameter.data = parameter.data.clone()
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
    """The hidden states that went into and came out of every layer; those in `replaced` replace the inputs."""
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
