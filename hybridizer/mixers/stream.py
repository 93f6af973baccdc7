"""The residual stream of calibration windows, carried from layer to layer: every layer runs once per stream.

Also the attention modules of a model's layers, and other functions in their place inside a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hybridizer.core.errors import InputError, Problem
from hybridizer.models.parts import Parts, first_floating, run_model
from hybridizer.models.wrapping import replaced_forward

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
Mix = Callable[[Tensor], Tensor]
"""(rows, tokens, hidden) to the same: what stands in for an attention."""


class HasLayers(Protocol):
    """What `find_attention` reads of `Parts`."""

    @property
    def layers(self) -> Sequence[nn.Module]: ...


def find_attention(parts: HasLayers, layer: int) -> nn.Module:
    """The module of `layer` that has q_proj, k_proj, v_proj and o_proj. Raises InputError where there is none."""
    for module in parts.layers[layer].modules():
        if set(PROJECTIONS) <= {name for name, _ in module.named_children()}:
            return module
    what = f"no module with {', '.join(PROJECTIONS)}, so it has no attention that a mixer could replace."
    raise InputError(Problem(f"layer {layer}", what, "Choose layers with attention, of a family of Llama's kind."))


@contextmanager
def swapped(parts: HasLayers, mixers: Mapping[int, Mix]) -> Iterator[None]:
    """Inside the block, the attention of each layer of `mixers` is the function given for it, in float32.

    No cache is kept.
    """

    def standing_in(mix: Mix) -> Callable[..., Any]:
        return lambda hidden_states, *_args, **_kwargs: (mix(hidden_states.float()).to(hidden_states.dtype), None)

    with replaced_forward({find_attention(parts, layer): standing_in(mix) for layer, mix in mixers.items()}):
        yield


class _Reached(Exception):
    """Ends a run whose rest is not needed."""


@dataclass(frozen=True)
class Batch:
    """A few windows: the output of the embedding, and with what the model calls each layer besides the stream."""

    embedded: Float[Tensor, "rows tokens hidden"]
    calls: tuple[tuple[tuple[Any, ...], Mapping[str, Any]], ...]


@torch.no_grad()
def read_batch(model: nn.Module, parts: Parts, ids: Int64[Tensor, "rows tokens"]) -> Batch:
    """The batch of windows `ids`; no layer and no head runs."""
    embedded: list[Tensor] = []
    calls: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []

    def passing(size: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, args, kwargs = _take_hidden(args, kwargs)
            embedded.append(hidden)
            calls.append((args, kwargs))
            if len(calls) == parts.num_layers:
                raise _Reached
            return (hidden, *[None] * (size - 1)) if size else hidden

        return forward

    try:
        sizes = zip(parts.layers, parts.tuple_sizes, strict=True)
        with replaced_forward({layer: passing(size) for layer, size in sizes}):
            run_model(model, ids.to(parts.device))
    except _Reached:
        pass
    return Batch(embedded[0], tuple(calls))


@torch.no_grad()
def run_layer(
    parts: Parts, layer: int, batch: Batch, hidden: Float[Tensor, "rows tokens hidden"], mix: Mix | None = None
) -> Float[Tensor, "rows tokens hidden"]:
    """The output of `layer` for the stream `hidden` of `batch`, with `mix` in place of its attention if given."""
    args, kwargs = batch.calls[layer]
    with swapped(parts, {} if mix is None else {layer: mix}):
        output = first_floating(parts.layers[layer](hidden, *args, **kwargs))
    assert output is not None
    return output


@torch.no_grad()
def read_attention(
    parts: Parts, layer: int, batch: Batch, hidden: Float[Tensor, "rows tokens hidden"], run: bool = True
) -> tuple[Float[Tensor, "rows tokens hidden"], Float[Tensor, "rows tokens hidden"] | None]:
    """The input of the attention of `layer`, and its output if `run`; what follows it in the layer does not run."""
    attention, taken = find_attention(parts, layer), list[Tensor]()
    forward = attention.forward

    def reading(*args: Any, **kwargs: Any) -> Any:
        taken.append(_take_hidden(args, kwargs)[0])
        if run:
            output = first_floating(forward(*args, **kwargs))
            assert output is not None
            taken.append(output)
        raise _Reached

    args, kwargs = batch.calls[layer]
    try:
        with replaced_forward({attention: reading}):
            parts.layers[layer](hidden, *args, **kwargs)
    except _Reached:
        return taken[0], taken[1] if run else None
    raise AssertionError(f"layer {layer} did not call its attention")


def _take_hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states among the arguments of a module, and the other arguments."""
    if args:
        return args[0], args[1:], dict(kwargs)
    return kwargs["hidden_states"], (), {key: value for key, value in kwargs.items() if key != "hidden_states"}
