"""The summary of many prompts."""

import tracemalloc
from dataclasses import replace

import numpy as np

from hybridizer.trace.readings import Readings
from hybridizer.trace.record import RecordedDonor, RecordedProbes
from hybridizer.trace.summary import summarise
from support.trace_records import SETTINGS

NUM_PROMPTS, NUM_LAYERS, NUM_RESAMPLES = 8000, 2, 1000


def test_the_memory_of_a_summary_does_not_grow_with_the_number_of_prompts():
    """The resampling weights alone would be 64 MB, and as much again for their integers and for each copy."""
    generator = np.random.default_rng(0)
    states = generator.random((NUM_PROMPTS, NUM_LAYERS + 1))
    each = generator.random(NUM_PROMPTS)
    readings = Readings(states, states, states, states, each, each.round(), each)
    settings = replace(SETTINGS, perturb="both", noise_ratio=0.1, num_resamples=NUM_RESAMPLES)
    tracemalloc.start()
    record = summarise(
        readings,
        RecordedDonor("a", "", "", NUM_LAYERS),
        RecordedProbes("p", "", NUM_PROMPTS, NUM_PROMPTS),
        settings,
        [None] * NUM_PROMPTS,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * 2**20
    assert record.accuracy_ci is not None and record.accuracy_ci[1] - record.accuracy_ci[0] < 0.03
