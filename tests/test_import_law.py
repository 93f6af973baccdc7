"""The law of imports, read off the syntax tree: imports inside functions count too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hybridizer

PACKAGE = Path(hybridizer.__file__).parent
LAYERS = [  # a layer may import itself only within one subpackage, and everything above it in this list
    {"errors"},
    {"durable", "cache", "monitor"},
    {"records", "statistics"},
    {"recipe", "reference"},
    {"anatomy", "checkpoint"},
    {"adapters"},
    {"planning", "tracer", "allocation", "training", "stack"},
    {"evaluation"},
    {"stages"},
    {"settle"},
    {"draft"},
    {"measure"},
    {"build"},
    {"terminal", "progress"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
OUTSIDE = {"transformers", "mergekit", "lm_eval", "accelerate", "gguf", "datasets", "peft", "huggingface_hub"}
NO_TORCH = {"errors", "durable", "cache", "monitor", "records", "recipe", "reference", "anatomy", "checkpoint"}
NO_TORCH |= {"statistics", "planning", "stages", "settle", "draft", "build", "terminal", "progress", "cli"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, (parts[0] if parts != ("__init__",) else None)


def imports_of(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if node.module == "hybridizer" else node.module


def violation(part, name):
    """Why `part` of hybridizer may not import `name`; None when it may."""
    root, _, rest = name.partition(".")
    if root != "hybridizer":
        if root in OUTSIDE and part != "adapters":
            return f"only adapters import {root}"
        return "no torch here" if root == "torch" and part in NO_TORCH else None
    target = rest.partition(".")[0]
    if target in ("", "__version__") or target == part:
        return "no stage imports another" if part == "stages" and target == "stages" else None
    return None if RANK[target] < RANK[part] else f"{part} may not import {target}"


@pytest.mark.parametrize(("path", "part"), [m for m in modules() if m[1]], ids=lambda v: getattr(v, "stem", v))
def test_imports_point_from_the_command_line_towards_the_errors(path, part):
    assert part in RANK, f"{part} has no place in the law: give it one"
    found = {name: violation(part, name) for name in imports_of(path)}
    assert {name: why for name, why in found.items() if why} == {}


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("errors", "hybridizer.records"),
        ("anatomy", "hybridizer.checkpoint.header"),
        ("stages", "hybridizer.stages.plan"),
        ("stages", "transformers"),
        ("planning", "torch"),
    ],
)
def test_the_law_has_teeth(part, name):
    assert violation(part, name) is not None


@pytest.mark.parametrize("arguments", [["--help"], ["schema"], ["check", "--help"]])
def test_quick_commands_import_nothing_heavy(arguments):
    program = (
        "import sys\nfrom hybridizer.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'mergekit', 'numpy', 'safetensors', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, capture_output=True)
