"""Does the trace of a model predict at which boundary freezing deep pays? Measured: boundaries trained, then compared.

    python scripts/quickstart_texts.py runs/texts
    python scripts/trace_outcome.py runs/trace_outcome                      # SmolLM2-135M-Instruct
    python scripts/trace_outcome.py runs/trace_outcome_gemma --model FOLDER/gemma-3-270m-q4_k_m.gguf
    python scripts/trace_outcome.py runs/trace_outcome --only-table         # from what is measured

For boundaries at even depths, freeze deep and train shallow with a small budget, on one text and several seeds; then
the gain on its held-out documents and the loss on a general text, against what one trace of the untrained model says.
Finished runs are kept in the folder, so that a study that was stopped resumes. Writes trace_outcome.json and
trace_outcome.md there.

More layers train where the boundary is deeper, so that the boundary itself is the predictor to beat: it is listed
first, and every other one is also judged given the boundary.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rank_correlation import MOST_POINTS, correlate, partial, permutation_p
from smollm2 import REFERENCE

from hybridizer import trace
from hybridizer.core.bootstrap import Array, Interval, drawn_interval
from hybridizer.core.progress import ConsoleMonitor, duration
from hybridizer.core.records import read_json, to_jsonable, write_json
from hybridizer.evaluate.crossed import crossed_interval, measure_crossed
from hybridizer.evaluate.figures import Figure
from hybridizer.evaluate.power import Detectable, detectable, detectable_after, measured_spread
from hybridizer.evaluate.trial import holm
from hybridizer.pipeline.results import TraceResult
from hybridizer.pipeline.trial_arm import run_arm
from hybridizer.pipeline.trial_sets import open_trial_sets
from hybridizer.pipeline.trial_setup import set_up_trial
from hybridizer.recipe.models import Trace
from hybridizer.trace.probes import load_probes

GENERAL = "general"
NUM_RESAMPLES, SEED = 2000, 0
OUTCOMES = {"gain": "held-out text", "loss": "general text"}
NULL = "the boundary itself"


@dataclass(frozen=True)
class Measured:
    """Bits of documents before and after training: `before` (documents,), `after` (boundaries, seeds, documents)."""

    before: Array
    after: Array
    num_bytes: Array


def study_recipe(args: argparse.Namespace, num_layers: int) -> dict[str, Any]:
    """The trial: one arm for each boundary."""
    boundaries = [round(num_layers * k / (args.boundaries + 1)) for k in range(1, args.boundaries + 1)]
    return {
        "name": "trial",
        "donors": {"model": args.model},
        "layout": {"deep": "model", "shallow": "model", "boundary": boundaries[0]},
        "train": {
            "data": [{"path": str(args.train.absolute())}],
            "tokens": args.steps * args.rows * args.seq_len,
            "freeze": "deep",
            "seq_len": args.seq_len,
            "global_batch_size": args.rows,
            "heldout_ratio": args.heldout,
            "lr": args.lr,
        },
        "trial": {
            "arms": {f"boundary-{b}": {"layout.boundary": b} for b in boundaries},
            "seeds": list(range(args.seeds)),
        },
        "evaluate": {
            "bits_per_byte": [{"name": GENERAL, "path": str(args.general.absolute())}],
            "max_tokens": args.max_tokens,
            "context": args.seq_len,
        },
        "output": {"dtype": "bfloat16"},
    }


def measure(recipe: Mapping[str, Any], folder: Path) -> tuple[list[int], dict[str, Measured]]:
    """Train and measure what is missing in `folder`: the boundaries, and both texts by the name of their outcome."""
    monitor = ConsoleMonitor()
    setup = set_up_trial(recipe, (), folder, monitor)
    sets = open_trial_sets(setup, monitor)
    began, found = time.monotonic(), []
    for done, arm in enumerate(setup.arms, start=1):
        found.append(run_arm(setup, sets, arm, monitor))
        spent = time.monotonic() - began
        left = spent / done * (len(setup.arms) - done)
        monitor.note(f"{done} of {len(setup.arms)} boundaries in {duration(spent)}; about {duration(left)} left")
    places = [(0, "gain"), (1, "loss")]  # the held-out half of the only source comes first
    texts = {}
    for at, name in places:
        before = found[0].before.figures[at]
        after = [[run.figures[at] for run in arm.runs.values()] for arm in found]
        assert all(run.items == before.items for runs in after for run in runs)
        texts[name] = Measured(
            _values(before), np.array([[_values(r) for r in runs] for runs in after]), _sizes(before)
        )
    return [int(arm.overrides["layout.boundary"]) for arm in setup.arms], texts


def _values(figure: Figure) -> Array:
    return np.array(figure.values)


def _sizes(figure: Figure) -> Array:
    return np.array(figure.sizes)


def predictors(traced: TraceResult, boundaries: Sequence[int]) -> dict[str, Array]:
    """Each predictor at every boundary: from the trace's own figures, and of the other papers' measures of a layer.

    Of a measure of a layer: its mean over the shallow layers less that over the deep ones, as S(b) is of dJS, and the
    mean over the deep layers.
    """
    by_boundary = {row["b"]: row for row in traced.record["boundary"]}
    rows = [by_boundary[b] for b in boundaries]
    found = {
        NULL: np.array(boundaries, np.float64),
        "S(b)": np.array([row["s"] for row in rows]),
        "S(b), debiased": np.array([row["s_debiased"] for row in rows]),
        "deep stability": np.array([row["deep_stability"] for row in rows]),
    }
    layers = {scores.name: scores.values for scores in traced.baselines}
    layers["layer perturbation"] = tuple(row["layer_js"] for row in traced.record["layers"])
    for name, values in layers.items():
        known = np.array([math.nan if value is None else value for value in values])
        deep = np.array([np.nanmean(known[b:]) for b in boundaries])
        found[f"{name}, shallow less deep"] = np.array([np.nanmean(known[:b]) for b in boundaries]) - deep
        found[f"{name}, deep"] = deep
    return found


def outcome_samples(name: str, measured: Measured, generator: np.random.Generator) -> tuple[Array, Array]:
    """The outcome of each boundary in bits per byte, (boundaries,), and its bootstrap samples (resamples, boundaries).

    Seeds and documents are drawn, the same for all boundaries: runs of one seed saw the same data.
    """
    changes = measured.after - measured.before
    sign = -1.0 if name == "gain" else 1.0
    num_seeds, num_documents = changes.shape[1:]
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), NUM_RESAMPLES) / num_seeds
    documents = generator.multinomial(num_documents, np.full(num_documents, 1 / num_documents), NUM_RESAMPLES)
    sums = np.einsum("rs,rd,bsd->rb", seeds, documents, changes, optimize=True)
    values = changes.mean(axis=1).sum(axis=1) / measured.num_bytes.sum()
    return sign * values, sign * sums / (documents @ measured.num_bytes)[:, None]


def judge(boundaries: Sequence[int], texts: Mapping[str, Measured], found: Mapping[str, Array]) -> dict[str, Any]:
    """The record: every outcome with its interval, every predictor with its rank correlations."""
    generator = np.random.default_rng(SEED)
    depth = np.array(boundaries, np.float64)
    record: dict[str, Any] = {"boundaries": list(boundaries), "outcomes": {}, "detectable": {}}
    record |= {"predictors": found, "correlations": []}
    for outcome, measured in texts.items():
        values, samples = outcome_samples(outcome, measured, generator)
        record["outcomes"][outcome] = _outcome(outcome, measured, values)
        record["detectable"][outcome] = _detectable(measured)
        p_values = {name: permutation_p(x, values) for name, x in found.items()}
        known = [name for name, p in p_values.items() if not math.isnan(p)]
        corrected = dict(zip(known, holm([p_values[name] for name in known]), strict=True))
        for name, x in found.items():
            given = None if name == NULL else _with_interval(partial(x, values, depth), partial(x, samples, depth))
            about = {"outcome": outcome, "predictor": name, "p_holm": corrected.get(name)}
            rho = _with_interval(correlate(x, values), correlate(x, samples))
            record["correlations"].append({**about, "rho": rho, "p": _number(p_values[name]), "given_boundary": given})
    return record


def _outcome(name: str, measured: Measured, values: Array) -> list[dict[str, Any]]:
    sign = -1.0 if name == "gain" else 1.0
    rows = []
    for value, after in zip(values, measured.after, strict=True):
        changes = sign * (after - measured.before)
        seeds = changes.sum(axis=1) / measured.num_bytes.sum()
        row: dict[str, Any] = {"value": float(value), "ci": None, "seeds": seeds.tolist()}
        if len(after) > 1:
            crossed = measure_crossed(changes, measured.num_bytes)
            row |= {"ci": crossed_interval(crossed), "spread": measured_spread(crossed)}
        rows.append(row)
    return rows


def _detectable(measured: Measured) -> Detectable | None:
    """What differences of two boundaries these runs could show, and the spread of such a difference; one pair."""
    if measured.after.shape[1] < 2:
        return None
    pairs = [measure_crossed(b - a, measured.num_bytes) for a, b in itertools.combinations(measured.after, 2)]
    found = detectable_after(pairs)
    assert found is not None, "there are documents"
    return detectable(found.spread, found.num_seeds, found.num_groups, 1, assumed=False)


def _with_interval(value: Array, samples: Array) -> dict[str, Any]:
    known = samples[~np.isnan(samples)]
    band: Interval | None = drawn_interval(known) if len(known) > NUM_RESAMPLES / 2 else None
    return {"value": _number(float(value)), "ci": band}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def as_markdown(record: Mapping[str, Any]) -> str:
    """Two tables: the outcomes by boundary, and the rank correlations; then what they say."""
    lines = [record["about"], "", "| boundary | gain on held-out text | loss on general text |", "|---|---|---|"]
    for at, b in enumerate(record["boundaries"]):
        cells = [_cell(record["outcomes"][name][at], ".4f") for name in OUTCOMES]
        lines.append(f"| {b} | {' | '.join(cells)} |")
    lines += [
        "",
        "| predictor | outcome | rank correlation | p | p, Holm | given the boundary |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(record["correlations"], key=lambda row: row["outcome"]):
        given = "" if row["given_boundary"] is None else _cell(row["given_boundary"], ".2f")
        p, corrected = ("-" if row[key] is None else f"{row[key]:.3f}" for key in ("p", "p_holm"))
        lines.append(
            f"| {row['predictor']} | {row['outcome']} | {_cell(row['rho'], '.2f')} | {p} | {corrected} | {given} |"
        )
    return "\n".join([*lines, "", *conclusions(record)]) + "\n"


def conclusions(record: Mapping[str, Any]) -> list[str]:
    """For each outcome, what beats the boundary itself: predictors whose partial interval holds no 0."""
    lines = []
    for outcome in OUTCOMES:
        rows = [row for row in record["correlations"] if row["outcome"] == outcome and row["predictor"] != NULL]
        null = next(r for r in record["correlations"] if r["outcome"] == outcome and r["predictor"] == NULL)
        told = [row["predictor"] for row in rows if _excludes_zero(row["given_boundary"]["ci"])]
        text = f"{', '.join(told)} say more" if told else "no predictor says more"
        value = "-" if null["rho"]["value"] is None else f"{null['rho']['value']:.2f}"
        lines.append(f"- {outcome}: the boundary itself has a rank correlation of {value}; given it, {text}.")
    return [*lines, *(f"- {outcome}: {_spread_words(record['detectable'][outcome])}" for outcome in OUTCOMES)]


def _spread_words(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "one seed shows no spread."
    spread = found["spread"]
    return (
        f"a difference of two boundaries changes by {spread['by_seed']:.4f} with the seed, by {spread['by_group']:.4f} "
        f"with the document, by {spread['by_chance']:.4f} beyond both (standard deviations in bits per byte); "
        f"{found['difference']:.4f} could be shown."
    )


def _excludes_zero(band: Sequence[float] | None) -> bool:
    return band is not None and not band[0] <= 0 <= band[1]


def _cell(found: Mapping[str, Any], form: str) -> str:
    if found["value"] is None:
        return "-"
    band = "" if found["ci"] is None else f" ({found['ci'][0]:+{form}} to {found['ci'][1]:+{form}})"
    return f"{found['value']:+{form}}{band}"


def run_trace(args: argparse.Namespace, folder: Path) -> TraceResult:
    """One trace of the untrained model, with the other papers' measures, on `--prompts` of the probes."""
    source = load_probes(args.probes).probes
    step = max(1, len(source) // args.prompts)
    chosen = folder / f"probes-{args.prompts}.jsonl"
    chosen.write_text("".join(json.dumps(vars(probe)) + "\n" for probe in source[::step][: args.prompts]))
    (traced,) = trace(
        args.model, seed=SEED, baselines=True, progress=True, probes=str(chosen), perturb="both", dtype=Trace().dtype
    )
    return traced


def main() -> None:
    """Measure what is missing, then write the record and the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=REFERENCE, help="a donor, as in a recipe")
    parser.add_argument("--train", type=Path, default=Path("runs/texts/python.jsonl"), help="the text to learn")
    parser.add_argument("--general", type=Path, default=Path("runs/texts/news.jsonl"), help="the text to retain")
    parser.add_argument("--boundaries", type=int, default=6, help=f"how many, at even depths; 3 to {MOST_POINTS}")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", type=int, default=4, help="rows per step")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens per row")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--heldout", type=float, default=0.3, help="the share of the text that is held out")
    parser.add_argument("--max-tokens", type=int, default=6000, help="tokens scored per text")
    parser.add_argument("--probes", default="antonyms-en")
    parser.add_argument("--prompts", type=int, default=100, help="probes in the trace")
    parser.add_argument("--only-table", action="store_true", help="make the tables again from trace_outcome.json")
    args = parser.parse_args()
    if not 3 <= args.boundaries <= MOST_POINTS:
        parser.error(f"--boundaries is 3 to {MOST_POINTS}")
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "trace_outcome.json"
    if not args.only_table:
        traced = run_trace(args, args.folder)
        boundaries, texts = measure(study_recipe(args, traced.num_layers), args.folder)
        about = (
            f"{args.model}, {traced.num_layers} layers: {args.steps} steps of {args.rows} x {args.seq_len} tokens, "
            f"{args.seeds} seeds, learning rate {args.lr:g}; {traced.record['probes']['n']} prompts in the trace"
        )
        write_json(
            path, to_jsonable({"about": about, **_plain(judge(boundaries, texts, predictors(traced, boundaries)))})
        )
    text = as_markdown(read_json(path))
    path.with_suffix(".md").write_text(text)
    print(text)


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "predictors": {name: values.tolist() for name, values in record["predictors"].items()}}


if __name__ == "__main__":
    main()
