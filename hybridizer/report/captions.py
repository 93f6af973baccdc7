"""The captions of pictures and tables of a trace, from the plain object of the contract "hybridizer.trace/3"."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from hybridizer.recipe.layers import format_layers
from hybridizer.trace.blind import LEAST_EXPLAINED

Record = Mapping[str, Any]


def caption(record: Record, boundary: int | None, verdict: str | None = None) -> list[str]:
    """Up to six lines: the donor, how it was traced, what was found, where the lens fails, S at the boundary, and the
    verdict of its licence.
    """
    lines = [
        f"{reference(record)}, {len(record['layers'])} layers",
        setting(record),
        findings(record),
        blindness(record),
    ]
    if boundary is not None:
        row = record["boundary"][boundary - 1]
        score = f"debiased S({boundary}) = {row['s_debiased']:+.3f} bits{spread(row['s_debiased_ci'], '+.3f')}"
        lines.append(f"boundary at layer {boundary}, the first deep one: {score}")
        if verdict is not None:
            lines.append(f"freezing layers {boundary}..{len(record['layers']) - 1}: {verdict}")
    return [line for line in lines if line]


def blindness(record: Record) -> str:
    """The layers at which the lens explains less than LEAST_EXPLAINED of the final distribution; "" for none."""
    blind = blind_layers(record)
    if not blind:
        return ""
    lens, layers = record["settings"]["lens"], one_line(format_layers(blind), 30)
    return f"the {lens} lens explains under {LEAST_EXPLAINED:.0%} of the answer at layers {layers}"


def blind_layers(record: Record) -> list[int]:
    """The layers at which the lens explains less than LEAST_EXPLAINED of the final distribution."""
    return [row["layer"] for row in record["layers"] if row.get("blind")]


def reference(record: Record) -> str:
    """The donor's name, short enough for a line; of a folder the last part of its path."""
    return name_donors([record])[0]


def name_donors(records: Sequence[Record]) -> list[str]:
    """The names of donors, short enough for a line.

    Of a folder or file it is as much of the path's end as distinguishes it from the others; hub ids and package
    references are kept whole.
    """
    references = [str(record["donor"]["reference"]) for record in records]
    paths = [PurePath(text) if text.startswith(("/", "./", "../", "~")) else None for text in references]
    longest = max((len(path.parts) for path in paths if path), default=1)
    names = references
    for size in range(1, longest + 1):
        names = ["/".join(p.parts[-size:]) if p else text for p, text in zip(paths, references, strict=True)]
        if len(set(names)) == len(set(references)):
            break
    return [one_line(name, 70) for name in names]


def setting(record: Record) -> str:
    """What was traced and how: n, probes, perturbation, lens."""
    settings, probes = record["settings"], record["probes"]
    share = settings.get("mask_ratio")
    what = {"both": "context and layer perturbation"}.get(settings["perturb"], f"{settings['perturb']} perturbation")
    masked = f" ({share:.0%} masked)" if share is not None else ""
    return f"{count_prompts(probes)} of {one_line(probes['name'], 40)}, {what}{masked}, {settings['lens']} lens"


def count_prompts(probes: Mapping[str, Any]) -> str:
    """How many prompts there are, and in how many clusters, where that is fewer."""
    n, num_clusters = probes["n"], probes.get("num_clusters", probes["n"])
    return f"{n} prompts" + (f" in {num_clusters} clusters" if num_clusters != n else "")


def findings(record: Record) -> str:
    """The figures of the whole model that the record has: accuracy, vulnerable layer, prompts without task particle."""
    found = []
    if record.get("accuracy") is not None:
        found.append(f"accuracy {record['accuracy']:.1%}{spread(record.get('accuracy_ci'), '.1%')}")
    if record.get("vulnerable_layer"):
        found.append(f"vulnerable layer {record['vulnerable_layer']['layer']}")
    if record["task_particle"].get("num_without"):
        found.append(f"{record['task_particle']['num_without']} prompts without a task particle")
    return "; ".join(found)


def spread(band: Sequence[float] | None, form: str) -> str:
    """An interval in brackets, its ends in the given format; nothing where there is none."""
    return f" (95% interval {band[0]:{form}} to {band[1]:{form}})" if band else ""


def one_line(name: object, max_width: int) -> str:
    """A name on one line, its middle left out where it is wider than so many Latin letters (Chinese: half)."""
    line = " ".join(str(name).split())
    if _width(line) > max_width:
        side = (max_width - 3) // 2
        line = f"{_start(line, side)}...{_start(line[::-1], side)[::-1]}"
    return line


def _start(text: str, max_width: int) -> str:
    while _width(text) > max_width:
        text = text[:-1]
    return text


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
