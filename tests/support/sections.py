"""Sections of a recipe as objects, for tests that need no recipe file."""

from hybridizer.recipe.models import DataEntry, Train


def train_section(**settings):
    """A `train` section with the given settings, on data that is never opened."""
    return Train(**{"data": (DataEntry(path="texts.jsonl"),), "tokens": 3000, **settings})
