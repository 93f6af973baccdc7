"""How often each measure picks the sound donor, side and layer, where the truth is known. Writes a Markdown table.

    python scripts/known_truth.py runs/known_truth             # measure what is missing there, then the tables
    python scripts/known_truth.py runs/known_truth --only-table

Donors are made in memory from SmolLM2-135M-Instruct: noise on every matrix, pruned, shuffled, random, memorising; each
in all layers, the deep side or the shallow side. Every reading is kept in the folder, so an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from known_truth_donors import (
    SINGLE_NOISE,
    Arrays,
    Bench,
    Unit,
    add_snr,
    choose_prompts,
    damage,
    list_units,
    make_parser,
    memorise,
    read,
)
from known_truth_donors import single_layers as single_layers_of
from smollm2 import checkpoint_folder

from hybridizer.core.bootstrap import Array, Interval, drawn_interval, proportion_interval, resampling_weights
from hybridizer.models.load import load_causal_lm, load_tokenizer
from hybridizer.models.parts import find_parts
from hybridizer.scan.score import builtin_documents, encode_text
from hybridizer.trace.competence import above_chance, chance_level
from hybridizer.trace.probes import load_probes
from hybridizer.trace.prompts import Prompt
from hybridizer.trace.sensitivity import delta_js

BOUNDARY_SHARE = 0.5
NUM_RESAMPLES = 1000
Judged = tuple[float, Array | None]
"""An estimate, higher is better, and its bootstrap samples; None for a measure without an interval."""


@dataclass(frozen=True)
class Side:
    """One side of one donor: readings of the whole donor, and of the host with this side in place of its own."""

    whole: Arrays
    graft: Arrays
    layers: range


class Judge:
    """Bootstrap weights that all donors share, and one function per measure."""

    def __init__(self, num_prompts: int, num_layer_prompts: int, num_documents: int, chance: float) -> None:
        self.prompts = resampling_weights(num_prompts, NUM_RESAMPLES, 0)
        self.layer_prompts = resampling_weights(max(1, num_layer_prompts), NUM_RESAMPLES, 0)
        self.documents = resampling_weights(num_documents, NUM_RESAMPLES, 0)
        self.chance = chance

    def measures(self) -> Mapping[str, Callable[[Side], Judged]]:
        """Every measure by its name in the table, those of the papers first."""
        return {
            "stability (arXiv 2605.11416)": lambda s: self._stability(s.whole["js"], s.layers),
            "stability, share of the total": self._share,
            "stability per distance of states": self._per_distance,
            "stability per entropy of the answer": lambda s: self._stability(
                s.whole["js"] / np.maximum(0.1, s.whole["entropy"])[:, None], s.layers
            ),
            "stability under layer noise (arXiv 2604.20556)": lambda s: self._layers(s, "layer_js", 1, -1),
            "block influence (arXiv 2403.03853)": lambda s: self._layers(s, "influence", 0, 1),
            "angular distance (arXiv 2403.17887)": lambda s: self._layers(s, "angle", 0, 1),
            "signal to noise of weights (arXiv 2406.06623)": lambda s: (
                (float(np.nanmean(s.graft["snr"][list(s.layers)])), None) if "snr" in s.graft else (np.nan, None)
            ),
            "whole-model accuracy": lambda s: self._accuracy(s.whole),
            "stability x whole-model competence": lambda s: self._times(
                self._stability(s.whole["js"], s.layers), self._competence(s.whole)
            ),
            "transplant accuracy": lambda s: self._accuracy(s.graft),
            "transplant target probability": lambda s: self._mean(s.graft["prob"]),
            "transplant competence": lambda s: self._competence(s.graft),
            "transplant bits per byte": lambda s: self._bits(s.graft),
            "stability x transplant competence": lambda s: self._times(
                self._stability(s.whole["js"], s.layers), self._competence(s.graft)
            ),
            "stability x transplant 1/bits": lambda s: self._times(
                self._stability(s.whole["js"], s.layers), self._inverse_bits(s.graft)
            ),
            "transplant competence x 1/bits": lambda s: self._times(
                self._competence(s.graft), self._inverse_bits(s.graft)
            ),
        }

    def _stability(self, js: Array, layers: range) -> Judged:
        estimate = 1 - float(delta_js(js.mean(axis=0))[list(layers)].mean())
        return estimate, 1 - delta_js(self.prompts @ js)[:, list(layers)].mean(axis=1)

    def _share(self, side: Side) -> Judged:
        js = side.whole["js"]
        changes, samples = delta_js(js.mean(axis=0)), delta_js(self.prompts @ js)
        chosen = list(side.layers)
        return (
            1 - float(changes[chosen].mean() / max(changes.sum(), 1e-12)),
            1 - samples[:, chosen].mean(axis=1) / np.maximum(samples.sum(axis=1), 1e-12),
        )

    def _per_distance(self, side: Side) -> Judged:
        js, gaps, chosen = side.whole["js"], side.whole["distance"][:, 1:], list(side.layers)
        estimate = delta_js(js.mean(axis=0))[chosen].mean() / max(gaps[:, chosen].mean(), 1e-9)
        samples = delta_js(self.prompts @ js)[:, chosen].mean(axis=1)
        return -float(estimate), -samples / np.maximum((self.prompts @ gaps)[:, chosen].mean(axis=1), 1e-9)

    def _layers(self, side: Side, name: str, skip: int, sign: int) -> Judged:
        values = side.whole[name][:, skip:][:, list(side.layers)].mean(axis=1)
        weights = self.layer_prompts if name == "layer_js" else self.prompts
        return sign * float(values.mean()), sign * (weights @ values)

    def _mean(self, values: Array) -> Judged:
        return float(values.mean()), self.prompts @ values

    def _accuracy(self, run: Arrays) -> Judged:
        return self._mean(run["hit"])

    def _competence(self, run: Arrays) -> Judged:
        def both(hit: Array, prob: Array) -> Array:
            return (above_chance(hit, self.chance) + above_chance(prob, self.chance)) / 2

        estimate = both(np.asarray(run["hit"].mean()), np.asarray(run["prob"].mean()))
        return float(estimate), both(self.prompts @ run["hit"], self.prompts @ run["prob"])

    def _bits(self, run: Arrays) -> Judged:
        """Minus bits per byte of the documents together."""
        total = run["num_bytes"].sum()
        samples = (self.documents @ run["bits"]) / (self.documents @ run["num_bytes"])
        return -float(run["bits"].sum() / total), -samples

    def _inverse_bits(self, run: Arrays) -> Judged:
        estimate, samples = self._bits(run)
        assert samples is not None
        return -1 / estimate, -1 / samples

    @staticmethod
    def _times(one: Judged, other: Judged) -> Judged:
        # Prompts and documents are drawn independently, so that samples of both may be multiplied row by row.
        assert one[1] is not None and other[1] is not None
        return one[0] * other[0], one[1] * other[1]


def decide(sound: Judged, other: Judged) -> str:
    """ "right" where the sound one is higher beyond doubt, "tie" where the paired interval holds 0, else "wrong"."""
    if np.isnan(sound[0]) or np.isnan(other[0]):
        return "none"
    if sound[1] is None or other[1] is None:
        return "tie" if sound[0] == other[0] else "right" if sound[0] > other[0] else "wrong"
    low, high = drawn_interval(sound[1] - other[1])
    return "right" if low > 0 else "wrong" if high < 0 else "tie"


@dataclass(frozen=True)
class Question:
    """Two candidates for one side, of which the first is right."""

    about: str
    unit: Unit
    sound: Side
    other: Side


def questions(runs: Mapping[str, Arrays], units: Sequence[Unit], boundary: int, depth: int) -> list[Question]:
    """All questions that the runs can answer; `own` is the sound model, which is the host where nothing is said.

    `one` is the sound donor against one damaged in the side that is asked for, `all` against one damaged everywhere;
    in `crossed` each candidate is damaged in one side, and either of them is the host.
    """
    own, found = runs["own"], []
    for unit in units:
        names = {side: f"{unit.name}-{side}" for side in ("deep", "shallow", "all")}
        if any(name not in runs for name in names.values()):
            continue
        bad = {side: runs[name] for side, name in names.items()}
        for side, opposite, layers in (
            ("deep", "shallow", range(boundary, depth)),
            ("shallow", "deep", range(boundary)),
        ):
            if unit.kind == "memoriser" and side == "shallow":
                continue
            here, there, both = bad[side], bad[opposite], bad["all"]
            sound = Side(own, own, layers)
            pairs = [(sound, Side(here, here, layers)), (sound, Side(both, here, layers))]
            if unit.kind != "memoriser":
                pairs.append(
                    (Side(there, own, layers), Side(here, here, layers))
                )  # the other side of the host is sound
                pairs.append((Side(there, there, layers), Side(here, both, layers)))  # it is damaged
            found += [Question(side, unit, one, other) for one, other in pairs]
    return found


def ask_sides(judge: Judge, measure: Callable[[Side], Judged], question: Question, layout: tuple[int, int]) -> str:
    """Whether the damaged side of a donor damaged in one side is the one that lost more against the sound donor."""
    boundary, depth = layout
    asked, rest = range(boundary, depth), range(boundary)
    if question.about == "shallow":
        asked, rest = rest, asked
    own, bad = question.sound.whole, question.other.whole
    losses = []
    for layers, graft in ((rest, own), (asked, bad)):
        before, after = measure(Side(own, own, layers)), measure(Side(bad, graft, layers))
        samples = None if before[1] is None or after[1] is None else after[1] - before[1]
        losses.append((after[0] - before[0], samples))
    return decide(losses[0], losses[1])


def find_layer(runs: Mapping[str, Arrays], layer: int, name: str, profile: Callable[[Arrays], Array]) -> str:
    """Whether the layer whose profile changed most against the sound model is the damaged one."""
    change = np.abs(profile(runs[name]) - profile(runs["own"]))
    return "right" if int(np.nanargmax(change)) == layer else "wrong"


LAYER_PROFILES: Mapping[str, Callable[[Arrays], Array]] = {
    "stability (arXiv 2605.11416)": lambda run: delta_js(run["js"].mean(axis=0)),
    "stability, share of the total": lambda run: delta_js(run["js"].mean(axis=0)) / delta_js(run["js"].mean(0)).sum(),
    "stability per distance of states": lambda run: (
        delta_js(run["js"].mean(axis=0)) / run["distance"][:, 1:].mean(axis=0)
    ),
    "stability per entropy of the answer": lambda run: delta_js(
        (run["js"] / np.maximum(0.1, run["entropy"])[:, None]).mean(axis=0)
    ),
    "stability under layer noise (arXiv 2604.20556)": lambda run: run["layer_js"][:, 1:].mean(axis=0),
    "block influence (arXiv 2403.03853)": lambda run: run["influence"].mean(axis=0),
    "angular distance (arXiv 2403.17887)": lambda run: run["angle"].mean(axis=0),
}


def wilson(hits: Sequence[float] | Array) -> Interval:
    """Wilson's interval of independent answers, at least one."""
    found = proportion_interval(np.asarray(hits, np.float64))
    assert found is not None, "there are answers"
    return found


def tell(answers: Sequence[str]) -> str:
    """Share of right answers with its Wilson interval, then right / tie / wrong as counts."""
    asked = [answer for answer in answers if answer != "none"]
    if not asked:
        return "-"
    right, ties, wrong = (asked.count(word) for word in ("right", "tie", "wrong"))
    low, high = wilson([1.0] * right + [0.0] * (len(asked) - right))
    return f"{right / len(asked):.0%} ({low:.0%} to {high:.0%}); {right} / {ties} / {wrong}"


def table(runs: Mapping[str, Arrays], units: Sequence[Unit], layout: tuple[int, int], judge: Judge) -> str:
    """The Markdown table of all measures."""
    asked = questions(runs, units, *layout)
    singles = {name: int(name.split("-")[1]) for name in runs if name.startswith("single-")}
    lines = [
        "| measure | deep donor, damage of 10% or more | deep donor, less | shallow donor, 10% or more | damaged side"
        " | damaged layer |",
        "|---|---|---|---|---|---|",
    ]
    for name, measure in judge.measures().items():
        cells = []
        for about, large in (("deep", True), ("deep", False), ("shallow", True)):
            chosen = [q for q in asked if q.about == about and q.unit.is_large == large]
            cells.append(tell([decide(measure(q.sound), measure(q.other)) for q in chosen]))
        one_sided = [
            q for q in asked if q.sound.whole is runs["own"] and q.other.whole is q.other.graft and q.unit.is_large
        ]
        cells.append(tell([ask_sides(judge, measure, q, layout) for q in one_sided if q.unit.kind != "memoriser"]))
        layers = (
            [find_layer(runs, k, single, LAYER_PROFILES[name]) for single, k in singles.items()]
            if (name in LAYER_PROFILES)
            else []
        )
        cells.append(tell(layers))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def trend_table(runs: Mapping[str, Arrays], units: Sequence[Unit], layout: tuple[int, int], judge: Judge) -> str:
    """How each measure of the deep side changes with noise there: does it fall with each size from 10% on?"""
    boundary, depth = layout
    sizes = sorted({unit.size for unit in units if unit.kind == "noise"})
    lines = ["| measure, deep side | sound | " + " | ".join(f"{size:.0%} noise" for size in sizes) + " | falls |"]
    lines.append("|---" * (len(sizes) + 3) + "|")
    deep = range(boundary, depth)
    for name, measure in judge.measures().items():
        values = [measure(Side(runs["own"], runs["own"], deep))[0]]
        for size in sizes:
            found = [runs[f"{u.name}-deep"] for u in units if u.kind == "noise" and u.size == size
                     and f"{u.name}-deep" in runs]  # fmt: skip
            values.append(float(np.mean([measure(Side(run, run, deep))[0] for run in found])) if found else np.nan)
        kept = [values[0], *(value for size, value in zip(sizes, values[1:], strict=True) if size >= 0.10)]
        known = [value for value in kept if not np.isnan(value)]
        falls = "yes" if len(known) > 1 and all(a > b for a, b in itertools.pairwise(known)) else "no"
        lines.append(f"| {name} | " + " | ".join(f"{value:.4f}" for value in values) + f" | {falls} |")
    return "\n".join(lines)


def floor_table(runs: Mapping[str, Arrays], units: Sequence[Unit], chance: float) -> str:
    """Which deep sides the floor lets through: the Wilson interval of the transplant's accuracy lies above chance."""
    lines = [
        "| deep side | seeds | accuracy on the sound host | bits per byte | above chance |",
        "|---|---|---|---|---|",
    ]
    kinds = dict.fromkeys((unit.kind, unit.size) for unit in units)
    for kind, size in [("sound", 0.0), *kinds]:
        names = [f"{u.name}-deep" for u in units if (u.kind, u.size) == (kind, size)] if kind != "sound" else ["own"]
        found = [runs[name] for name in names if name in runs]
        if not found:
            continue
        rates = [run["hit"].mean() for run in found]
        passed = sum(wilson(run["hit"])[0] > chance for run in found)
        bits = [run["bits"].sum() / run["num_bytes"].sum() for run in found]
        label = f"{kind} {size:.0%}" if size else kind
        row = f"{np.mean(rates):.3f} | {np.mean(bits):.3f} | {passed} of {len(found)}"
        lines.append(f"| {label} | {len(found)} | {row} |")
    return "\n".join(lines)


def measure_all(folder: Path, units: Sequence[Unit], prompts: Sequence[Prompt], arguments: argparse.Namespace) -> None:
    """Measure every composition that is not in `folder` yet."""
    dtype = getattr(torch, arguments.dtype)
    model, tokenizer = load_causal_lm(checkpoint_folder(arguments.model), dtype)
    parts = find_parts(model)
    text = encode_text("python reference", tokenizer, builtin_documents(arguments.bytes))
    bench = Bench(model, parts, round(BOUNDARY_SHARE * parts.num_layers))

    def save(name: str, bad: Sequence[torch.nn.Module], places: Sequence[int]) -> None:
        started = time.process_time()
        composed, its_parts = bench.compose(bad, places)
        arrays = read(composed, its_parts, prompts, text, arguments.layer_prompts)
        np.savez(folder / f"{name}.npz", **arrays)
        print(f"{name}: {time.process_time() - started:.1f} CPU seconds", file=sys.stderr, flush=True)

    def missing(names: Sequence[str]) -> list[str]:
        return [name for name in names if not (folder / f"{name}.npz").is_file()]

    if missing(["own"]):
        save("own", parts.layers, ())
    for unit in units:
        wanted = missing([f"{unit.name}-{side}" for side in bench.sides()])
        if wanted:
            is_memoriser = unit.kind == "memoriser"
            bad = memorise(model, parts, prompts, unit.seed) if is_memoriser else damage(model, parts, unit)
            for name in wanted:
                save(name, bad, bench.sides()[name.rpartition("-")[2]])
    for layer in single_layers_of(parts.num_layers) if arguments.singles else ():
        if missing([f"single-{layer}"]):
            save(f"single-{layer}", damage(model, parts, Unit("noise", SINGLE_NOISE, 9)), (layer,))
    if arguments.snr:
        add_snr(folder, bench, units)


def main() -> None:
    """Measure and print the tables."""
    parser = make_parser(__doc__)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--layer-prompts", type=int, default=4)
    parser.add_argument("--bytes", type=int, default=6000, help="bytes of text")
    parser.add_argument("--seeds", type=int, default=3, help="of noise")
    parser.add_argument("--other-seeds", type=int, default=1, help="of pruned, shuffled, random and memorising donors")
    parser.add_argument("--units", type=int, default=None, help="only the first units")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--snr", action="store_true", help="singular values too, which take a minute per donor")
    parser.add_argument("--singles", action="store_true", help="single damaged layers too")
    parser.add_argument("--only-table", action="store_true")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    units = list_units(arguments.seeds, arguments.other_seeds)[: arguments.units]
    tokenizer = load_tokenizer(checkpoint_folder(arguments.model))
    prompts, targets = choose_prompts(tokenizer, load_probes(arguments.probes), arguments.prompts)
    if not arguments.only_table:
        measure_all(arguments.folder, units, prompts, arguments)
    runs = {path.stem: dict(np.load(path)) for path in sorted(arguments.folder.glob("*.npz"))}
    own, chance = runs["own"], chance_level(targets)
    depth = own["js"].shape[1] - 1
    layout = (round(BOUNDARY_SHARE * depth), depth)
    judge = Judge(len(own["hit"]), len(own["layer_js"]), len(own["bits"]), chance)
    head = f"{len(own['hit'])} prompts, {len(own['bits'])} documents; chance {chance:.1%}; damage at layer {layout[0]}"
    parts = (
        table(runs, units, layout, judge),
        trend_table(runs, units, layout, judge),
        floor_table(runs, units, chance),
    )
    print("\n\n".join((head, *parts)))


if __name__ == "__main__":
    main()
