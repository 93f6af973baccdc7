"""A model made of layers of loaded donors, in memory: what a written splice would be, without copying a weight.

The config is the one that a splice would get (families.config), so per-layer settings travel with the layers. The
model's class builds its modules from that config, without storage, and every parameter is then the donor's own tensor.
Modules are new: a layer used twice is two modules of the same tensors, and no donor is changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hybridizer.core.errors import PlanError, Problem
from hybridizer.families.config import splice_config
from hybridizer.families.reading import read_structure
from hybridizer.families.structure import Source, Structure
from hybridizer.models.load import as_checkpoint
from hybridizer.models.parts import Parts

Loaded = tuple[nn.Module, Parts]
LayerList = Sequence[tuple[str, int]]
"""Output layers, shallow to deep: the name of a donor and one of its layers, counted from 0."""

MAX_SHELLS = 8
_BOOKKEEPING = frozenset(vars(nn.Module()))  # torch's own attributes of every module


@dataclass(frozen=True)
class _Shell:
    """A model's modules, to be given other layers of the same config, and the layers that they have now.

    `state` is `_own_state` before it ever ran.
    """

    model: nn.Module
    layers: tuple[tuple[str, int], ...]
    state: list[tuple[Any, int]]


class Composer:
    """Loaded donors, by name, whose layers can be composed; `host` gives embedding, final norm and head.

    Reads the structure of each donor once, so that many compositions can be tried.
    """

    def __init__(self, models: Mapping[str, Loaded], host: str) -> None:
        """Raises CheckpointError for a model whose config contradicts its tensors."""
        self.models, self.host = dict(models), host
        self._structures = {name: _structure(name, model) for name, (model, _) in self.models.items()}
        self._shells: dict[str, _Shell] = {}

    def add(self, name: str, loaded: Loaded) -> None:
        """One more donor. Raises CheckpointError as the constructor does."""
        self._shells.clear()  # they may hold tensors of another donor of that name
        self._structures[name] = _structure(name, loaded[0])
        self.models[name] = loaded

    def remove(self, name: str) -> None:
        """Forget a donor, so that its memory can be freed; not the host."""
        assert name != self.host, name
        self._shells.clear()  # they hold tensors of the donor
        del self.models[name], self._structures[name]

    def identity(self, name: str | None = None) -> tuple[tuple[str, int], ...]:
        """All layers of a donor in their own order, of the host if none is named."""
        name = self.host if name is None else name
        return tuple((name, layer) for layer in range(self.models[name][1].num_layers))

    def compose(self, layers: LayerList) -> Loaded:
        """The model of `layers` on the host, of any depth, in eval mode, and its parts.

        It shares all stored tensors with the donors, which must not be changed while it is in use. Forward hooks of
        donors (accelerate's device maps) are not carried over. Raises PlanError, as a plan does, when the family cannot
        have these layers in this order, and when donors differ in shape, dtype or class.
        """
        composed = _build_empty(self.models[self.host][0], self._config(layers))
        return self._fill(composed, layers)

    @contextmanager
    def borrowed(self, layers: LayerList) -> Iterator[Loaded]:
        """What `compose` gives, for the length of the block: its modules then serve the next one of the same config.

        Building modules is most of the time of a composition. Modules that a run leaves in another state, such as
        rotary tables that grow with the text, are used once, so that no composition depends on those before it.
        """
        config = self._config(layers)
        key = json.dumps(config.to_dict(), sort_keys=True, default=str)
        shell = self._shells.pop(key, None)  # taken out: a block inside this one builds its own
        if shell is None:
            loaded = self._fill(_build_empty(self.models[self.host][0], config), layers)
            state = _own_state(loaded[0])
        else:
            loaded, state = self._fill(shell.model, layers, shell.layers), shell.state
        yield loaded
        if _is_same_state(_own_state(loaded[0]), state):
            self._shells[key] = _Shell(loaded[0], tuple(layers), state)
            while len(self._shells) > MAX_SHELLS:
                del self._shells[next(iter(self._shells))]

    def _config(self, layers: LayerList) -> Any:
        """The config of `layers` on the host; refuses what `compose` refuses, except shapes."""
        sources = [Source(self._structures[name], layer) for name, layer in layers]
        config = _read_config(self.models[self.host][0], splice_config(self._structures[self.host], sources))
        self._refuse_other_classes(layers)
        return config

    def _fill(self, composed: nn.Module, layers: LayerList, before: LayerList | None = None) -> Loaded:
        """Give `composed`, a model of the config of `layers`, the tensors of the donors; it has those of `before`."""
        model, parts = self.models[self.host]
        where = parts.layers_path
        rows = composed.get_submodule(where)
        assert isinstance(rows, nn.ModuleList) and len(rows) == len(layers), where
        known: Sequence[tuple[str, int] | None] = [None] * len(rows) if before is None else before
        for row, now, then in zip(rows, layers, known, strict=True):
            if now != then:
                name, layer = now
                _share(row, self.models[name][1].layers[layer], f"{name}.{layer}")
        if before is None:
            _share(composed, model, self.host, skip=where)
        return composed, self._parts(composed, layers)

    def _parts(self, composed: nn.Module, layers: LayerList) -> Parts:
        model, parts = self.models[self.host]
        paths = {id(module): path for path, module in _named_modules(model, skip=parts.layers_path)}

        def same(module: nn.Module | None) -> nn.Module | None:
            return None if module is None else composed.get_submodule(paths[id(module)])

        embedding = same(parts.embedding)
        assert embedding is not None
        return replace(
            parts,
            layers=tuple(composed.get_submodule(parts.layers_path).children()),
            embedding=embedding,
            final_norm=same(parts.final_norm),
            head=same(parts.head),
            tuple_sizes=tuple(self.models[name][1].tuple_sizes[layer] for name, layer in layers),
        )

    def _refuse_other_classes(self, layers: LayerList) -> None:
        host, problems = self.models[self.host][0], []
        for name in sorted({name for name, _ in layers} - {self.host}):
            donor = self.models[name][0]
            fix = f"Take donors of the family of '{self.host}', loaded in one dtype."
            if type(donor) is not type(host):
                what = f"a {type(donor).__name__}, and the host '{self.host}' is a {type(host).__name__}."
                problems.append(Problem(f"donor '{name}'", what, fix))
            elif _dtype(donor) != _dtype(host):
                what = f"loaded in {_dtype(donor)}, and the host '{self.host}' in {_dtype(host)}."
                problems.append(Problem(f"donor '{name}'", what, fix))
        if problems:
            raise PlanError(*problems)


def compose(models: Mapping[str, Loaded], host: str, layers: LayerList) -> Loaded:
    """The model of `layers` with the embedding, final norm and head of `host`, and its parts: see `Composer.compose`.

    Raises what `Composer` and `Composer.compose` raise.
    """
    return Composer(models, host).compose(layers)


def _structure(name: str, model: nn.Module) -> Structure:
    """What families know of a checkpoint, of a loaded model: its config as this transformers writes it."""
    state = {key: tensor.to("meta") for key, tensor in model.state_dict().items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in as_checkpoint(model, state).items()}
    return read_structure(_config(model).to_dict(), shapes, name)


def _config(model: nn.Module) -> Any:
    return model.config


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _read_config(host: nn.Module, values: Mapping[str, Any]) -> Any:
    """`values` as a config of the host's class, with the host's choice of kernels, which config.json does not hold."""
    own = _config(host)
    config = type(own).from_dict(dict(values))
    config._attn_implementation = own._attn_implementation
    if getattr(own, "_experts_implementation", None) is not None:
        config._experts_implementation = own._experts_implementation
    return config


def _build_empty(host: nn.Module, config: Any) -> nn.Module:
    """A model of the host's class in eval mode: parameters without storage, buffers as the config computes them."""
    with _parameters_on_meta():
        model: nn.Module = type(host)._from_config(config, dtype=_dtype(host))
    return model.eval().requires_grad_(False)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Inside the block, parameters of new modules lose their storage as they are registered; buffers keep theirs.

    No values are drawn for them, neither by torch's layers nor by transformers.
    """
    register, reset = nn.Module.register_parameter, nn.Linear.reset_parameters

    def without_storage(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        empty = None if param is None else nn.Parameter(param.to("meta"), requires_grad=False)
        if empty is not None:
            empty._is_hf_initialized = True  # the mark of transformers: draw no values
        register(module, name, empty)

    nn.Module.register_parameter = without_storage
    nn.Linear.reset_parameters = lambda self: None
    try:
        yield
    finally:
        nn.Module.register_parameter, nn.Linear.reset_parameters = register, reset


def _share(target: nn.Module, source: nn.Module, where: str, skip: str | None = None) -> None:
    """Give every module in `target` the tensors of the module with its path in `source`, which must have the shapes.

    Buffers that no checkpoint holds (rotary tables) stay as the composition's config computed them. The module with the
    path `skip` is left as it is. Raises PlanError, naming `where`, for another shape.
    """
    found = dict(_named_modules(source, skip))
    for path, module in _named_modules(target, skip):
        theirs = found.get(path)
        for name, tensor in module._parameters.items():
            given = None if theirs is None else theirs._parameters.get(name)
            _check_same_shape(tensor, given, f"{where}: {path}.{name}")
            module._parameters[name] = given
        for name, buffer in module._buffers.items():
            value = None if theirs is None else theirs._buffers.get(name)
            if name not in module._non_persistent_buffers_set:
                _check_same_shape(buffer, value, f"{where}: {path}.{name}")
                module._buffers[name] = value
            elif buffer is not None and value is not None:
                module._buffers[name] = buffer.to(value.device)


def _named_modules(module: nn.Module, skip: str | None = None, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """`module` and all in it by their paths, also those that it holds twice, without the one with the path `skip`."""
    yield path, module
    for name, child in module._modules.items():
        below = f"{path}.{name}" if path else name
        if child is not None and below != skip:
            yield from _named_modules(child, skip, below)


def _own_state(model: nn.Module) -> list[tuple[Any, int]]:
    """What a run could leave behind in the modules themselves: their attributes and their buffers that no donor has.

    With each value a number that grows when it is changed in place: of a tensor its version, of a collection its size.
    """
    found: list[Any] = []
    for _, module in _named_modules(model):
        found += [module, *(value for name, value in vars(module).items() if name not in _BOOKKEEPING)]
        found += [module._buffers[name] for name in sorted(module._non_persistent_buffers_set)]
    return [(value, _change_count(value)) for value in found]


def _change_count(value: Any) -> int:
    if isinstance(value, Tensor):
        return value._version
    return len(value) if isinstance(value, (dict, list, set)) else 0


def _is_same_state(one: list[tuple[Any, int]], other: list[tuple[Any, int]]) -> bool:
    """Whether both hold the same objects, unchanged."""
    return len(one) == len(other) and all(a is b and m == n for (a, m), (b, n) in zip(one, other, strict=True))


def _check_same_shape(wanted: Tensor | None, given: Tensor | None, where: str) -> None:
    if (None if wanted is None else wanted.shape) != (None if given is None else given.shape):
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (given, wanted)]
        what = f"the donor has {shapes[0]}, and the host's layers have {shapes[1]}."
        raise PlanError(Problem(where, what, "Take donors of one shape."))
