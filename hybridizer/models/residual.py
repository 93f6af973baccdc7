"""The residual stream of a running model: read after every layer, or substituted for a layer's output.

Both restore the model afterwards. Everything else is the model's own code: embeddings, masks and rotary tables before
the layers; final norm, head, scaling and soft-capping after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridizer.models.parts import Parts, first_floating, run_model
from hybridizer.models.wrapping import Forward, replaced_forward


class _LastLayerReached(Exception):
    """Raised after the last layer to end a run whose norm, head and logits are not needed."""


def read_outputs(
    model: nn.Module, parts: Parts, ids: Int[Tensor, "batch time"], keep: Callable[[Any], Any]
) -> list[Any]:
    """`keep` applied to the input of layer 0 (the embedding output) and to the outputs of layers 0..L-1: L+1 items.

    The run over `ids` ends after the last layer. `keep` gets each output as it is, tuples as tuples.
    """
    kept: list[Any] = []

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append(keep(first_floating((*args, *kwargs.values()))))

    def leave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        kept.append(keep(output))
        if len(kept) > parts.num_layers:
            raise _LastLayerReached

    hooks = [parts.layers[0].register_forward_pre_hook(enter, with_kwargs=True)]
    hooks += [layer.register_forward_hook(leave) for layer in parts.layers]
    try:
        run_model(model, ids)
    except _LastLayerReached:
        return kept
    finally:
        for hook in hooks:
            hook.remove()
    raise AssertionError("the last layer was never called")


def layer_states(
    layers: Sequence[nn.Module], run: Callable[[], object], *, stop: bool
) -> list[Float[Tensor, "rows tokens width"]]:
    """The hidden states that `run` makes behind each of `layers`, which are in the order in which it calls them.

    With `stop`, `run` ends behind the last of them: no later layer is called.
    """
    found: list[Tensor] = []

    def leave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        hidden = first_floating(output)
        assert hidden is not None
        found.append(hidden)
        if stop and len(found) == len(layers):
            raise _LastLayerReached

    hooks = [layer.register_forward_hook(leave) for layer in layers]
    try:
        run()
    except _LastLayerReached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    assert len(found) == len(layers), "every layer was called once"
    return found


def read_last_rows(
    model: nn.Module, parts: Parts, ids: Int[Tensor, "batch time"]
) -> list[Float[Tensor, "batch *streams hidden"]]:
    """The embedding output and the output of every layer, at the last position: L+1 tensors.

    In the model's dtype, on the devices of the layers.
    """
    return read_outputs(model, parts, ids, lambda output: last_rows(parts, output))


def last_rows(parts: Parts, output: Any) -> Float[Tensor, "batch *streams hidden"]:
    """The last position of a layer's output, copied so that the rest can be freed."""
    hidden = first_floating(output)
    assert hidden is not None
    row = hidden.select(parts.time_axis, -1)
    axis = parts.batch_axis + 1 if parts.batch_axis < parts.time_axis else parts.batch_axis
    return row.movedim(axis, 0).clone()


def run_tail(model: nn.Module, parts: Parts, rows: Float[Tensor, "n *streams hidden"]) -> Float[Tensor, "n vocabulary"]:
    """The logits that the model computes when `rows` are the output of its last layer.

    The model runs over n arbitrary one-token texts with every layer replaced by those rows, so that the family's own
    code computes the logits from the residual stream.
    """
    axis = parts.batch_axis + 1 if parts.batch_axis < parts.time_axis else parts.batch_axis
    stream = rows.to(parts.last_device).movedim(0, axis).unsqueeze(parts.time_axis)
    ids = torch.zeros(len(rows), 1, dtype=torch.long, device=parts.device)
    with replaced(parts, bare_outputs(parts, stream)):
        return run_model(model, ids)[:, -1]


def bare_outputs(parts: Parts, stream: Float[Tensor, "..."]) -> list[Any]:
    """`stream` as the output of every layer, in the layer's own form: bare, or in a tuple filled up with None."""
    return [(stream, *[None] * (size - 1)) if size else stream for size in parts.tuple_sizes]


def with_hidden(output: Any, hidden: Float[Tensor, "..."]) -> Any:
    """A layer's output with `hidden` in place of its hidden states."""
    return (hidden, *output[1:]) if isinstance(output, (tuple, list)) else hidden


@contextmanager
def replaced(parts: Parts, outputs: Sequence[Any]) -> Iterator[None]:
    """Inside the block, layer i returns outputs[i] without running, for the first len(outputs) layers."""
    layers = parts.layers[: len(outputs)]
    with replaced_forward({layer: _giving(output) for layer, output in zip(layers, outputs, strict=True)}):
        yield


def _giving(output: Any) -> Forward:
    return lambda *_args, **_kwargs: output
