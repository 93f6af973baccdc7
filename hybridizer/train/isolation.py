"""Intra-document masking for layers of any kind: tested on the model itself, and enforced where it does not hold.

Attention usually restarts where positions do. Recurrences and convolutions carry state on, and some families build
masks that ignore positions. Modules that do so run over the documents of a batch as over rows of their own, which
cannot reach each other; what is around them stays packed. Exact for every causal module and kernel, at the cost of some
padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hybridizer.models.batching import to_device
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import MODEL_FAULTS, first_floating
from hybridizer.models.wrapping import wrapped_forward

_SHORTEST = 0.5  # of a group's longest document: fewer groups are fewer passes over a recurrence, but more padding
_LEAK_FACTOR = 16.0
FEW_TOKENS = 16  # of a row to test modules with: nearly all that leak do so within these


@torch.no_grad()
def documents_leak(objective: CausalLMLoss, vocab_size: int, num_tokens: int = FEW_TOKENS) -> bool:
    """Whether a document in a packed row changes what the model makes of the document after it.

    Tested on the model itself, with one document behind several different ones, `num_tokens` in all. Only rounding may
    differ, as it does between rows of a batch, which cannot leak: experts round by how many tokens they get.
    """
    first, size = _lengths(num_tokens)
    generator = torch.Generator().manual_seed(0)
    device = next(objective.parameters()).device
    trials = max(3, min(8, 512 // num_tokens))  # rounding shows in few tokens only where there are several trials
    others = torch.randint(vocab_size, (trials, 1, first), generator=generator).to(device)
    document = torch.randint(vocab_size, (1, size), generator=generator).to(device)
    fixed, *changed = (torch.cat([other, document], 1) for other in others)
    positions = _positions(first, size, device).expand(2, -1)
    with in_eval(objective), _nothing_zero(objective):
        results = [objective.hidden(torch.cat([fixed, row]), positions)[:, first:] for row in (fixed, *changed)]
    beside, behind = ([result[row] for result in results] for row in (0, 1))
    return _spread(behind) > _LEAK_FACTOR * _spread(beside)


def two_documents(vocab_size: int, num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random ids and the positions, each (1, tokens), of a row of `num_tokens` that holds two documents."""
    ids = torch.randint(vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(0))
    return ids.to(device), _positions(*_lengths(num_tokens), device)


@contextmanager
def isolate_documents(
    model: nn.Module, layers: Sequence[nn.Module], vocab_size: int, num_tokens: int = FEW_TOKENS
) -> Iterator[Documents]:
    """Inside the block, modules in `layers` through which documents leak run on each separately; yields these.

    They are found with rows of `num_tokens`; modules that compress many tokens into one may leak over long rows only.
    The documents of a batch are read off the `position_ids`, (rows, tokens) and 0 where one begins, that `model` is
    called with. A call without them keeps those of the batch before: layers may run again for the backward pass.
    """
    modules = leaking_modules(model, layers, vocab_size, num_tokens)
    documents = Documents(len(modules))

    def enter(_model: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("position_ids") is not None:
            documents.enter(kwargs["position_ids"])

    hook = model.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with wrapped_forward(modules, lambda forward: partial(documents.run, forward)):
            yield documents
    finally:
        hook.remove()


@torch.no_grad()
def leaking_modules(
    model: nn.Module, layers: Sequence[nn.Module], vocab_size: int, num_tokens: int = FEW_TOKENS
) -> list[nn.Module]:
    """The outermost modules inside `layers` through which one document of a packed row reaches the next.

    Each is called again with what it was given in a run of the model, the first document changed. Modules that take
    something without a place for every token, or for every pair of them, are searched instead.
    """
    first, size = _lengths(num_tokens)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (1, num_tokens), generator=generator).to(next(model.parameters()).device)
    calls: dict[nn.Module, _Call] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] = _Call(args, kwargs)

    inner = [module for layer in layers for module in layer.modules() if module is not layer]
    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in inner]

    def look(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if child in calls and _leaks(child, calls[child], first, ids.shape):
                yield child
            else:
                yield from look(child)

    with in_eval(model), _nothing_zero(model):
        try:
            model(input_ids=ids, position_ids=_positions(first, size, ids.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return list(dict.fromkeys(module for layer in layers for module in look(layer)))


@dataclass(frozen=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _leaks(module: nn.Module, call: _Call, first: int, shape: torch.Size) -> bool:
    """Whether the `first` tokens of a row change what `module` gives for the rest, more than rounding can.

    Rounding is what another row, which cannot leak, does to this one: nothing, except with experts.
    """
    tensors: list[Tensor] = []
    _mapped((call.args, call.kwargs), tensors.append)
    hidden = first_floating((*call.args, *call.kwargs.values()))
    if hidden is None or not all(_fits(tensor, shape) or _is_pairs(tensor, shape) for tensor in tensors):
        return False

    def run(change: Callable[[Tensor], Tensor]) -> Tensor | None:
        def twice(tensor: Tensor) -> Tensor:
            start = change(tensor[:, :first]) if tensor is hidden else tensor[:, :first]
            return torch.cat([tensor, torch.cat([start, tensor[:, first:]], dim=1)])

        output = first_floating(module(*_mapped(call.args, twice), **_mapped(call.kwargs, twice)))
        return output if output is not None and output.shape[:2] == (2, shape[1]) else None

    try:
        outputs = [run(change) for change in (torch.clone, torch.neg, _reversed, _shifted)]
    except MODEL_FAULTS:  # it does not run alone: the check of the whole model decides
        return False
    found = [output for output in outputs if output is not None]
    if len(found) < len(outputs):
        return False
    behind, beside = [output[1, first:] for output in found], [output[0] for output in found]
    return _spread(behind) > _LEAK_FACTOR * _spread(beside)


def _reversed(tensor: Tensor) -> Tensor:
    return tensor.flip(-1)


def _shifted(tensor: Tensor) -> Tensor:
    return tensor.roll(1, -1)


@dataclass(frozen=True)
class _Group:
    """Documents that run together. `places` (documents, tokens) are positions in the flat batch, `real` no padding.

    `kept` are the positions of the real ones in the flattened group.

    A padded place repeats its document's last one: a causal module never reads it, masks of pairs hide it, and
    its output is not used.
    """

    places: Tensor
    real: Tensor
    kept: Tensor


class Documents:
    """Where the documents of the current batch are, and how `num_modules` modules run over each of them separately."""

    def __init__(self, num_modules: int) -> None:
        self.num_modules = num_modules
        self._announced = False
        self._shape = torch.Size()
        self._groups: list[_Group] = []  # none where every document has a row of its own
        self._order = torch.empty(0)

    def enter(self, position_ids: Tensor) -> None:
        """From now on the batch is the one of `position_ids` (rows, tokens), unless it was announced."""
        if not self._announced:
            self.announce(position_ids, position_ids.device)
        self._announced = False
        assert position_ids.shape == self._shape, "of the batch that was announced"

    def announce(self, position_ids: Tensor, device: torch.device) -> None:
        """The next batch is the one of `position_ids` (rows, tokens), known on the host, and runs on `device`.

        Otherwise the host would wait for the device to read them.
        """
        self._announced = True
        self._shape = position_ids.shape
        if self.num_modules == 0:
            return
        groups = _grouped(position_ids)
        if groups:
            order = torch.cat([group.places[group.real] for group in groups]).argsort()
            self._order = to_device(order, device)
        self._groups = [
            _Group(*(to_device(tensor, device) for tensor in (group.places, group.real, group.kept)))
            for group in groups
        ]

    @torch.compiler.disable(reason="documents differ in number and length from batch to batch")
    def run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `forward` gives for these arguments when every document is a row of its own.

        Tensors among the arguments have a place for every token of the batch, or every pair of tokens in a row. In the
        result all that has no place for every token is None: states of a recurrence, weights of an attention.
        """
        if not self._groups:
            return forward(*args, **kwargs)
        hidden = first_floating((*args, *kwargs.values()))
        assert hidden is not None and hidden.shape[:2] == self._shape, "of the batch that was entered"
        return self._joined([self._run_group(forward, group, args, kwargs) for group in self._groups])

    def _run_group(self, forward: Callable[..., Any], group: _Group, args: Any, kwargs: Any) -> Any:
        take = partial(_take, shape=self._shape, group=group)
        output = forward(*_mapped(args, take), **_mapped(kwargs, take))
        return _mapped(output, lambda given: _kept(given, group))

    def _joined(self, outputs: Sequence[Any]) -> Any:
        """Outputs of all groups, each (tokens of the group, ...), as one of (rows, tokens, ...)."""
        first = outputs[0]
        if isinstance(first, Tensor):
            return torch.cat(list(outputs))[self._order].unflatten(0, self._shape)
        if isinstance(first, (tuple, list)):
            return type(first)(self._joined(items) for items in zip(*outputs, strict=True))
        return first


def _grouped(position_ids: Tensor) -> list[_Group]:
    """The documents of a batch, longest first, in groups of like length; none if each has a row of its own."""
    begins = (position_ids == 0).flatten().nonzero()[:, 0]
    if len(begins) <= len(position_ids):
        return []
    ends = torch.cat([begins[1:], begins.new_tensor([position_ids.numel()])])
    lengths, order = (ends - begins).sort(descending=True, stable=True)
    begins, sizes = begins[order, None], lengths.tolist()
    groups, start = [], 0
    for at in range(1, len(sizes) + 1):
        if at == len(sizes) or sizes[at] < _SHORTEST * sizes[start]:
            steps = torch.arange(sizes[start], device=begins.device)
            length = lengths[start:at, None]
            real = steps < length
            kept = real.flatten().nonzero()[:, 0]
            groups.append(_Group(begins[start:at] + torch.minimum(steps, length - 1), real, kept))
            start = at
    return groups


def _take(tensor: Tensor, shape: torch.Size, group: _Group) -> Tensor:
    """`tensor` of a batch of `shape` for the documents of `group`: (documents, tokens, ...), or masks of pairs."""
    rows, tokens = shape
    whole = tensor.expand(rows, *tensor.shape[1:])
    if not _is_pairs(tensor, shape):
        return whole.flatten(0, 1)[group.places]
    row, place = group.places[:, :1, None] // tokens, group.places % tokens
    masks = whole[row, :, place[:, :, None], place[:, None, :]].permute(0, 3, 1, 2)
    # A document's last token would see its own copies in the padding.
    hidden = False if masks.dtype == torch.bool else torch.finfo(masks.dtype).min
    return masks.masked_fill(~group.real[:, None, None], hidden)


def _kept(given: Tensor, group: _Group) -> Tensor | None:
    """The real tokens of `given`, which has a place for every one of the group, or None if it has not."""
    return given.flatten(0, 1)[group.kept] if given.shape[:2] == group.places.shape else None


def _fits(tensor: Tensor, shape: torch.Size) -> bool:
    return tensor.ndim > 1 and tensor.shape[0] in (1, shape[0]) and tensor.shape[1] == shape[1]


def _is_pairs(tensor: Tensor, shape: torch.Size) -> bool:
    return tensor.ndim == 4 and tensor.shape[0] in (1, shape[0]) and tensor.shape[2:] == (shape[1], shape[1])


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """`value` with every tensor changed that it is or that is an item of it, a tuple, a list or a dict."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return value


def _lengths(num_tokens: int) -> tuple[int, int]:
    """Those of two documents in a row of `num_tokens`, the second one longer and not starting at a round number."""
    first = 7 * num_tokens // FEW_TOKENS - (num_tokens > FEW_TOKENS)
    return first, num_tokens - first


def _positions(first: int, second: int, device: torch.device) -> Tensor:
    """The `position_ids` (1, tokens) of two documents in a row."""
    return torch.cat([torch.arange(first), torch.arange(second)]).to(device)[None]


def _spread(results: Sequence[Tensor]) -> float:
    """The most by which any element differs between the first of `results` and another."""
    return max(float((other.float() - results[0].float()).abs().max()) for other in results[1:])


@contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """Inside the block, `module` is in eval mode: dropout would look like a leak."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@contextmanager
def _nothing_zero(module: nn.Module) -> Iterator[None]:
    """Inside the block, parameters that are all zeros hold small numbers instead.

    A new mixer whose last projection is zero passes nothing on yet, and will after some training.
    """
    saved = [(parameter, parameter.detach().clone()) for parameter in module.parameters() if not parameter.any()]
    generator = torch.Generator().manual_seed(0)
    for parameter, zeros in saved:
        parameter.data.copy_(0.02 * torch.randn(zeros.shape, generator=generator))
    try:
        yield
    finally:
        for parameter, zeros in saved:
            parameter.data.copy_(zeros)
