"""One class is enough: a key that it gains is in the starter, the schema, the messages and the options at once."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import click
import pytest
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from hybridizer.cli import main
from hybridizer.core.errors import InputError
from hybridizer.recipe import models
from hybridizer.recipe.fields import PositiveInt, Ratio
from hybridizer.recipe.options import read_section, section_options
from hybridizer.recipe.sections import keys_of

# A copy of the package's sections with one more key, loaded in a process of its own: the classes are made at import.
GROWN = """
import json, pathlib, sys
import types
import hybridizer.recipe
key = 'sharpness: Positive = Field(default=1.5, description="what logits are divided by")'
for name, section in (("train", "TrainSettings"), ("models", "Trace")):
    source = pathlib.Path(hybridizer.recipe.__file__).with_name(f"{name}.py").read_text()
    head, tail = source.split(f"class {section}:", 1)
    body, end, after = tail.partition("@dataclass")
    source = f"{head}class {section}:{body.rstrip()}\\n    {key}\\n\\n\\n{end}{after}"
    grown = sys.modules[f"hybridizer.recipe.{name}"] = types.ModuleType(f"hybridizer.recipe.{name}")
    setattr(hybridizer.recipe, name, grown)
    exec(compile(source, f"{name}.py", "exec"), grown.__dict__)
from click.testing import CliRunner
from hybridizer.cli import main
from hybridizer.recipe.load import load_recipe
from hybridizer.recipe.template import starter
pathlib.Path(sys.argv[1]).write_text("donors: {a: x}\\nlayout: {deep: a, shallow: a}\\ntrace: {sharpness: 2}\\n")
recipe = load_recipe(pathlib.Path(sys.argv[1]))
print(json.dumps({
    "starter": starter(),
    "schema": json.loads(CliRunner().invoke(main, ["schema"]).output),
    "help": CliRunner().invoke(main, ["trace", "--help"]).output,
    "wrong": CliRunner().invoke(main, ["rank", "x", "--sharpness", "0"]).stderr,
    "loaded": recipe.resolved()["trace"]["sharpness"],
}))
"""


def test_a_key_that_a_section_gains_shows_up_everywhere(tmp_path) -> None:
    import json

    command = [sys.executable, "-c", GROWN, str(tmp_path / "recipe.yaml")]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    lines = [line.split() for line in found["starter"].splitlines() if "sharpness:" in line]
    assert lines == [["#", "sharpness:", "1.5", "#", "what", "logits", "are", "divided", "by"]] * 2
    for section in ("Trace", "Train"):
        key = found["schema"]["$defs"][section]["properties"]["sharpness"]
        assert (key["default"], key["exclusiveMinimum"], key["description"]) == (1.5, 0, "what logits are divided by")
    assert "--sharpness FLOAT" in found["help"] and "What logits are divided by." in found["help"]
    assert found["wrong"] == (
        "main rank: --sharpness must be a number > 0; got the number 0.0.\n  Write a number in this range.\n"
    )
    assert found["loaded"] == 2


@pytest.mark.parametrize("command", ["trace", "rank"])
def test_every_key_of_the_trace_section_is_an_option_with_its_default(command: str) -> None:
    group = main.commands[command]
    params = group.get_params(click.Context(group))
    assert "--help" in params[-1].opts  # with -h once the program has used it
    options = {option.name: option for option in params}
    for key, field in keys_of(models.Trace).items():
        assert options[key].opts == [f"--{key.replace('_', '-')}"]
        assert options[key].default == field.default


def test_options_that_are_left_alone_make_the_section_of_an_empty_recipe() -> None:
    options: dict[str, Any] = {option.name: option.default for option in section_options(models.Trace)}
    assert read_section(models.Trace, options | {"other": 1}, "here") == models.Trace()


def test_every_value_that_the_section_does_not_take_is_reported() -> None:
    @dataclass(frozen=True, config=ConfigDict(extra="forbid"))
    class Few:
        size: PositiveInt = Field(default=1, description="how many")
        share: Ratio = Field(default=0.5, description="how much")

    with pytest.raises(InputError) as refusal:
        read_section(Few, {"size": 0, "share": 2.0}, "here")
    assert [str(problem).splitlines()[0] for problem in refusal.value.problems] == [
        "here: --size is 0; the least is 1.",
        "here: --share must be a number from 0 to 1; got the number 2.0.",
    ]
    assert dataclasses.asdict(read_section(Few, {"size": 2, "share": 1.0}, "here")) == {"size": 2, "share": 1.0}
