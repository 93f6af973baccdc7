"""The layer perturbation: disturb the output of one layer and measure the final distribution (arXiv 2604.20556).

Ours, where the paper leaves it open: the disturbance is Gaussian noise on the output of the layer at every position,
scaled to `noise_ratio` of the norm of the residual stream there. A prompt gets the same noise at every layer, so that
layers differ by the layer and not by the draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from hybridizer.models.parts import MODEL_FAULTS, Parts, agree, arbitrary_ids, first_floating
from hybridizer.models.residual import last_rows, read_outputs, replaced, with_hidden


def unit_noise(shape: Sequence[int], batch_axis: int, seeds: Sequence[int]) -> Float32[Tensor, "..."]:
    """Noise in the shape of a residual stream, float32, of norm 1 at every position.

    Each prompt has a seed of its own, so that its noise does not depend on its batch or on the device.
    """
    one = list(shape)
    one[batch_axis] = 1
    draws = [torch.randn(one, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    noise = torch.cat(draws, dim=batch_axis)
    return noise / torch.linalg.vector_norm(noise, dim=-1, keepdim=True)


def disturb(
    hidden: Float[Tensor, "*stream"], noise: Float32[Tensor, "*stream"], noise_ratio: float
) -> Float[Tensor, "*stream"]:
    """`hidden` plus noise of `noise_ratio` times its own norm at each position, computed in float32, in its dtype."""
    precise = hidden.float()
    size = noise_ratio * torch.linalg.vector_norm(precise, dim=-1, keepdim=True)
    return (precise + size * noise.to(hidden.device)).to(hidden.dtype)


@torch.no_grad()
def disturbed_finals(
    model: nn.Module,
    parts: Parts,
    ids: Int[Tensor, "batch time"],
    noise_ratio: float,
    seeds: Sequence[int],
    reuse_prefix: bool,
) -> tuple[list[Float[Tensor, "batch *streams hidden"]], list[Float[Tensor, "batch *streams hidden"]]]:
    """The states of the clean run, and the last state of the runs disturbed at each of them.

    Both are L+1 tensors (batch, ..., hidden): state 0 is the embedding output, state l + 1 the output of layer l. With
    `reuse_prefix` a run that is disturbed at state s starts from the clean states there and costs L - s layers: all of
    them cost half of L+1 full runs. For it the clean states of one batch, (L+1) x batch x time x hidden, are held.
    """
    outputs = read_outputs(model, parts, ids, lambda output: output)
    noise = unit_noise(_hidden(outputs[0]).shape, parts.batch_axis, seeds)
    finals = []
    for state, output in enumerate(outputs):
        changed = disturb(_hidden(output), noise, noise_ratio)
        if state == parts.num_layers:
            finals.append(last_rows(parts, changed))
            continue
        with _disturbed(parts, outputs, state, changed, reuse_prefix):
            finals.append(read_outputs(model, parts, ids, lambda output: last_rows(parts, output))[-1])
    return [last_rows(parts, output) for output in outputs], finals


@torch.no_grad()
def can_reuse_prefix(model: nn.Module, parts: Parts) -> bool:
    """Whether a run that starts from the clean states after any layer gives the same final states as the full run.

    It does not where layers pass on more than the residual stream, such as shared keys and values.
    """
    ids = arbitrary_ids(model, 2, 5)
    outputs = read_outputs(model, parts, ids, lambda output: output)
    try:
        for num_replaced in range(1, parts.num_layers):
            with replaced(parts, outputs[1 : num_replaced + 1]):
                final = read_outputs(model, parts, ids, first_floating)[-1]
            if not agree(final, _hidden(outputs[-1])):
                return False
    except MODEL_FAULTS:
        return False
    return True


def _hidden(output: Any) -> Tensor:
    hidden = first_floating(output)
    assert hidden is not None
    return hidden


@contextmanager
def _disturbed(parts: Parts, outputs: Sequence[Any], state: int, changed: Tensor, reuse_prefix: bool) -> Iterator[None]:
    """Inside the block, state `state` is `changed`: the input of layer 0, or the output of layer `state` - 1."""
    if state == 0:
        hook = parts.layers[0].register_forward_pre_hook(_enter(changed), with_kwargs=True)
    elif not reuse_prefix:
        hook = parts.layers[state - 1].register_forward_hook(lambda _m, _a, output: with_hidden(output, changed))
    else:
        with replaced(parts, [*outputs[1:state], with_hidden(outputs[state], changed)]):
            yield
        return
    try:
        yield
    finally:
        hook.remove()


def _enter(changed: Tensor) -> Any:
    """A hook that puts `changed` in place of the first floating tensor among a module's arguments."""

    def swap(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        old = first_floating((*args, *kwargs.values()))
        return tuple(changed if a is old else a for a in args), {
            k: changed if v is old else v for k, v in kwargs.items()
        }

    return swap
