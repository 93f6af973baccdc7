"""The law of imports, read off the syntax tree: imports inside functions count too."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hybridizer
from support.lines import make_donor, write_recipe

PACKAGE = Path(hybridizer.__file__).parent
# Left may import right. Members of one set never import each other; inside a member everything may import everything.
LAW = [
    {"__main__"},
    {"cli"},
    {"pipeline"},
    {"report"},
    {"splice", "train", "scan", "convert"},
    {"trace", "plan", "evaluate"},
    {"data", "donors", "mixers"},
    {"models"},
    {"recipe", "families", "checkpoint"},
    {"core"},
]
RANK = {name: rank for rank, names in enumerate(LAW) for name in names}
# At import, that is: inside a function these may load what they like, unless HOMES says otherwise.
NO_TORCH = {"core", "recipe", "checkpoint", "families", "donors", "plan", "report", "pipeline"}
NO_TORCH |= {"cli", "__main__"}
HOMES = {  # the one place, or the few, that may import a library
    "transformers": {"models.load", "models.check", "donors.gguf", "donors.pickles", "data.tokenizer"},
    "mergekit": {"splice.blend"},
    "accelerate": {"train.runtime"},
    "peft": {"train.lora"},
    "lm_eval": {"evaluate.harness"},
    "datasets": {"data.hub"},
    "huggingface_hub": {"data.hub", "donors.hub"},
    "filelock": {"checkpoint.publish"},
    "gguf": {"donors.gguf"},
    "bitsandbytes": {"train.optimizer"},
    "matplotlib": {"report"},
    "rich": {"report", "core.progress"},
}


def modules():
    """Every module of the package: its file, and its name below hybridizer."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        if name:
            yield path, name


def imports_of(path):
    """The imported names in a file, each with whether it is imported when the file is."""
    tree = ast.parse(path.read_text())
    late = {id(node) for outer in ast.walk(tree) if isinstance(outer, LATE) for node in ast.walk(outer)}
    late |= {id(node) for outer in ast.walk(tree) if is_type_checking(outer) for node in ast.walk(outer)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            for alias in node.names:
                yield (
                    f"{node.module}.{alias.name}" if node.module == "hybridizer" else node.module,
                    id(node) not in late,
                )


LATE = (ast.FunctionDef, ast.AsyncFunctionDef)


def is_type_checking(node):
    return isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"


def violation(module, name, at_import=True):
    """Why `module` of hybridizer may not import `name`; None when it may."""
    part = module.partition(".")[0]
    root, _, rest = name.partition(".")
    if root != "hybridizer":
        if root in HOMES and not {module, part} & HOMES[root]:
            return f"only {', '.join(sorted(HOMES[root]))} may import {root}"
        return "no torch at import here" if root == "torch" and at_import and part in NO_TORCH else None
    target = rest.partition(".")[0]
    if target in ("", "__version__") or target == part:
        return None
    return None if RANK[target] > RANK[part] else f"{part} may not import {target}"


@pytest.mark.parametrize(("path", "name"), list(modules()), ids=lambda v: v if isinstance(v, str) else "")
def test_imports_point_from_the_command_line_towards_the_core(path, name):
    part = name.partition(".")[0]
    assert part in RANK, f"{part} has no place in the law: give it one"
    found = {asked: violation(name, asked, at_import) for asked, at_import in imports_of(path)}
    assert {asked: why for asked, why in found.items() if why} == {}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("core.errors", "hybridizer.recipe.load"),
        ("families.reading", "hybridizer.checkpoint.header"),
        ("train.loop", "hybridizer.splice.copy"),
        ("trace.measure", "hybridizer.evaluate.bits"),
        ("donors.open", "hybridizer.data.hub"),
        ("pipeline.build", "transformers"),
        ("plan.make", "torch"),
        ("splice.copy", "mergekit.merge_methods"),
    ],
)
def test_the_law_has_teeth(module, name):
    assert violation(module, name) is not None


def test_what_a_function_imports_counts_and_torch_may_wait_there():
    assert violation("plan.make", "torch", at_import=False) is None
    assert violation("core.files", "hybridizer.models.load", at_import=False) is not None


@pytest.mark.slow
def test_nothing_that_plans_or_reports_loads_torch():
    names = [f"hybridizer.{name}" for _, name in modules() if name.partition(".")[0] in NO_TORCH - {"__main__"}]
    program = """if True:
        import importlib, sys
        for name in sys.argv[1:]:
            importlib.import_module(name)
            assert "torch" not in sys.modules, name
    """
    found = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["schema"], ["check", "--help"]])
def test_quick_commands_import_nothing_heavy(arguments):
    program = (
        "import sys\nfrom hybridizer.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'mergekit', 'numpy', 'safetensors', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, capture_output=True)


def test_a_build_that_copies_loads_no_library_of_numbers(tmp_path):
    for seed, name in enumerate("ab"):
        make_donor(tmp_path / name, seed=seed)
    slices = [{"donor": "a", "layers": [0]}, {"donor": "b", "layers": [1]}]
    donors = {"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}
    recipe = write_recipe(tmp_path / "x.yaml", donors=donors, layout={"host": "a", "slices": slices})
    arguments = ["build", str(recipe), "--no-load", "--runs", str(tmp_path / "runs")]
    program = (
        "import sys\nfrom hybridizer.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'mergekit', 'numpy', 'jaxtyping', 'safetensors', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    environment = {**os.environ, "HYBRIDIZER_CACHE": str(tmp_path / "cache")}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
