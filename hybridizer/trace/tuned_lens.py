"""The tuned lens: one affine map per state into the basis of the last one, before the model's own tail reads it.

Source: arXiv 2303.08112. As there, a map is trained on the divergence KL(P(L) || lens(h(s))). Ours: training starts
from the ridge solution that maps h(s) to h(L), which does most of the work, and of identity (the plain lens), ridge and
trained map the best on held-out tokens is kept, so that a tuned lens is never worse than the plain one there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from hybridizer.core.errors import InputError, Problem
from hybridizer.core.files import write_file
from hybridizer.core.records import content_hash
from hybridizer.models.parts import Parts, first_floating
from hybridizer.models.residual import read_outputs, run_tail
from hybridizer.models.ridge import Map, ridge_map


@dataclass(frozen=True)
class TunedLensSettings:
    """How a tuned lens is fitted; part of its key.

    num_tokens positions are read from windows of window_tokens, the first skip_tokens of each left out (attention sinks
    with norms of their own) and num_held_out of them kept for choosing. ridge: the pull to the identity, as a share of
    the mean square of h(s). Training: num_steps of Adam on step_tokens each, learning rate falling from lr to 0.
    """

    num_tokens: int = 3072
    num_held_out: int = 128
    window_tokens: int = 64
    skip_tokens: int = 8
    ridge: float = 0.03
    num_steps: int = 30
    step_tokens: int = 32
    lr: float = 7e-4
    seed: int = 0


@dataclass(frozen=True)
class TunedLens:
    """h(s) -> h(s) + h(s) @ weights[s] + biases[s] for states s = 0..L-1; computed in float32, returned in h's dtype.

    State 0 is the embedding output, state l + 1 the output of layer l; that of the last layer needs no map.
    weights (L, hidden, hidden), biases (L, hidden), float32. `key` is a hash of donor, text and settings.
    """

    weights: Float32[Tensor, "layers hidden hidden"]
    biases: Float32[Tensor, "layers hidden"]
    key: str

    def __call__(self, state: int, rows: Float[Tensor, "n hidden"]) -> Float[Tensor, "n hidden"]:
        """`rows` of h(state), translated for the model's tail."""
        return _translate((self.weights[state], self.biases[state]), rows)


def obtain_tuned_lens(
    model: nn.Module,
    tokenizer: Any,
    parts: Parts,
    fingerprint: str,
    text: str,
    folder: Path,
    settings: TunedLensSettings = TunedLensSettings(),
    advance: Callable[[int], None] = lambda layers: None,
) -> TunedLens:
    """The tuned lens of the donor with this `fingerprint` for `text`: from `folder` if there, else fitted and kept.

    `advance` gets 1 for every layer that is fitted. Raises InputError for a text too short, or several residual
    streams.
    """
    from safetensors.torch import save

    key = content_hash({"donor": fingerprint, "text": text, "settings": asdict(settings), "form": 1})
    path = folder / f"tuned-lens-{key.removeprefix('sha256:')[:32]}.safetensors"
    if found := _load(path, key, parts):
        return found
    rows = read_training_rows(model, tokenizer, parts, text, settings)
    lens = fit_tuned_lens(model, parts, rows, settings, key, advance)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"weights": lens.weights.cpu().contiguous(), "biases": lens.biases.cpu().contiguous()}
    write_file(path, save(tensors, metadata={"key": key}))
    return lens


def builtin_text() -> str:
    """About 700 KB of English: the reference topics that come with Python."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


@torch.no_grad()
def read_training_rows(
    model: nn.Module, tokenizer: Any, parts: Parts, text: str, settings: TunedLensSettings
) -> Float32[Tensor, "states tokens hidden"]:
    """h(0)..h(L), L+1 states, at `num_tokens` positions of `text`, in random order.

    Windows are spread evenly over the text and begin as the tokenizer begins every text (with BOS, if it has one).
    """
    ids = tokenizer(text, verbose=False)["input_ids"]
    used = settings.window_tokens - settings.skip_tokens
    num_windows = -(-settings.num_tokens // used)
    if len(ids) < num_windows * settings.window_tokens:
        what = f"{len(ids)} tokens of text, and a tuned lens needs {num_windows * settings.window_tokens}."
        raise InputError(Problem("tuned lens", what, "Give a longer text."))
    windows = _windows(ids, _bos(tokenizer), num_windows, settings.window_tokens).to(parts.device)

    def keep(output: Any) -> Tensor:
        hidden = first_floating(output)
        assert hidden is not None
        if hidden.ndim != 3 or (parts.batch_axis, parts.time_axis) != (-3, -2):
            what = f"its residual stream has several streams (shape {tuple(hidden.shape)})."
            raise InputError(Problem(type(model).__name__, f"no tuned lens: {what}", "Use the plain lens."))
        return hidden[:, settings.skip_tokens :].flatten(0, 1).float().to(parts.device)

    found = [torch.stack(read_outputs(model, parts, batch, keep)) for batch in torch.split(windows, 16)]
    rows = torch.cat(found, dim=1)
    order = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(settings.seed))
    return rows[:, order[: settings.num_tokens].to(rows.device)]


def fit_tuned_lens(
    model: nn.Module,
    parts: Parts,
    rows: Float32[Tensor, "states tokens hidden"],
    settings: TunedLensSettings,
    key: str,
    advance: Callable[[int], None] = lambda layers: None,
) -> TunedLens:
    """The tuned lens of `rows`, as read_training_rows returns them."""
    tail = _Tail(model, parts, next(model.parameters()).dtype)
    generator = torch.Generator().manual_seed(settings.seed)
    final = rows[-1]
    held_out = slice(0, settings.num_held_out)
    training = slice(settings.num_held_out, None)
    maps: list[Map] = []
    for state_rows in rows[:-1]:
        start = ridge_map(state_rows[training], final[training], settings.ridge)
        trained = _train(tail, start, state_rows[training], final[training], settings, generator)
        plain = (torch.zeros_like(start[0]), torch.zeros_like(start[1]))
        maps.append(_best(tail, (plain, start, trained), state_rows[held_out], final[held_out]))
        advance(1)
    return TunedLens(torch.stack([w for w, _ in maps]), torch.stack([b for _, b in maps]), key)


@dataclass(frozen=True)
class _Tail:
    """The model's tail on float32 rows, as float32 logits (n, vocab) that can be differentiated."""

    model: nn.Module
    parts: Parts
    dtype: torch.dtype

    def __call__(self, rows: Float[Tensor, "n hidden"]) -> Float32[Tensor, "n vocab"]:
        return run_tail(self.model, self.parts, rows.to(self.dtype)).float()


@torch.enable_grad()
def _train(
    tail: _Tail, start: Map, source: Tensor, final: Tensor, settings: TunedLensSettings, generator: torch.Generator
) -> Map:
    weight, bias = (tensor.clone().requires_grad_() for tensor in start)
    optimizer = torch.optim.Adam([weight, bias], lr=settings.lr)
    for step in range(settings.num_steps):
        optimizer.param_groups[0]["lr"] = settings.lr * (1 - step / settings.num_steps)
        chosen = torch.randint(len(source), (settings.step_tokens,), generator=generator).to(source.device)
        with torch.no_grad():
            aim = torch.softmax(tail(final[chosen]), dim=-1)
        loss = nn.functional.cross_entropy(tail(_translate((weight, bias), source[chosen])), aim)  # KL and a constant
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return weight.detach(), bias.detach()


@torch.no_grad()
def _best(tail: _Tail, maps: Sequence[Map], source: Tensor, final: Tensor) -> Map:
    aim = torch.softmax(tail(final), dim=-1)
    losses = [float(nn.functional.cross_entropy(tail(_translate(candidate, source)), aim)) for candidate in maps]
    return maps[losses.index(min(losses))]


def _translate(affine: Map, rows: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
    weight, bias = (tensor.to(rows.device) for tensor in affine)
    precise = rows.float()
    return (precise + precise @ weight + bias).to(rows.dtype)


def _windows(ids: Sequence[int], bos: int | None, num_windows: int, length: int) -> Tensor:
    stride = (len(ids) - length) // max(1, num_windows - 1)
    windows = torch.tensor([ids[i * stride : i * stride + length] for i in range(num_windows)])
    if bos is not None:
        windows[:, 0] = bos
    return windows


def _bos(tokenizer: Any) -> int | None:
    """The token that the tokenizer's default encoding puts before every text, if it does."""
    first = tokenizer("a")["input_ids"][0]
    return int(first) if first in tokenizer.all_special_ids else None


def _load(path: Path, key: str, parts: Parts) -> TunedLens | None:
    """The lens in this file of the cache; None where there is none, or it is damaged, so that it is fitted again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("key")
            weights, biases = file.get_tensor("weights"), file.get_tensor("biases")
    except (FileNotFoundError, SafetensorError):
        return None
    if found != key or len(weights) != parts.num_layers:
        return None
    return TunedLens(weights.to(parts.device), biases.to(parts.device), key)
