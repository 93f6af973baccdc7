"""Finds the parts of a causal language model by recording the module calls of two short runs.

No family is listed by name here. The decoder layers are the chain of modules that pass the residual stream on; its
batch and time axes, and what follows the last layer, are derived from the shapes of both runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from hybridizer.core.errors import DonorError, Problem

# What a model's own code may raise on an input that it does not accept. Our own bugs are left to the tests.
MODEL_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Parts:
    """The parts of one causal LM that tracing needs.

    The residual stream is the tensor that each of `layers` takes and returns, usually (batch, time, hidden); families
    with several parallel streams have further axes. `batch_axis` and `time_axis` count from the end (-3 and -2).
    `tuple_sizes[i]` is 0 where layer i returns a bare tensor, else the length of the tuple whose first item it is.
    """

    layers: tuple[nn.Module, ...]
    layers_path: str
    embedding: nn.Module
    final_norm: nn.Module | None
    head: nn.Module | None
    batch_axis: int
    time_axis: int
    vocab_size: int
    tuple_sizes: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """The device for token ids: that of the embedding; the CPU where accelerate offloads the embedding."""
        return _device(next(self.embedding.parameters()))

    @property
    def last_device(self) -> torch.device:
        """The device of the last layer's output, by the same rule."""
        return _device(next(self.layers[-1].parameters()))


def run_model(model: nn.Module, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocabulary"]:
    """The model's own logits for `ids`, no padding, no cache."""
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    assert isinstance(logits, Tensor)
    return logits


@torch.no_grad()
def find_parts(model: nn.Module) -> Parts:
    """The parts of `model`, found by running it on 3 x 11 and on 2 x 7 arbitrary tokens with a hook on every module.

    Raises DonorError, with the reason, for a model that does not run on token ids alone, whose layers are not called
    one after the other exactly once, or in which a position attends to tokens to its right.
    """
    name = type(model).__name__
    embedding = _embedding(model)
    ids = arbitrary_ids(model, 3, 11)
    long, short = _Watch(), _Watch()
    try:
        logits = _watched(model, ids, long)
        _watched(model, ids[:2, :7], short)
    except MODEL_FAULTS as error:
        raise _refusal(
            name, f"it does not run on token ids alone: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    path = _find_chain(model, long)
    if path is None or path not in short.calls:
        raise _refusal(name, "no list of modules is called one after the other, each once, on one residual stream")
    layers = tuple(model.get_submodule(path).children())
    last, last_short = long.calls[path][-1].given, short.calls[path][-1].given
    axes = _find_axes(last.shape, last_short.shape)
    if axes is None:
        raise _refusal(name, f"its residual stream of shape {tuple(last.shape)} has no one batch and one time axis")
    if not _same_start(last, last_short, *axes):
        raise _refusal(name, "its positions see tokens to their right: it is not a causal language model")
    norm, head = _find_tail(long, last, logits)
    sizes = tuple(call.tuple_size for call in long.calls[path])
    return Parts(layers, path, embedding, norm, head, axes[0] - last.ndim, axes[1] - last.ndim, logits.shape[-1], sizes)


def arbitrary_ids(model: nn.Module, num_rows: int, num_tokens: int) -> Int64[Tensor, "rows tokens"]:
    """Token ids for a trial run: all different where the vocabulary is large enough, none special."""
    special = set(_special_ids(model.config))
    weight = next(_embedding(model).parameters())
    size = len(weight)
    usable = [token for token in range(min(size, 4 * num_rows * num_tokens + 64)) if token not in special]
    chosen = [usable[i * 7919 % len(usable)] for i in range(num_rows * num_tokens)]  # 7919 is prime: spreads them
    return torch.tensor(chosen, device=_device(weight)).view(num_rows, num_tokens)


def _device(weight: Tensor) -> torch.device:
    return torch.device("cpu") if weight.is_meta else weight.device


def agree(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> bool:
    """Whether two tensors are equal up to rounding: most elements differ by at most sqrt(eps) of the typical magnitude.

    sqrt(eps) is 3e-4 in float32 and 0.09 in bfloat16: rounding grows over the layers (1e-6 was measured over 18 in
    float32), and a wrong number is as large as a right one. Most, because in a mixture of experts rounding may route
    single tokens to another expert.
    """
    scale = b.float().square().mean().sqrt()
    error = (a.float() - b.float()).abs().median()
    return bool(error <= scale * torch.finfo(b.dtype).eps ** 0.5)


def _embedding(model: nn.Module) -> nn.Module:
    found: nn.Module = model.get_input_embeddings()
    return found


@dataclass(frozen=True)
class _Call:
    """One call of a module: its first floating-point argument and result; `tuple_size` as in Parts."""

    module: nn.Module
    taken: Tensor | None
    given: Tensor
    tuple_size: int


@dataclass
class _Watch:
    """All calls of one run: in order of return, and those of list members by the list's path."""

    order: list[_Call] = field(default_factory=list)
    calls: dict[str, list[_Call]] = field(default_factory=dict)


def _watched(model: nn.Module, ids: Tensor, watch: _Watch) -> Tensor:
    with _watching(model, watch):
        return run_model(model, ids)


@contextmanager
def _watching(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """Record every module call inside the block into `watch`."""
    member_of = {
        id(member): path
        for path, modules in model.named_modules()
        if isinstance(modules, nn.ModuleList)
        for member in modules
    }

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = first_floating(output)
        if given is None:
            return
        size = len(output) if isinstance(output, (tuple, list)) else 0
        call = _Call(module, first_floating((*args, *kwargs.values())), given, size)
        watch.order.append(call)
        if id(module) in member_of:
            watch.calls.setdefault(member_of[id(module)], []).append(call)

    hooks = [module.register_forward_hook(record, with_kwargs=True) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def first_floating(value: Any) -> Tensor | None:
    """The tensor of floating-point numbers that `value` is, or the first one in it where it is a tuple or a list."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    items = value if isinstance(value, (tuple, list)) else ()
    return next((item for item in items if isinstance(item, Tensor) and item.is_floating_point()), None)


def _find_chain(model: nn.Module, watch: _Watch) -> str | None:
    """The path of the longest outermost list whose members were called in order, each once, one feeding the next."""
    chains = [
        path
        for path, calls in watch.calls.items()
        if [call.module for call in calls] == list(model.get_submodule(path).children()) and _is_chain(calls)
    ]
    outermost = [path for path in chains if not any(path.startswith(f"{other}.") for other in chains)]
    return max(outermost, key=lambda path: len(watch.calls[path]), default=None)


def _is_chain(calls: list[_Call]) -> bool:
    shapes = {call.given.shape for call in calls} | {call.taken.shape for call in calls if call.taken is not None}
    fed_alike = any(a.taken is b.taken for a, b in itertools.pairwise(calls))
    return len(shapes) == 1 and len(calls[0].given.shape) >= 3 and not fed_alike and calls[0].taken is not None


def _find_axes(long: torch.Size, short: torch.Size) -> tuple[int, int] | None:
    """Batch and time axis: those that went from 3 to 2 and from 11 to 7 between the two runs, if no other changed."""
    changed = {(a, b): axis for axis, (a, b) in enumerate(zip(long, short, strict=True)) if a != b}
    return (changed[3, 2], changed[11, 7]) if set(changed) == {(3, 2), (11, 7)} else None


def _same_start(long: Float[Tensor, "..."], short: Float[Tensor, "..."], batch_axis: int, time_axis: int) -> bool:
    """Whether the positions that both runs share have equal values, so that later tokens had no influence."""
    start = long.narrow(batch_axis, 0, short.shape[batch_axis]).narrow(time_axis, 0, short.shape[time_axis])
    return agree(start, short)


def _find_tail(watch: _Watch, last: Tensor, logits: Tensor) -> tuple[nn.Module | None, nn.Module | None]:
    """The module that takes the last layer's output and keeps its shape, and the one that computes logits from it."""
    takers = [call for call in watch.order if call.taken is last and not isinstance(call.module, nn.Dropout)]
    norm = next((call.module for call in takers if call.given.shape == last.shape), None)
    makers = [
        call for call in watch.order if call.given.shape[-1] == logits.shape[-1] and not list(call.module.children())
    ]
    return norm, makers[-1].module if makers and makers[-1].module is not norm else None


def _special_ids(config: Any) -> Iterator[int]:
    """Every id under a config key like `..._token_id`: models reject placeholders of images and the like as text."""
    for key, value in config.to_dict().items():
        if key.endswith(("_token_id", "_token_index")):
            yield from value if isinstance(value, list) else [value]


def _refusal(name: str, reason: str) -> DonorError:
    return DonorError(Problem(name, f"this model cannot be traced: {reason}.", "Trace a causal language model."))


@runtime_checkable
class ModelParts(Protocol):
    """The parts of a causal language model; None for a family without a final norm or a head module."""

    @property
    def embedding(self) -> nn.Module: ...
    @property
    def layers(self) -> Sequence[nn.Module]: ...
    @property
    def final_norm(self) -> nn.Module | None: ...
    @property
    def head(self) -> nn.Module | None: ...
