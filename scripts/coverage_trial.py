"""How often a trial's intervals cover the true difference, and how often equal arms are told apart: simulated.

    python scripts/coverage_trial.py [--trials 6000]      # about 3 minutes on one core
    python scripts/coverage_trial.py --held-out           # other cases; 3 minutes
    python scripts/coverage_trial.py --only-detectable    # what more seeds and fewer arms would show; seconds

Needs numpy alone. A simulated run is one number per document: how hard the document is, which all arms share; what the
arm gains, on average and on this document; what the seed changes, for all arms and for this arm; and what is left.
Documents have uneven sizes, and gains are skewed. The spread of seeds is given in units of the error that the drawn
documents leave in a difference.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from hybridizer.core.bootstrap import LEVEL, Array, Interval, interval
from hybridizer.core.student import student_tails
from hybridizer.evaluate.crossed import measure_parts, tail_values
from hybridizer.evaluate.figures import BITS_PER_BYTE
from hybridizer.evaluate.power import Spread, detectable, detectable_before
from hybridizer.evaluate.trial import holm

NUM_RESAMPLES = 400
NUM_DOCUMENTS, NUM_ARMS = 30, (2, 3, 5, 6)  # of the table of detectable differences
SHARED_SEED, HARDNESS = 3.0, 30.0  # in units of the documents' spread of gains; both cancel in a paired difference
GAIN = 0.5  # of the second arm, where coverage is asked
AT_ONCE = 500  # trials drawn at once
SKEWED, NORMAL, HEAVY, ONE_SIDED = "skewed", "normal", "heavy", "one-sided"


@dataclass(frozen=True)
class Case:
    """`by_seed` is in errors of the documents' mean, `by_chance` in standard deviations of a document's gain.

    `gains` is how a document's gain is distributed in each arm: a gamma distribution of order 2, a normal one,
    Student's t with 3 degrees of freedom, or, one-sided, a log-normal one in the second arm and later ones, none in
    the first.
    `heavy_seeds`: what a seed changes has Student's t with 4. Sizes are evenly drawn from 3 to 9, or, `uneven`,
    log-normal with a deviation of 1. `rates` is among how many equal learning rates each arm in turn chooses by its
    first seed, on documents that are not reported.
    """

    num_seeds: int
    num_documents: int
    by_seed: float
    by_chance: float
    gains: str = SKEWED
    heavy_seeds: bool = False
    uneven: bool = False
    rates: tuple[int, ...] = (1,)

    def __str__(self) -> str:
        return f"{self.num_seeds:5d} {self.num_documents:9d} {self.by_seed:7g} {self.by_chance:6g}"

    @property
    def about(self) -> str:
        """What differs from the first table's cases."""
        found = [self.gains] if self.gains != SKEWED else []
        found += ["heavy seeds"] * self.heavy_seeds + ["uneven sizes"] * self.uneven
        return ", ".join(found + [f"rates {self.rates}"] * (self.rates != (1,))) or "-"

    def draw(self, generator: np.random.Generator, gains: Sequence[float], trials: int) -> tuple[Array, Array]:
        """Values (trials, arms, seeds, documents) for each of the true `gains`, and sizes (trials, documents).

        The difference of two arms has the documents' spread 1: half the variance is of each arm.
        """
        seeds, documents, arms = self.num_seeds, self.num_documents, len(gains)
        sizes = np.exp(generator.normal(size=(trials, documents)))
        if not self.uneven:
            sizes = generator.integers(3, 10, (trials, documents)) / 6.0
        shared = HARDNESS * generator.normal(size=(trials, 1, 1, documents))
        values = shared + SHARED_SEED * generator.normal(size=(trials, 1, seeds, 1))
        own = self._document_gains(generator, (trials, arms, 1, documents))
        of_seeds = np.stack([self._seed_gains(generator, trials, arm) for arm in range(arms)], axis=1)
        rest = self.by_chance * generator.normal(size=(trials, arms, seeds, documents))
        values = values + np.reshape(gains, (arms, 1, 1)) + (own + of_seeds[..., None] + rest) / 2**0.5
        return values * sizes[:, None, None, :], sizes

    def _document_gains(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        if self.gains == SKEWED:
            return (generator.gamma(2.0, size=shape) - 2) / 2**0.5
        if self.gains == HEAVY:
            return generator.standard_t(3, size=shape) / 3**0.5
        if self.gains == NORMAL:
            return generator.normal(size=shape)
        skewed = (np.exp(generator.normal(size=shape)) - np.exp(0.5)) / (np.exp(2) - np.exp(1)) ** 0.5
        skewed[:, 0] = 0.0
        return np.asarray(2**0.5 * skewed)

    def _seed_gains(self, generator: np.random.Generator, trials: int, arm: int) -> Array:
        """(trials, seeds), in the first seed the best of those that the learning rates gave."""

        def drawn(*shape: int) -> Array:
            plain = generator.standard_t(4, size=shape) / 2**0.5 if self.heavy_seeds else generator.normal(size=shape)
            return np.asarray(plain * self.by_seed / self.num_documents**0.5)

        found = drawn(trials, self.num_seeds)
        rates = self.rates[arm % len(self.rates)]
        if rates > 1:
            tried = drawn(trials, rates)
            noise = generator.normal(size=tried.shape) * self.by_chance / self.num_documents**0.5
            found[:, 0] = np.take_along_axis(tried, (tried + noise).argmin(axis=1)[:, None], axis=1)[:, 0]
        return found


SPREADS = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (3.0, 0.0), (3.0, 1.0), (10.0, 0.0))  # by seed and by chance
CASES = tuple(
    Case(num_seeds, num_documents, *spread)
    for num_seeds, every in ((2, (30,)), (3, (10, 30, 60)), (5, (10, 30, 60)))
    for num_documents in every
    for spread in SPREADS
)
HELD_OUT = (
    *(Case(2, documents, *spread) for documents in (12, 100) for spread in ((0.5, 0.5), (2.0, 0.3), (5.0, 1.5))),
    *(
        Case(seeds, documents, *spread)
        for seeds, documents in ((3, 8), (3, 16), (3, 200), (4, 8), (4, 45), (5, 20), (5, 200))
        for spread in ((0.5, 0.5), (1.5, 0.3), (2.0, 1.5), (6.0, 0.7))
    ),
    *(Case(3, 20, 0.5, 3.0), Case(3, 20, 5.0, 3.0), Case(4, 45, 0.0, 3.0)),
    *(Case(seeds, 25, 0.7, 0.7, gains) for seeds in (3, 5) for gains in (NORMAL, HEAVY, ONE_SIDED)),
    *(Case(seeds, 25, by_seed, 0.5, heavy_seeds=True) for seeds in (3, 5) for by_seed in (2.0, 6.0)),
    *(Case(seeds, documents, 0.7, 0.7, uneven=True) for seeds in (3, 5) for documents in (12, 40)),
    *(Case(3, 40, by_seed, 0.5, rates=rates) for by_seed in (1.0, 4.0) for rates in ((3,), (1, 3))),
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


JUDGES: Mapping[str, Judge] = {"nested bootstrap": nested_bootstrap, "crossed bootstrap": crossed_bootstrap}
# P values of differences (trials, seeds, documents) with sizes (trials, documents), under the hypothesis of a truth.
Test = Callable[[Array, Array, float], Array]


def satterthwaite(values: Array, sizes: Array, truth: float) -> Array:
    """Student's t with Satterthwaite's degrees of freedom alone."""
    means, parts = measure_parts(values, sizes)
    spread = parts.by_seed**2 / parts.of_seeds + parts.by_group**2 / parts.of_groups
    degrees = (parts.by_seed + parts.by_group) ** 2 / spread
    return student_tails(np.abs(means - truth) / parts.squared_error**0.5, degrees)


def ours(values: Array, sizes: Array, truth: float) -> Array:
    """What `hybridize trial` computes."""
    means, parts = measure_parts(values, sizes)
    return tail_values(np.abs(means - truth) / parts.squared_error**0.5, parts)


TESTS: Mapping[str, Test] = {"Satterthwaite": satterthwaite, "trial": ours}


def _holds(band: Interval, truth: float) -> bool:
    return band[0] <= truth <= band[1]


def _batches(
    case: Case, gains: Sequence[float], trials: int, generator: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    for done in range(0, trials, AT_ONCE):
        yield case.draw(generator, gains, min(AT_ONCE, trials - done))


def cover(case: Case, trials: int, seed: int = 0) -> dict[str, float]:
    """How often the 95% interval of each test holds the true difference of two arms."""
    generator = np.random.default_rng(seed)
    found = dict.fromkeys(TESTS, 0)
    for arms, sizes in _batches(case, (0.0, GAIN), trials, generator):
        for name, test in TESTS.items():
            found[name] += int((test(arms[:, 1] - arms[:, 0], sizes, GAIN) >= 1 - LEVEL).sum())
    return {name: count / trials for name, count in found.items()}


def cover_by_bootstrap(case: Case, trials: int, seed: int = 0) -> dict[str, float]:
    """The same by percentiles, a trial at a time."""
    generator = np.random.default_rng(seed)
    found = dict.fromkeys(JUDGES, 0)
    arms, sizes = case.draw(generator, (0.0, GAIN), trials)
    for difference, of_documents in zip(arms[:, 1] - arms[:, 0], sizes, strict=True):
        for name, judge in JUDGES.items():
            found[name] += judge(difference, of_documents, GAIN, generator)
    return {name: count / trials for name, count in found.items()}


def told_apart(case: Case, gains: Sequence[float], trials: int, seed: int = 0) -> float:
    """How often the primary outcome calls any two of the arms different, after Holm's correction."""
    generator = np.random.default_rng(seed)
    found = 0
    for arms, sizes in _batches(case, gains, trials, generator):
        pairs = [ours(arms[:, b] - arms[:, a], sizes, 0.0) for a, b in combinations(range(len(gains)), 2)]
        found += sum(min(holm([float(p) for p in trial])) < 1 - LEVEL for trial in zip(*pairs, strict=True))
    return found / trials


def power(case: Case, trials: int, seed: int = 0) -> float:
    """How often the difference that `detectable` gives for two arms is called a difference; 80% is what it aims at."""
    spread = Spread(case.by_seed / case.num_documents**0.5, 1.0, case.by_chance)
    gain = detectable(spread, case.num_seeds, case.num_documents, 1, assumed=True).difference
    return told_apart(case, (0.0, gain), trials, seed)


def print_detectable() -> None:
    """The smallest detectable difference in bits per byte under the assumed spread, by seeds and pairs."""
    print(
        f"Smallest detectable difference in bits per byte, {NUM_DOCUMENTS} documents, as assumed before a trial runs\n"
    )
    print(f"{'seeds':>5s}" + "".join(f"{f'{arms} arms':>10s}" for arms in NUM_ARMS))
    for num_seeds in (3, 4, 5, 6, 8):
        found = [
            detectable_before(BITS_PER_BYTE, num_seeds, NUM_DOCUMENTS, arms * (arms - 1) // 2) for arms in NUM_ARMS
        ]
        print(f"{num_seeds:5d}" + "".join(f"{each.difference:10.4f}" for each in found if each))


def main() -> None:
    """Print a row for each case, then what could be detected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6000)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--only-detectable", action="store_true")
    arguments = parser.parse_args()
    if arguments.held_out:
        print_held_out(arguments.trials)
        return
    if not arguments.only_detectable:
        print_coverage(arguments.trials)
        print()
    print_detectable()


def _rates(case: Case, trials: int) -> list[float]:
    false = [told_apart(case, [0.0] * num_arms, trials, seed=num_arms) for num_arms in (2, 5)]
    return [*cover(case, trials).values(), *false]


def _errors(trials: int) -> str:
    return f"+- {100 * (0.95 * 0.05 / trials) ** 0.5:.2f}"


def print_coverage(trials: int) -> None:
    """A row for each case."""
    few = max(1, trials // 12)
    print(f"Coverage of 95% intervals in %, {_errors(trials)} ({_errors(few)} by bootstrap); false: equal arms told")
    print("apart in the primary outcome, in %; power: how often the smallest detectable difference is found, in %\n")
    heads = "".join(f"{name:>18s}" for name in (*JUDGES, *TESTS))
    print(f"{'seeds':>5s} {'documents':>9s} {'by seed':>7s} {'chance':>6s}{heads}{'false, 2 arms':>15s}", end="")
    print(f"{'false, 5 arms':>15s}{'power':>7s}")
    for case in CASES:
        rates = [*cover_by_bootstrap(case, few).values(), *_rates(case, trials), power(case, trials)]
        widths = (18, 18, 18, 18, 15, 15, 7)
        cells = (f"{100 * rate:{width}.1f}" for rate, width in zip(rates, widths, strict=True))
        print(case, *cells, sep="", flush=True)


def print_held_out(trials: int) -> None:
    """A row for each case of HELD_OUT."""
    print(f"Coverage of 95% intervals in %, {_errors(trials)}; false: equal arms told apart in the primary outcome\n")
    heads = "".join(f"{name:>15s}" for name in (*TESTS, "false, 2 arms", "false, 5 arms"))
    print(f"{'seeds':>5s} {'documents':>9s} {'by seed':>7s} {'chance':>6s}{heads}  otherwise")
    for case in HELD_OUT:
        cells = (f"{100 * rate:15.1f}" for rate in _rates(case, trials))
        print(case, *cells, f"  {case.about}", sep="", flush=True)


if __name__ == "__main__":
    main()
