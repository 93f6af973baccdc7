"""Plain values into YAML text that `read_yaml` reads back the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import yaml

from hybridizer.recipe.yaml import read_word


def to_yaml(values: Mapping[str, Any]) -> str:
    """Dicts, lists, text, finite numbers and booleans as block-style YAML, keys in their order.

    Raises yaml.representer.RepresenterError for any other kind of value.
    """
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML quotes what YAML 1.1 would misread; our reader knows more words than that, such as 1e5.
    reading = read_word(text)
    plain = not reading.what and isinstance(reading.value, str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


class _Dumper(yaml.SafeDumper):
    yaml_representers: ClassVar[dict[Any, Any]] = {**yaml.SafeDumper.yaml_representers, str: _represent_text}

    def ignore_aliases(self, data: Any) -> bool:
        return True
