"""Donors whose damage is known, made in memory from one sound model, and what every measure reads of them.

Not a command; known_truth.py imports it.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from smollm2 import REFERENCE
from torch import Tensor, nn

from hybridizer.evaluate.bits import score_documents
from hybridizer.evaluate.texts import TextSet
from hybridizer.models.batching import make_batches
from hybridizer.models.compose import Composer
from hybridizer.models.parts import Parts, first_floating
from hybridizer.models.residual import read_last_rows, read_outputs
from hybridizer.recipe.models import Trace
from hybridizer.trace.baselines import score_weights
from hybridizer.trace.divergence import js_divergence
from hybridizer.trace.lens import Lens
from hybridizer.trace.masking import choose_mask_token
from hybridizer.trace.perturbation import disturbed_finals
from hybridizer.trace.probes import ProbeSet
from hybridizer.trace.prompts import Prompt, prepare_prompts

Arrays = dict[str, np.ndarray]
NOISE = (0.01, 0.03, 0.10, 0.15, 0.30)
PRUNED = (0.3, 0.5)
SINGLE_LAYERS = (0.1, 0.35, 0.65, 0.9)  # of the depth
SINGLE_NOISE = 0.3


@dataclass(frozen=True)
class Unit:
    """One damage: its kind, its size (a share, 0 where the kind has none), and the seed."""

    kind: str
    size: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.size:g}-{self.seed}"

    @property
    def is_large(self) -> bool:
        """Whether the damage is one that must be found: noise of 10% or more, or of another kind."""
        return self.kind != "noise" or self.size >= 0.10


def list_units(num_seeds: int, num_other_seeds: int = 1) -> list[Unit]:
    """Every damage, `num_seeds` of noise and `num_other_seeds` of the other kinds, one seed after the other."""
    noise = [("noise", size) for size in NOISE]
    others = [("pruned", size) for size in PRUNED] + [(kind, 0.0) for kind in ("shuffled", "random", "memoriser")]
    found = []
    for seed in range(max(num_seeds, num_other_seeds)):
        kinds = noise * (seed < num_seeds) + others * (seed < num_other_seeds)
        found += [Unit(kind, size, seed) for kind, size in kinds]
    return found


def damage(model: nn.Module, parts: Parts, unit: Unit) -> list[nn.Module]:
    """Damaged copies of all layers of `model`, in float32 arithmetic: of all but the memoriser, see `memorise`."""
    layers = [copy.deepcopy(layer) for layer in parts.layers]
    generator = torch.Generator().manual_seed(1000 * unit.seed + 7)
    if unit.kind == "shuffled":
        half = len(layers) // 2
        orders = (torch.randperm(half, generator=generator), torch.randperm(len(layers) - half, generator=generator))
        return [layers[int(i)] for i in orders[0]] + [layers[half + int(i)] for i in orders[1]]
    for layer in layers:
        for weight in layer.parameters():
            if weight.ndim >= 2:
                weight.data = _damaged(weight.data.float(), unit, generator).to(weight.dtype)
    return layers


def _damaged(weight: Tensor, unit: Unit, generator: torch.Generator) -> Tensor:
    if unit.kind == "noise":
        return weight + unit.size * weight.std() * torch.randn(weight.shape, generator=generator)
    if unit.kind == "pruned":
        sizes = weight.abs()
        if unit.seed:  # another draw of the small ones
            sizes = sizes * (0.5 + torch.rand(weight.shape, generator=generator))
        return weight * (sizes > sizes.flatten().kthvalue(int(unit.size * weight.numel())).values)
    assert unit.kind == "random", unit
    return weight.std() * torch.randn(weight.shape, generator=generator)


@torch.no_grad()
def memorise(
    model: nn.Module, parts: Parts, prompts: Sequence[Prompt], seed: int = 0, strength: float = 0.6
) -> list[nn.Module]:
    """Copies of all layers with one matrix of the last one changed so that `prompts` get their answers: all of them
    with seed 0, a draw of three quarters with another.

    Least squares on the inputs of that matrix at the last position: what it adds points to the answer's embedding,
    with `strength` of the norm of the residual stream there.
    """
    layers = [copy.deepcopy(layer) for layer in parts.layers]
    last, known = layers[-1], [prompt for prompt in prompts if prompt.answer is not None]
    if seed:
        known = random.Random(seed).sample(known, len(known) * 3 // 4)
    matrix = [module for module in last.modules() if isinstance(module, nn.Linear)][-1]  # the MLP's output
    original = [module for module in parts.layers[-1].modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    hook = original.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0, -1].float()))
    finals = [read_last_rows(model, parts, torch.tensor([prompt.ids]))[-1][0].float() for prompt in known]
    hook.remove()
    answers = parts.embedding(torch.tensor([prompt.answer for prompt in known])).float()
    aims = answers / answers.norm(dim=-1, keepdim=True) * torch.stack(finals).norm(dim=-1, keepdim=True) * strength
    change = torch.linalg.lstsq(torch.stack(seen), aims, driver="gelsd").solution
    matrix.weight.data = (matrix.weight.data.float() + change.T).to(matrix.weight.dtype)
    return layers


class Bench:
    """The sound model, and compositions of it with one set of damaged layers."""

    def __init__(self, model: nn.Module, parts: Parts, boundary: int) -> None:
        self.model, self.parts, self.boundary = model, parts, boundary

    def compose(self, bad: Sequence[nn.Module], places: Sequence[int]) -> tuple[nn.Module, Parts]:
        """The sound model with its layers in `places` replaced by those of `bad`."""
        donor = copy.copy(self.parts)
        damaged = {"sound": (self.model, self.parts), "bad": (self.model, _with_layers(donor, bad))}
        chosen = [("bad" if layer in places else "sound", layer) for layer in range(self.parts.num_layers)]
        return Composer(damaged, "sound").compose(chosen)

    def sides(self) -> dict[str, range]:
        """Layers to damage, by name."""
        depth = self.parts.num_layers
        return {"deep": range(self.boundary, depth), "shallow": range(self.boundary), "all": range(depth)}


def _with_layers(parts: Parts, layers: Sequence[nn.Module]) -> Parts:
    return replace(parts, layers=tuple(layers))


@torch.no_grad()
def read(
    model: nn.Module, parts: Parts, prompts: Sequence[Prompt], text: TextSet, num_layer_prompts: int, batch: int = 12
) -> Arrays:
    """What every measure needs: arrays by prompt and by document. States are the embedding output and all layers'."""
    n, depth = len(prompts), parts.num_layers
    shapes: dict[str, tuple[int, ...]] = {"js": (n, depth + 1), "distance": (n, depth + 1), "entropy": (n,)}
    shapes |= {"hit": (n,), "prob": (n,), "influence": (n, depth), "angle": (n, depth)}
    found = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
    lens = Lens(model, parts)
    for rows in make_batches([len(prompt.ids) for prompt in prompts], batch):
        chosen = [prompts[row] for row in rows]
        for name, values in _read_batch(model, parts, lens, chosen).items():
            found[name][list(rows)] = values
    found["layer_js"] = _read_layers(model, parts, lens, prompts[:num_layer_prompts])
    found["bits"] = score_documents(model, parts, text, 512)
    found["num_bytes"] = np.array([document.num_bytes for document in text.documents], np.float64)
    return found


def _read_batch(model: nn.Module, parts: Parts, lens: Lens, chosen: Sequence[Prompt]) -> Arrays:
    ids = torch.tensor([prompt.ids for prompt in chosen])
    masked = torch.tensor([prompt.masked for prompt in chosen])
    states = [state.float() for state in read_outputs(model, parts, ids, first_floating)]
    clean = [state[:, -1] for state in states]
    dark = read_last_rows(model, parts, masked)
    dtype = lens.dtype
    log_p = lens.layer_log2_probs([row.to(dtype) for row in clean])
    final = log_p[:, -1]
    answers = [prompt.answer for prompt in chosen]
    cosines = [nn.functional.cosine_similarity(a, b, dim=-1) for a, b in itertools.pairwise(states)]
    gaps = [(a - b.float()).norm(dim=-1) / a.norm(dim=-1) for a, b in zip(clean, dark, strict=True)]
    return {
        "js": js_divergence(log_p, lens.layer_log2_probs(dark)).numpy(),
        "distance": torch.stack(gaps, dim=1).numpy(),
        "entropy": -(final.exp2() * final).sum(dim=-1).numpy(),
        "hit": np.array([float(best == answer) for best, answer in zip(final.argmax(-1), answers, strict=True)]),
        "prob": np.array([float(row[answer].exp2()) for row, answer in zip(final, answers, strict=True)]),
        "influence": torch.stack([1 - cosine.mean(dim=-1) for cosine in cosines], dim=1).numpy(),
        "angle": torch.stack([cosine[:, -1].clamp(-1, 1).acos() / math.pi for cosine in cosines], dim=1).numpy(),
    }


def _read_layers(model: nn.Module, parts: Parts, lens: Lens, prompts: Sequence[Prompt]) -> np.ndarray:
    """The layer perturbation (prompts, states): divergence of the final distribution when one state is disturbed."""
    rows = []
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt.ids])
        clean, disturbed = disturbed_finals(model, parts, ids, 0.1, [index], True)
        final = lens.final_log2_probs([clean[-1]])
        rows.append(js_divergence(final, lens.final_log2_probs(disturbed))[0].numpy())
    return np.array(rows) if rows else np.zeros((0, parts.num_layers + 1))


def read_snr(parts: Parts, layers: Sequence[nn.Module]) -> np.ndarray:
    """Spectrum's signal-to-noise ratio of each of `layers`, (layers,)."""
    return np.array([np.nan if v is None else v for v in score_weights(_with_layers(parts, layers)).values])


def single_layers(depth: int) -> Iterator[int]:
    """The layers that are damaged alone."""
    yield from (int(share * depth) for share in SINGLE_LAYERS)


def add_snr(folder: Path, bench: Bench, units: Sequence[Unit]) -> None:
    """Add singular values to the readings of the sound model and of noisy and pruned donors of the first seed."""
    own = dict(np.load(folder / "own.npz"))
    if "snr" not in own:
        own["snr"] = read_snr(bench.parts, bench.parts.layers)
        np.savez(folder / "own.npz", **own)
    for unit in units:
        names = {side: folder / f"{unit.name}-{side}.npz" for side in bench.sides()}
        runs = {side: dict(np.load(path)) for side, path in names.items()}
        if unit.seed or unit.kind not in ("noise", "pruned") or all("snr" in run for run in runs.values()):
            continue
        damaged = read_snr(bench.parts, damage(bench.model, bench.parts, unit))
        for side, layers in bench.sides().items():
            snr = own["snr"].copy()
            snr[list(layers)] = damaged[list(layers)]
            np.savez(names[side], **{**runs[side], "snr": snr})


def choose_prompts(tokenizer: object, whole: ProbeSet, count: int) -> tuple[list[Prompt], list[str | None]]:
    """The first prompts that have a one-token answer, at most one of each pair of words, and the answers."""
    settings = Trace()
    mask_token = choose_mask_token(tokenizer, settings.mask_with)
    seen: set[str] = set()
    chosen = []
    for probe in whole.probes:
        asked = probe.prompt.rsplit("\n", 1)[-1]
        words = set(asked.split())
        if probe.target is not None and not seen & words and probe.target.strip() not in seen:
            chosen.append(probe)
            seen |= {probe.target.strip(), *(word for word in words if word not in COMMON)}
    prompts = prepare_prompts(ProbeSet("p", "", tuple(chosen)), tokenizer, settings, mask_token, None)
    usable = [(p, probe.target) for p, probe in zip(prompts, chosen, strict=True) if p.answer is not None][:count]
    return [prompt for prompt, _ in usable], [target for _, target in usable]


COMMON = {"The", "opposite", "of", "is", "means", "versus"}


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with what both experiments ask for: a folder of results, a model and probes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=REFERENCE, help="another donor than SmolLM2-135M-Instruct, as in a recipe")
    parser.add_argument("--probes", default="antonyms-en", help="a built-in set, or a file")
    return parser
