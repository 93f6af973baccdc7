"""The closed-form fit of new mixers: their output projections by ridge regression, layer by layer from below.

A mixer's out_proj is linear, so what it should be is a least-squares problem: its input on a calibration text against
what the donor's attention adds to the stream. No gradient step is taken. Each fitted mixer is in place before the next
layer is fitted, and no layer runs twice on one stream: the cost is one run of the donor, one of the hybrid, and one of
each mixer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor, nn

from hybridizer.core.errors import InputError, Problem
from hybridizer.families.mixer_shapes import AttentionShape, MixerShape
from hybridizer.mixers.make import OUT_PROJ, make_mixer_tensors, make_module
from hybridizer.mixers.stream import Batch, Mix, find_attention, read_attention, read_batch, run_layer
from hybridizer.models.parts import Parts
from hybridizer.models.wrapping import replaced_forward

Map = tuple[Float64[Tensor, "hidden width"], Float64[Tensor, "hidden"]]
Make = Callable[[int], tuple[MixerShape, Mapping[str, Tensor]]]
"""The shape of the mixer of a layer, and the tensors to start from."""
TARGETS = ("stream", "donor", "own")
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
GATE_RIDGE = 1e-3
HELD_OUT_EVERY = 8
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class FitSettings:
    """How mixers are fitted.

    target: "donor", the output of the attention in the donor's own stream; "stream", the same plus how far the hybrid's
    stream is off before the layer, so that the layer also corrects those beneath it; "own", what the donor's attention
    gives in the hybrid's stream. ridge: a share of the mean diagonal of the normal equations; None chooses it from
    RIDGES on the windows that are held out, for each layer. open_gate: gates that are about constant, see `_open_gate`,
    for mixers that have one. normalised: errors count in proportion to the stream before the layer, as the norms after
    it see them; without it a few positions with values a hundred times larger than the rest decide the fit.
    """

    target: str = "donor"
    normalised: bool = True
    ridge: float | None = None
    open_gate: bool = True


DEFAULT = FitSettings()


@dataclass(frozen=True)
class FittedMixer:
    """One mixer: its `shape`, its float32 `tensors` by their names in a layer of the target, and how well it fits.

    `explained` is the share of the target's (weighted) sum of squares that the mixer gives, at most 1, and
    `explained_heldout` that on the held-out windows before they were fitted too. `ridge` is the share that was used.
    """

    layer: int
    shape: MixerShape
    tensors: Mapping[str, Tensor]
    explained: float
    explained_heldout: float
    ridge: float
    seconds: float

    def module(self, device: torch.device | str = "cpu") -> nn.Module:
        """The module that computes it, on the device of its layer."""
        return make_module(self.shape, self.tensors).to(device)


@torch.no_grad()
def fit_mixers(
    model: nn.Module,
    parts: Parts,
    ids: Int64[Tensor, "windows tokens"],
    layers: Sequence[int],
    make: Make,
    settings: FitSettings = DEFAULT,
    advance: Callable[[int], None] = lambda layers: None,
) -> tuple[FittedMixer, ...]:
    """Mixers for the attention of `layers`, shallow to deep, fitted on the calibration windows `ids`.

    `make` says what to start from, see `new_mixers`. Every eighth window is held out while the ridge is chosen and the
    fit is judged, and fitted afterwards. `advance` gets 1 per layer that is done, up to the deepest of `layers`. The
    model is not changed. The same arguments give the same tensors.

    Memory: tokens times (twice the hidden width + the inner width of a mixer) numbers of 4 bytes, and normal equations
    in float64. Raises InputError for fewer than two windows, a layer that does not exist and one without attention.
    """
    wanted, batches, donor = _begin(model, parts, ids, layers)
    own, found = donor, list[FittedMixer]()
    for layer in range(wanted[-1] + 1):
        given = None
        if layer in wanted:
            fitted, given = _fit_layer(parts, layer, batches, donor, own, make, settings)
            found.append(fitted)
        if layer < wanted[-1]:
            is_same = own is donor and given is None
            own_next = None if is_same else _run(parts, layer, batches, own, given)
            donor = _run(parts, layer, batches, donor)
            own = donor if own_next is None else own_next
        advance(1)
    return tuple(found)


@torch.no_grad()
def fit_each(
    model: nn.Module,
    parts: Parts,
    ids: Int64[Tensor, "windows tokens"],
    layers: Sequence[int],
    make: Make,
    settings: FitSettings = DEFAULT,
) -> Iterator[FittedMixer]:
    """A mixer for each of `layers`, shallow to deep, as if it were the only one: every other layer keeps its attention.

    Arguments, memory and errors are those of `fit_mixers`; the donor runs once for all.
    """
    wanted, batches, donor = _begin(model, parts, ids, layers)
    for layer in range(wanted[-1] + 1):
        if layer in wanted:
            yield _fit_layer(parts, layer, batches, donor, donor, make, settings)[0]
        if layer < wanted[-1]:
            donor = _run(parts, layer, batches, donor)


def new_mixers(parts: Parts, kind: str, init: str, shape: MixerShape, attention: AttentionShape, seed: int) -> Make:
    """What `fit_mixers` takes: new mixers of one shape, by `make_mixer_tensors`, seeded by `seed` and the layer."""

    def make(layer: int) -> tuple[MixerShape, Mapping[str, Tensor]]:
        weights = find_attention(parts, layer).state_dict()
        return shape, make_mixer_tensors(kind, init, shape, seed + layer, weights, attention)

    return make


def as_mixes(mixers: Sequence[FittedMixer], device: torch.device | str = "cpu") -> dict[int, Mix]:
    """The mixers as modules by layer: what `swapped` takes. `device` is that of the layers."""
    return {mixer.layer: mixer.module(device) for mixer in mixers}


def _begin(
    model: nn.Module, parts: Parts, ids: Tensor, layers: Sequence[int]
) -> tuple[list[int], list[Batch], list[Tensor]]:
    """The layers to fit, shallow to deep, the calibration windows in batches, and the stream before the first layer."""
    wanted, num_rows = _check(parts, ids, layers), max(1, BATCH_TOKENS // ids.shape[1])
    batches = [read_batch(model, parts, rows) for rows in ids.split(num_rows)]
    return wanted, batches, [batch.embedded for batch in batches]


def _check(parts: Parts, ids: Tensor, layers: Sequence[int]) -> list[int]:
    problems = []
    if len(ids) < 2:
        problems.append(Problem("calibration", f"{len(ids)} windows, and a fit needs 2.", "Give more text."))
    if wrong := [layer for layer in layers if not 0 <= layer < parts.num_layers]:
        fix = f"Give layers from 0 to {parts.num_layers - 1}."
        problems.append(Problem("mixer layers", f"there are no layers {wrong}.", fix))
    if not layers:
        problems.append(Problem("mixer layers", "no layer is named.", "Name the layers whose attention to replace."))
    if problems:
        raise InputError(*problems)
    return sorted(set(layers))


def _run(
    parts: Parts,
    layer: int,
    batches: Sequence[Batch],
    stream: Sequence[Tensor],
    given: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """The stream after `layer`, whose attention gives `given` for each batch if that is not None."""
    mixes: Sequence[Mix | None] = [None] * len(batches)
    if given is not None:
        mixes = [_giving(output) for output in given]
    rows = zip(batches, stream, mixes, strict=True)
    return [run_layer(parts, layer, batch, hidden, mix) for batch, hidden, mix in rows]


def _giving(output: Tensor) -> Mix:
    return lambda hidden: output.to(hidden.dtype)


def _fit_layer(
    parts: Parts,
    layer: int,
    batches: Sequence[Batch],
    donor: Sequence[Tensor],
    own: Sequence[Tensor],
    make: Make,
    settings: FitSettings,
) -> tuple[FittedMixer, list[Tensor]]:
    """The fitted mixer of `layer`, and what it gives for each batch of the hybrid's stream."""
    began = time.perf_counter()
    shape, made = make(layer)
    tensors = dict(made)
    pairs = [_read_pair(parts, layer, *row, settings.target) for row in zip(batches, donor, own, strict=True)]
    if settings.open_gate:
        _open_gate(tensors, shape, [taken for taken, _ in pairs])
    module = make_module(shape, tensors).to(pairs[0][0].device)
    held, rest = Equations(shape.has_bias), Equations(shape.has_bias)
    rows, is_held = [], iter(_held_out(sum(len(taken) for taken, _ in pairs)))
    with _without_projection(module):
        for (taken, target), hidden in zip(pairs, donor, strict=True):
            features = module(taken)
            chosen = torch.tensor([next(is_held) for _ in taken])
            weights = _weights(hidden) if settings.normalised else torch.ones_like(hidden[..., 0])
            held.add_(features[chosen], target[chosen], weights[chosen])
            rest.add_(features[~chosen], target[~chosen], weights[~chosen])
            rows.append(features)
    weight, bias, scores = solve(rest, held, settings.ridge)
    tensors[f"{shape.prefix}{OUT_PROJ}"] = weight.cpu()
    if bias is not None:
        tensors[f"{shape.prefix}out_proj.bias"] = bias.cpu()
    given = [nn.functional.linear(features, weight, bias) for features in rows]
    return FittedMixer(layer, shape, tensors, *scores, time.perf_counter() - began), given


def _read_pair(
    parts: Parts, layer: int, batch: Batch, donor: Tensor, own: Tensor, target: str
) -> tuple[Float32[Tensor, "rows tokens hidden"], Float32[Tensor, "rows tokens hidden"]]:
    """What the mixer of `layer` takes from the hybrid's stream `own`, and what it should give."""
    if target == "own" or own is donor:
        taken, aim = read_attention(parts, layer, batch, own)
        assert aim is not None
        return taken.float(), aim.float()
    taken, _ = read_attention(parts, layer, batch, own, run=False)
    _, aim = read_attention(parts, layer, batch, donor)
    assert aim is not None
    return taken.float(), (aim + (donor - own) if target == "stream" else aim).float()


def _weights(hidden: Float[Tensor, "rows tokens hidden"]) -> Float32[Tensor, "rows tokens"]:
    """1 / the mean square of the stream before the layer: an error counts as the next norm will see it."""
    return hidden.float().square().mean(-1).clamp_min(1e-12).reciprocal()


def _open_gate(tensors: dict[str, Tensor], shape: MixerShape, taken: Sequence[Tensor]) -> None:
    """Give every channel of the gate the one direction in which the inputs `taken` are closest to 1.

    A fresh gate is a random linear function, about even around 0: multiplied by it, an average over tokens loses its
    sign, and no linear map gets it back. With the gate constant, out_proj sees the averages themselves. A stream that
    was normalised has such a direction: in SmolLM2 the values there are 1 with a standard deviation of 0.03.
    """
    name, rows = shape.gate
    equations = Equations(has_bias=False)
    for batch in taken:
        equations.add_(batch, torch.ones_like(batch[..., :1]))
    direction = equations.solve(GATE_RIDGE)[0]
    weight = tensors[name].clone()
    weight[rows] = direction.float().cpu()
    tensors[name] = weight


def _held_out(num_windows: int) -> list[bool]:
    """Whether each window is held out: every eighth, and of fewer the last."""
    last = min(HELD_OUT_EVERY, num_windows) - 1
    return [number % HELD_OUT_EVERY == last for number in range(num_windows)]


@contextmanager
def _without_projection(module: nn.Module) -> Iterator[None]:
    """Inside the block, the mixer returns the input of its out_proj."""
    with replaced_forward({module.get_submodule("out_proj"): lambda features: features}):
        yield


class Equations:
    """The normal equations of a linear map from features to targets, in float64, summed over rows of any number."""

    def __init__(self, has_bias: bool) -> None:
        """With `has_bias` the map has an intercept."""
        self.has_bias, self.num_rows = has_bias, 0.0
        self.gram = self.cross = self.feature_sum = self.target_sum = self.square = torch.zeros((), dtype=torch.float64)

    def add_(
        self,
        features: Float[Tensor, "... width"],
        targets: Float[Tensor, "... hidden"],
        weights: Float[Tensor, "..."] | None = None,
    ) -> None:
        """Add rows, each with a weight, or 1."""
        x, y = features.flatten(0, -2).double(), targets.flatten(0, -2).double()
        w = x.new_ones(len(x), 1) if weights is None else weights.flatten().double()[:, None]
        self.gram, self.cross = self.gram + x.T @ (x * w), self.cross + x.T @ (y * w)
        self.feature_sum, self.target_sum = self.feature_sum + (x * w).sum(0), self.target_sum + (y * w).sum(0)
        self.square, self.num_rows = self.square + (y.square() * w).sum(), self.num_rows + float(w.sum())

    def plus(self, other: Equations) -> Equations:
        """The equations of the rows of both."""
        both = Equations(self.has_bias)
        for name in ("gram", "cross", "feature_sum", "target_sum", "square", "num_rows"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def solve(self, ridge: float) -> Map:
        """(weight (hidden, width), bias (hidden,)), float64, with `ridge` times the mean diagonal as the penalty.

        The bias is 0 without an intercept, and is not penalised.
        """
        gram, cross = self.gram, self.cross
        if self.has_bias:
            gram = gram - torch.outer(self.feature_sum, self.feature_sum) / self.num_rows
            cross = cross - torch.outer(self.feature_sum, self.target_sum) / self.num_rows
        penalty = ridge * gram.diagonal().mean()
        weight = torch.linalg.solve(
            gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), cross
        ).T
        if not self.has_bias:
            return weight, weight.new_zeros(len(weight))
        return weight, (self.target_sum - weight @ self.feature_sum) / self.num_rows

    def explained(self, solution: Map) -> float:
        """1 - the sum of squared errors of a solution / the sum of squares of the targets."""
        weight, bias = solution
        rest = self.square - 2 * (weight * self.cross.T).sum() + ((weight @ self.gram) * weight).sum()
        rest = rest + self.num_rows * bias.square().sum() + 2 * bias @ (weight @ self.feature_sum - self.target_sum)
        return 1 - float(rest / self.square)


def solve(
    rest: Equations, held: Equations, ridge: float | None
) -> tuple[Float32[Tensor, "hidden width"], Float32[Tensor, "hidden"] | None, tuple[float, float, float]]:
    """Weight and bias fitted on all rows; and (explained, explained on `held` before it was fitted, the ridge).

    Without a `ridge` it is the one of RIDGES that explains most of `held` when `rest` is fitted.
    """
    judged = {share: held.explained(rest.solve(share)) for share in (RIDGES if ridge is None else (ridge,))}
    best = max(judged, key=judged.__getitem__)
    both = rest.plus(held)
    solution = both.solve(best)
    bias = solution[1].float() if both.has_bias else None
    return solution[0].float().contiguous(), bias, (both.explained(solution), judged[best], best)
