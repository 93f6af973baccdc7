"""Settings for all tests."""

from hypothesis import settings

# How long an example takes says nothing here; benchmarks measure speed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
