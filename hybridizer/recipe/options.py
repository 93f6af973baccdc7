"""The keys of a section as options of a command line: made from its class, and read back into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from hybridizer.recipe.messages import make_section
from hybridizer.recipe.sections import choices_of, keys_of, number_kind


def section_options(section: type) -> list[click.Option]:
    """An option for every key of `section`: `--mask-ratio` for mask_ratio, with its default and description.

    Only the kind of value is checked by them; bounds and choices are the section's own, see `read_section`.
    """
    options = []
    for key, field in keys_of(section).items():
        about = field.description or ""
        choices = choices_of(field)
        options.append(
            click.Option(
                [option_name(key)],
                type=number_kind(field),
                default=field.default,
                show_default=True,
                metavar=f"[{'|'.join(choices)}]" if choices else None,
                help=f"{about[:1].upper()}{about[1:]}.",
            )
        )
    return options


def read_section(section: type, options: Mapping[str, Any], where: str) -> Any:
    """The section that `options`, which may hold others too, make.

    Raises InputError at `where` with every value that the section does not take, each under its option's name.
    """
    return make_section(section, {key: options[key] for key in keys_of(section)}, where, option_name)


def option_name(key: str) -> str:
    """The option for a key."""
    return f"--{key.replace('_', '-')}"
