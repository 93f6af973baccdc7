"""The Python API: lazy, typed, the same as the command line, and its names are functions in every order of imports."""

import doctest
import inspect
import json
import pickle
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import hybridizer
from hybridizer.pipeline import api
from support.lines import hybridize_json
from support.workshop import DIAL, DONORS, make_workshop

VERBS = ("build", "check", "eval_models", "evaluate", "plan", "rank", "scan", "trace", "trial", "verify")
WITH_SUBPACKAGE = ("evaluate", "plan", "scan", "trace")


@pytest.fixture
def workshop(bench):
    """The working folder of the examples, with a cache of its own."""
    make_workshop(bench)
    return bench


def run_python(program):
    found = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_in_the_docstrings_run(verb, workshop):
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(api, verb), verb)
    assert example.examples, f"{verb} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(example)
    assert runner.summarize(verbose=False).failed == 0


def test_importing_the_package_or_its_verbs_imports_nothing_heavy():
    run_python(
        "import sys\nimport hybridizer\n"
        "assert {name for name in sys.modules if name.startswith('hybridizer')} == {'hybridizer'}\n"
        f"from hybridizer import {', '.join(VERBS)}\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'yaml', 'click', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )


@pytest.mark.parametrize("verb", WITH_SUBPACKAGE)
@pytest.mark.parametrize("first", ["from hybridizer import {0}", "import hybridizer.{0}", "import hybridizer.{0} as m"])
def test_a_verb_is_the_function_whether_or_not_its_subpackage_was_imported_before(verb, first):
    run_python(
        f"{first.format(verb)}\nimport inspect, sys, hybridizer\nfrom hybridizer import {verb} as found\n"
        f"assert inspect.isfunction(found) and found is hybridizer.{verb} is hybridizer.pipeline.api.{verb}, found\n"
        f"import hybridizer.{verb}\nassert hybridizer.{verb} is found\n"
        f"from types import ModuleType\nassert type(sys.modules['hybridizer.{verb}']) is ModuleType"
    )


@pytest.mark.parametrize(
    ("verb", "module"),
    [("evaluate", "scores"), ("plan", "layout"), ("scan", "request"), ("trace", "probes")],
    ids=WITH_SUBPACKAGE,
)
def test_submodules_of_a_subpackage_with_a_verbs_name_are_reached_in_every_way(verb, module):
    run_python(
        f"import hybridizer.{verb}.{module} as one\nfrom hybridizer.{verb} import {module} as two\n"
        f"import hybridizer, importlib, pkgutil, sys\nthree = hybridizer.{verb}.{module}\n"
        f"four = pkgutil.resolve_name('hybridizer.{verb}.{module}')\n"
        f"assert one is two is three is four is sys.modules['hybridizer.{verb}.{module}']"
    )


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_can_be_inspected_and_pickled(verb):
    function = getattr(hybridizer, verb)
    assert f"{verb.title().replace('_', '')}Result" in inspect.signature(function).return_annotation
    assert function.__name__ == verb and function.__module__ == "hybridizer.pipeline.api"
    assert pickle.loads(pickle.dumps(function)) is function


def test_every_public_name_is_listed_and_there_and_no_other_is():
    assert set(hybridizer.__all__) <= set(dir(hybridizer))
    assert all(getattr(hybridizer, name) is not None for name in hybridizer.__all__)
    with pytest.raises(AttributeError, match="no attribute 'spice'"):
        hybridizer.spice  # noqa: B018
    for verb in VERBS:
        with pytest.raises(AttributeError):
            setattr(hybridizer, verb, None)


@pytest.mark.slow
def test_type_checkers_see_the_functions_and_their_results(tmp_path):
    (tmp_path / "user.py").write_text(
        "import hybridizer.plan.make\nfrom hybridizer import build, plan, trace\n"
        "reveal_type(plan('r.yaml').hash)\nreveal_type(trace(['a'])[0].num_layers)\nreveal_type(build({}))\n"
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--cache-dir", str(tmp_path), "user.py"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert [line.partition("is ")[2] for line in found.stdout.splitlines()[:3]] == [
        '"str"', '"int"', '"hybridizer.pipeline.results.BuildResult | None"',
    ], found.stdout  # fmt: skip


@pytest.mark.parametrize("name", [name for name in hybridizer.__all__ if name.endswith("Result")])
def test_results_are_frozen_and_every_attribute_is_documented(name):
    result = getattr(hybridizer, name)
    assert is_dataclass(result) and result.__dataclass_params__.frozen
    for field in fields(result):
        assert f"\n        {field.name}: " in result.__doc__, f"{name}.{field.name}"
    properties = [value for value in vars(result).values() if isinstance(value, property)]
    assert all(value.__doc__ for value in properties)


def test_a_mapping_is_the_same_recipe_as_its_file(workshop):
    recipe = {"donors": {name: Path(path) for name, path in DONORS.items()}, "layout": DIAL}
    planned = hybridizer.plan(recipe)
    assert planned.hash == hybridizer.plan("recipe.yaml").hash == hybridize_json("plan", "recipe.yaml")["hash"]
    assert recipe["donors"]["domain"] == Path("donors/domain"), "the mapping is not changed"
    assert hybridizer.plan({**recipe, "name": "x"}, runs="out").plan.name == "x"
    assert json.loads(Path("out/x/plan.json").read_text())["hash"] == planned.hash


def test_overrides_are_those_of_the_command_line(workshop):
    overrides = {"layout.slices": [{"donor": "instruct", "layers": [0, 3]}], "output.dtype": "bfloat16", "seed": 3}
    slices = {"donors": DONORS, "layout": {"host": "instruct", "slices": [{"donor": "domain"}]}}
    planned = hybridizer.plan(slices, overrides)
    assert [row.sources[0].rpartition(" ")[2] for row in planned.layers] == ["0", "3"]
    assert (planned.plan.seed, planned.layers[0].dtype) == (3, "BF16")
    train = {"train.tokens": "3k", "train.lr": 1e-05, "train.freeze": "none", "train.betas": (0.8, 0.9)}
    settings = hybridizer.plan("train.yaml", train).plan.train.settings
    assert (settings["lr"], tuple(settings["betas"])) == (1e-05, (0.8, 0.9))


def test_all_mistakes_of_a_mapping_are_reported_each_at_its_key(workshop):
    recipe = {"donors": DONORS, "layout": {**DIAL, "deep": "instrct"}, "output": {"dtyp": "bfloat16"}}
    with pytest.raises(hybridizer.HybridizerError) as caught:
        hybridizer.check(recipe)
    where = sorted(problem.where for problem in caught.value.problems)
    assert where == ["the recipe at `deep: instrct`", "the recipe at `dtyp: bfloat16`"]
    assert all(isinstance(problem, hybridizer.Problem) for problem in caught.value.problems)


def test_a_value_that_no_recipe_can_hold_is_refused_with_its_key(workshop):
    with pytest.raises(hybridizer.HybridizerError, match=r"`donors`.domain is of type set"):
        hybridizer.check({"donors": {"domain": {"a"}}})
    with pytest.raises(hybridizer.HybridizerError, match="override `seed` is of type object"):
        hybridizer.check("recipe.yaml", {"seed": object()})


def test_what_is_not_built_or_not_trained_is_not_evaluated(workshop):
    with pytest.raises(hybridizer.HybridizerError, match=r"holds no model of this plan.*\n.*Build the recipe first"):
        hybridizer.evaluate("train.yaml")
    with pytest.raises(hybridizer.HybridizerError, match="no `train` section"):
        hybridizer.evaluate("recipe.yaml")


def test_a_setting_that_does_not_exist_is_a_type_error(workshop):
    with pytest.raises(TypeError, match="masc_ratio"):
        hybridizer.trace("donors/instruct", probes="probes.jsonl", masc_ratio=0.5)
