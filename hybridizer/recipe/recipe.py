"""The sections under their earlier import path."""

from hybridizer.recipe.models import *  # noqa: F403
