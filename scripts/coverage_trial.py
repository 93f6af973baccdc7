"""How often a trial's intervals cover the true difference, and how often equal arms are told apart: simulated.

    python scripts/coverage_trial.py [--trials 2000]      # about 4 minutes on one core

Needs numpy alone. A simulated run is one number per document: how hard the document is, which all arms share; what the
arm gains, on average and on this document; what the seed changes, for all arms and for this arm; and what is left.
Documents have uneven sizes, and gains are skewed. The spread of seeds is given in units of the error that the drawn
documents leave in a difference.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from hybridizer.core.bootstrap import LEVEL, Array, Interval, interval
from hybridizer.core.student import student_tails
from hybridizer.evaluate.crossed import Crossed, measure_crossed, p_value
from hybridizer.evaluate.power import Spread, detectable
from hybridizer.evaluate.trial import holm

NUM_RESAMPLES = 400
SHARED_SEED, HARDNESS = 3.0, 30.0  # in units of the documents' spread of gains; both cancel in a paired difference


@dataclass(frozen=True)
class Case:
    """`by_seed` is in errors of the documents' mean, `by_chance` in standard deviations of a document's gain."""

    num_seeds: int
    num_documents: int
    by_seed: float
    by_chance: float

    def __str__(self) -> str:
        return f"{self.num_seeds:5d} {self.num_documents:9d} {self.by_seed:7g} {self.by_chance:6g}"

    def draw(self, generator: np.random.Generator, gains: Sequence[float]) -> tuple[list[Array], Array]:
        """Values (seeds, documents) of one arm for each of the true `gains`, and the documents' sizes (documents,).

        The difference of two arms has the documents' spread 1: half the variance is of each arm.
        """
        size = (self.num_seeds, self.num_documents)
        sizes = generator.integers(3, 10, self.num_documents) / 6.0
        shared = HARDNESS * generator.normal(size=self.num_documents)
        shared = shared + SHARED_SEED * generator.normal(size=(self.num_seeds, 1))
        arms = []
        for gain in gains:
            documents = (generator.gamma(2.0, size=self.num_documents) - 2) / 2**0.5
            seeds = generator.normal(size=(self.num_seeds, 1)) * self.by_seed / self.num_documents**0.5
            rest = self.by_chance * generator.normal(size=size)
            arms.append((shared + gain + (documents + seeds + rest) / 2**0.5) * sizes)
        return arms, sizes


CASES = tuple(
    Case(num_seeds, num_documents, by_seed, by_chance)
    for num_seeds in (3, 5)
    for num_documents in (10, 30, 60)
    for by_seed, by_chance in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (3.0, 0.0), (3.0, 1.0), (10.0, 0.0))
)
# Judges a difference (seeds, documents) with sizes: whether the true one is in the 95% interval.
Judge = Callable[[Array, Array, float, np.random.Generator], bool]


def nested_bootstrap(values: Array, sizes: Array, truth: float, generator: np.random.Generator) -> bool:
    """Percentiles, seeds drawn first, then documents for each drawn seed apart."""
    num_seeds, num_documents = values.shape
    seeds = generator.integers(num_seeds, size=(NUM_RESAMPLES, num_seeds))
    documents = generator.integers(num_documents, size=(NUM_RESAMPLES, num_seeds, num_documents))
    sums = values[seeds[:, :, None], documents].sum(axis=(1, 2)), sizes[documents].sum(axis=(1, 2))
    return _holds(interval(sums[0] / sums[1]), truth)


def crossed_bootstrap(values: Array, sizes: Array, truth: float, generator: np.random.Generator) -> bool:
    """Percentiles, seeds and documents drawn apart, the same documents for all drawn seeds."""
    num_seeds, num_documents = values.shape
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), NUM_RESAMPLES)
    documents = generator.multinomial(num_documents, np.full(num_documents, 1 / num_documents), NUM_RESAMPLES)
    means = ((seeds @ values) * documents).sum(axis=1) / num_seeds
    return _holds(interval(means / (documents @ sizes)), truth)


def satterthwaite(values: Array, sizes: Array, truth: float, generator: np.random.Generator) -> bool:
    """Student's t with Satterthwaite's degrees of freedom alone."""
    found = measure_crossed(values, sizes)
    parts = found.by_seed**2 / (found.num_seeds - 1) + found.by_group**2 / (found.num_groups - 1)
    degrees = (found.by_seed + found.by_group) ** 2 / parts
    return float(student_tails(abs(found.value - truth) / found.squared_error**0.5, degrees)) >= 1 - LEVEL


def ours(values: Array, sizes: Array, truth: float, generator: np.random.Generator) -> bool:
    """What `hybridize trial` computes."""
    return p_value(measure_crossed(values, sizes), truth) >= 1 - LEVEL


JUDGES: Mapping[str, Judge] = {
    "nested bootstrap": nested_bootstrap,
    "crossed bootstrap": crossed_bootstrap,
    "Satterthwaite": satterthwaite,
    "trial": ours,
}


def _holds(band: Interval, truth: float) -> bool:
    return band[0] <= truth <= band[1]


def cover(case: Case, judges: Mapping[str, Judge], trials: int, gain: float = 0.5, seed: int = 0) -> dict[str, float]:
    """How often the 95% interval of each judge holds the true difference of two arms."""
    generator = np.random.default_rng(seed)
    found = dict.fromkeys(judges, 0)
    for _ in range(trials):
        (first, second), sizes = case.draw(generator, (0.0, gain))
        for name, judge in judges.items():
            found[name] += judge(second - first, sizes, gain, generator)
    return {name: count / trials for name, count in found.items()}


def told_apart(arms: Sequence[Array], sizes: Array) -> list[bool]:
    """For every two arms whether the primary outcome is called different, after Holm's correction."""
    found: list[Crossed] = [measure_crossed(second - first, sizes) for first, second in combinations(arms, 2)]
    return [p < 1 - LEVEL for p in holm([p_value(each) for each in found])]


def false_differences(case: Case, num_arms: int, trials: int, seed: int = 0) -> float:
    """How often a trial of equal arms calls any two of them different in its primary outcome."""
    generator = np.random.default_rng(seed)
    return sum(any(told_apart(*case.draw(generator, [0.0] * num_arms))) for _ in range(trials)) / trials


def power(case: Case, trials: int, seed: int = 0) -> float:
    """How often the difference that `detectable` gives for two arms is called a difference; 80% is what it aims at."""
    generator = np.random.default_rng(seed)
    spread = Spread(case.by_seed / case.num_documents**0.5, 1.0, case.by_chance)
    gain = detectable(spread, case.num_seeds, case.num_documents, 1, assumed=True).difference
    return sum(any(told_apart(*case.draw(generator, (0.0, gain)))) for _ in range(trials)) / trials


def main() -> None:
    """Print one table: a row per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    error = 100 * (0.95 * 0.05 / trials) ** 0.5
    print(f"Coverage of 95% intervals in %, +- {error:.1f}; false: equal arms told apart in the primary outcome, in %;")
    print("power: how often the smallest detectable difference is found, in %\n")
    heads = "".join(f"{name:>18s}" for name in JUDGES)
    print(f"{'seeds':>5s} {'documents':>9s} {'by seed':>7s} {'chance':>6s}{heads}{'false, 2 arms':>15s}", end="")
    print(f"{'false, 5 arms':>15s}{'power':>7s}")
    for case in CASES:
        rates = [*cover(case, JUDGES, trials).values()]
        rates += [false_differences(case, 2, trials), false_differences(case, 5, max(1, trials // 4))]
        rates.append(power(case, max(1, trials // 2)))
        widths = (18,) * len(JUDGES) + (15, 15, 7)
        print(
            case, *(f"{100 * rate:{width}.1f}" for rate, width in zip(rates, widths, strict=True)), sep="", flush=True
        )


if __name__ == "__main__":
    main()
