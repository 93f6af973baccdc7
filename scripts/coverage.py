"""How often the intervals of S(b) and of deep stability cover the truth, and how often a licence is false: simulated.

    python scripts/coverage.py [--trials 1000] [--prompts 100]

Needs numpy alone. Each profile has a known mean JS at the states of 30 layers,
from which prompts are drawn: pairs that share half of their variance. `real` draws pairs of prompts from the JS of
SmolLM2-135M-Instruct on the 250 built-in English pairs (tests/support/smollm2_js.npz), whose means are then the truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import erf, pi
from pathlib import Path

import numpy as np

from hybridizer.core.bootstrap import (
    Array,
    Clusters,
    Interval,
    bias_left,
    count_clusters,
    debiased_abs,
    interval,
    resampling_weights,
    standard_errors,
    symmetric_intervals,
)
from hybridizer.recipe.models import Trace
from hybridizer.trace.licence import (
    GIVEN,
    INNER,
    LICENSED,
    SettingScores,
    inner_boundaries,
    judge,
    score_settings,
)
from hybridizer.trace.readings import Readings
from hybridizer.trace.record import RecordedSettings
from hybridizer.trace.sensitivity import boundary_contrasts

NUM_LAYERS, MIDDLE, NUM_RESAMPLES = 30, 15, 300
REAL = Path(__file__).resolve().parents[1] / "tests" / "support" / "smollm2_js.npz"
DEEPER = np.linspace(0.3, 2.0, NUM_LAYERS + 1)  # noise that grows with depth
MASKS = ("_", " the")


@dataclass(frozen=True)
class Profile:
    """`js` is the true mean JS at the L+1 states; `noise` the standard deviation of a prompt there.

    With a `population` (pairs, 2, L+1), prompts are drawn from it instead.
    """

    js: Array
    noise: Array
    population: Array | None = None

    def draw(self, generator: np.random.Generator, num_prompts: int) -> tuple[Array, Clusters]:
        """JS (num_prompts, L+1) of pairs of prompts, and which pair each is of."""
        num_pairs = num_prompts // 2
        clusters = np.repeat(np.arange(num_pairs), 2)
        if self.population is not None:
            chosen = generator.integers(len(self.population), size=num_pairs)
            return self.population[chosen].reshape(2 * num_pairs, -1), clusters
        shape = (num_pairs, 2, len(self.js))
        each = generator.normal(size=shape) + generator.normal(size=(num_pairs, 1, len(self.js)))
        return self.js + (each * self.noise / 2**0.5).reshape(2 * num_pairs, -1), clusters


def made_profiles() -> dict[str, Profile]:
    """The profiles by name; steps are dJS of layers 0..29, in bits."""
    layers = np.arange(NUM_LAYERS)
    signs = np.where(layers % 3 == 2, -1.0, 1.0)
    steps = {
        "still": 0.0 * layers,  # JS does not change: S(b) = 0, and all that is seen is noise
        "flat": 0.02 * signs,
        "stepped": np.where(layers < MIDDLE, 0.05, 0.02) * signs,
        "noisy": np.linspace(0.001, 0.012, NUM_LAYERS) * signs,  # steps below their own errors
        "decaying": 0.1 * np.exp(-layers / 5),
    }
    found = {name: Profile(_climb(values), 0.06 * DEEPER) for name, values in steps.items()}
    population = np.load(REAL)["js"].astype(np.float64)
    return {**found, "real": Profile(population.mean(axis=(0, 1)), DEEPER, population)}


def _climb(steps: Array) -> Array:
    return 0.3 + np.concatenate([[0.0], np.cumsum(steps)])


def plain_abs(means: Array, errors: Array) -> Array:
    """|mean|: the paper's."""
    return np.abs(means)


def split_abs(means: Array, errors: Array) -> Array:
    """The sign from one half of the prompts times the mean of the other, averaged over all splits in closed form."""
    z = means / np.where(errors > 0, errors, 1)
    inside = np.vectorize(erf)(z / 2**0.5)  # 2 Phi(z) - 1
    return np.asarray(errors * (z * inside - 2 * np.exp(-(z**2) / 2) / (2 * pi) ** 0.5))


def corrected_abs(means: Array, errors: Array) -> Array:
    """Twice |mean| less the mean of |mean + noise|: the bootstrap's correction of bias, in closed form."""
    z = means / np.where(errors > 0, errors, 1)
    inside = np.vectorize(erf)(z / 2**0.5)
    folded = 2 * np.exp(-(z**2) / 2) / (2 * pi) ** 0.5 + z * inside
    return np.asarray(2 * np.abs(means) - errors * folded)


Estimator = Callable[[Array, Array], Array]
ESTIMATORS: Mapping[str, Estimator] = {
    "plain, percentile": plain_abs,
    "bootstrap-corrected": corrected_abs,
    "split-half": split_abs,
    "debiased": debiased_abs,
}


def cover(
    profile: Profile, estimators: Mapping[str, Estimator], num_prompts: int, trials: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """For each estimator, how often its 95% interval covers S(15), and how often it covers the deep stability."""
    generator = np.random.default_rng(seed)
    shallow_less_deep = boundary_contrasts(np.ones(NUM_LAYERS, np.bool_))[MIDDLE - 1]
    contrasts = np.stack([shallow_less_deep, np.minimum(shallow_less_deep, 0)], axis=1)  # S, and stability - 1
    truth = np.abs(np.diff(profile.js)) @ contrasts
    covered = {name: np.zeros(2) for name in estimators}
    for trial in range(trials):
        js, clusters = profile.draw(generator, num_prompts)
        changes = np.diff(js, axis=1)
        errors = standard_errors(changes, clusters)
        drawn = resampling_weights(num_prompts, NUM_RESAMPLES, trial, clusters) @ changes
        for name, estimator in estimators.items():
            estimate, samples = (
                estimator(changes.mean(axis=0), errors) @ contrasts,
                estimator(drawn, errors) @ contrasts,
            )
            bands: Sequence[Interval | None] = [interval(column) for column in samples.T]
            if estimator is not plain_abs:
                left = (
                    bias_left(changes.mean(axis=0), errors) @ np.abs(contrasts) if estimator is debiased_abs else None
                )
                bands = symmetric_intervals(estimate, samples, count_clusters(num_prompts, clusters), left)
            bands = [
                bands[0],
                None if bands[1] is None else (min(0.0, bands[1][0]), min(0.0, bands[1][1])),
            ]  # as in a record
            covered[name] += [
                band is not None and band[0] <= t <= band[1] for band, t in zip(bands, truth, strict=True)
            ]
    return {name: (float(counts[0]) / trials, float(counts[1]) / trials) for name, counts in covered.items()}


@dataclass(frozen=True)
class Null:
    """Settings of which at least one has S(b) <= 0 at every b, so that every licence is false."""

    deciding: Profile  # the one mask and template that speaks against; all others are `others`
    others: Profile


def made_nulls() -> dict[str, Null]:
    """The nulls by name. With all settings alike a licence needs all of them wrong; the worst is one that decides."""
    layers = np.arange(NUM_LAYERS)
    signs = np.where(layers % 3 == 2, -1.0, 1.0)
    sure = Profile(_climb(np.where(layers < MIDDLE, 0.2, 0.0)), np.full(NUM_LAYERS + 1, 0.06))
    level = Profile(_climb(0.05 * signs), 0.06 * DEEPER)
    still = Profile(_climb(0.0 * layers), 0.06 * DEEPER)
    still_shallow = Profile(_climb(0.0 * layers), 0.06 * DEEPER[::-1])
    middle = np.full(NUM_LAYERS, 0.03)
    middle[[0, MIDDLE - 1, MIDDLE, -1]] += np.array([-0.01, 0.01, -0.01, 0.01])  # S(15) = 0, and below 0 elsewhere
    return {
        "all level": Null(level, level),
        "one level": Null(level, sure),
        "one still": Null(still, sure),
        "one still, noise shallow": Null(still_shallow, sure),
        "one zero in the middle": Null(Profile(_climb(middle * signs), 0.06 * DEEPER), sure),
    }


SETTINGS = RecordedSettings(
    perturb="context", mask_ratio=0.3, mask_with=MASKS[0], mask_token_id=0, mask_chosen_as="text",
    second_mask_with=MASKS[1], second_mask_token_id=1, mask_positions=None, noise_ratio=None, lens="plain",
    licence_lenses=("plain",), tuned_lens=None, epsilon=Trace().epsilon, tau=0.5, p_min=0.1, seed=0,
    num_resamples=NUM_RESAMPLES, dtype="float32",
)  # fmt: skip


def false_licences(
    null: Null, num_templates: int, prompts_each: int, trials: int, seed: int = 0
) -> tuple[float, float]:
    """How often a boundary of the middle half is licensed: corrected for the search as `auto` is, and uncorrected."""
    generator = np.random.default_rng(seed)
    counts = np.zeros(2)
    for _ in range(trials):
        settings = draw_settings(null, num_templates, prompts_each, generator)
        for column, found_by in enumerate((INNER, GIVEN)):
            verdicts = (judge(settings, b, found_by).verdict for b in inner_boundaries(NUM_LAYERS))
            counts[column] += LICENSED in verdicts
    return float(counts[0]) / trials, float(counts[1]) / trials


def draw_settings(
    null: Null, num_templates: int, prompts_each: int, generator: np.random.Generator
) -> tuple[SettingScores, ...]:
    """A simulated trace under every setting: 2 masks, all prompts and each template; the first template decides."""
    found = []
    for mask in range(len(MASKS)):
        kinds = [null.deciding if (mask, template) == (0, 0) else null.others for template in range(num_templates)]
        found.append(np.concatenate([kind.draw(generator, prompts_each)[0] for kind in kinds]))
    n = num_templates * prompts_each
    templates = tuple(str(index) for index in range(num_templates) for _ in range(prompts_each))
    each, states = np.ones(n), np.zeros_like(found[0])
    clusters = np.repeat(np.arange(n // 2), 2)
    readings = Readings(states, found[0], None, states, each, each, each, js_second=found[1], clusters=clusters)
    return score_settings(readings, SETTINGS, templates)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=100)
    arguments = parser.parse_args()
    error = 100 * (0.95 * 0.05 / arguments.trials) ** 0.5
    print(
        f"Coverage in %, nominal 95 +- {error:.1f}: S({MIDDLE}) / deep stability, {arguments.prompts} prompts in pairs"
    )
    print(f"{'profile':26s}" + "".join(f"{name:>22s}" for name in ESTIMATORS))
    for name, profile in made_profiles().items():
        rates = cover(profile, ESTIMATORS, arguments.prompts, arguments.trials)
        cells = (f"{100 * s:.1f} / {100 * stability:.1f}" for s, stability in rates.values())
        print(f"{name:26s}" + "".join(f"{cell:>22s}" for cell in cells), flush=True)
    error = 100 * (0.025 * 0.975 / arguments.trials) ** 0.5
    print(f"\nFalse licences in %, at most 2.5 +- {error:.1f}: best of boundaries 8..22, 2 masks, 3 templates")
    print(f"{'null':26s}{'corrected':>22s}{'uncorrected':>22s}")
    for name, null in made_nulls().items():
        corrected, uncorrected = false_licences(null, 3, 60, arguments.trials)
        print(f"{name:26s}{100 * corrected:22.1f}{100 * uncorrected:22.1f}", flush=True)


if __name__ == "__main__":
    main()
