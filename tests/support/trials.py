"""A trial made of invented runs: its record, its times, and its curves."""

import numpy as np

from hybridizer.evaluate.figures import ACCURACY, BITS_PER_BYTE, make_figure
from hybridizer.evaluate.trial import ArmRun, summarise
from hybridizer.evaluate.trial_record import (
    ArmCost,
    ArmFigure,
    Outcome,
    Primary,
    RateScore,
    RunTimes,
    TrialArm,
    TrialPair,
    TrialRecord,
    TrialTimes,
)
from hybridizer.report.trial_curves import RunCurve

OUTCOMES = (
    Outcome("python", BITS_PER_BYTE, "in-domain", True),
    Outcome("news", BITS_PER_BYTE, "retention", True),
    Outcome("exam-en", ACCURACY, "task", False, 0.25),
)
BEFORE = {"python": 1.3, "news": 1.3, "exam-en": 0.45}
GAINS = {"deep": 0.20, "shallow": 0.21, "full": 0.30}
LOSSES = {"deep": 0.005, "shallow": 0.012, "full": 0.03}
SPEEDS = {"deep": 2.0, "shallow": 2.6, "full": 3.4}


def make_runs(arms=tuple(GAINS), seeds=(0, 1, 2), groups=24):
    """Runs whose arms gain and forget as the tables above say, with a spread over seeds and documents."""
    generator = np.random.default_rng(3)
    levels = {what: 1.3 + 0.3 * generator.normal(size=groups) for what in ("python", "news")}
    skill = generator.random(groups)
    names = [str(n) for n in range(groups)]
    runs = []
    for arm in arms:
        for seed in seeds:
            noise = 0.004 * generator.normal() + 0.01 * generator.normal(size=groups)
            bits = {"python": levels["python"] - GAINS[arm] + noise, "news": levels["news"] + LOSSES[arm] + noise / 4}
            figures = [make_figure(what, BITS_PER_BYTE, "i", v, [1.0] * groups, names) for what, v in bits.items()]
            right = (skill + 0.1 * generator.normal(size=groups) > 0.6).astype(float)
            figures.append(make_figure("exam-en", ACCURACY, "i", right, [1.0] * groups, names, 0.25))
            runs.append(ArmRun(arm, seed, tuple(figures)))
    return runs


def make_record(arms=tuple(GAINS), seeds=(0, 1, 2), groups=24):
    """The record of those runs, as `hybridize trial` makes it of real ones."""
    found = summarise(make_runs(arms, seeds, groups), arms, ("python", BITS_PER_BYTE))
    made = []
    for number, arm in enumerate(arms):
        figures = tuple(
            ArmFigure(f.what, f.metric, f.value, f.value_ci, tuple(v for _, v in f.by_seed), BEFORE[f.what], f.caveat)
            for f in found.arms
            if f.arm == arm
        )
        cost = ArmCost(50_000_000 * (number + 1), 30_000_000, 40, 81_920, 4.2e13 * (number + 1), 2_000_000_000)
        rates = (RateScore(1e-4, 1.2, False), RateScore(2e-4, 1.1, True))
        made.append(
            TrialArm(
                arm, {"train.freeze": arm}, {}, (1, 2), ("embedding",), seeds, 2e-4, rates, cost, ("sha256:0",), figures
            )
        )
    pairs = tuple(
        TrialPair(p.a, p.b, p.what, p.metric, p.difference, p.difference_ci, p.p, p.p_holm, p.verdict, p.caveat)
        for p in found.pairs
    )
    detectable = found.detectable.difference if found.detectable else None
    primary = Primary("python", BITS_PER_BYTE)
    return TrialRecord("zh-or-deep", "sha256:1", primary, detectable, seeds, OUTCOMES, tuple(made), pairs).to_json()


def make_times(arms=tuple(GAINS), seeds=(0, 1, 2), peak_bytes=1_500_000_000):
    """Times of the same runs, and one more of a learning rate that was not chosen."""
    runs = [RunTimes(arm, 2e-4, seed, 100 * SPEEDS[arm] + 3 * seed, peak_bytes) for arm in arms for seed in seeds]
    return TrialTimes("cpu", (*runs, RunTimes(arms[0], 1e-4, 0, 9e5, 9_000_000_000_000))).to_json()


def make_curves(arms=tuple(GAINS), seeds=(0, 1, 2)):
    """Curves of both texts every 10 of 40 steps."""
    generator = np.random.default_rng(4)
    curves = []
    for number, arm in enumerate(arms):
        for seed in seeds:
            rows = []
            for step in range(0, 41, 10):
                done = 1 - np.exp(-step / 15)
                about = {"step": step, "tokens": 2048 * step, "flop": 1e12 * step * (number + 1)}
                about["seconds"] = SPEEDS[arm] * step * (1 + 0.02 * seed)
                for role, text, change in (("in-domain", "python", -GAINS[arm]), ("general", "news", LOSSES[arm])):
                    bits = 1.3 + change * done + (0.004 * generator.normal() if step else 0)
                    rows.append({**about, "set": text, "role": role, "bits_per_byte": float(bits)})
            curves.append(RunCurve(arm, seed, rows))
    return curves
