"""What the documents say exists: links, files, functions, commands, options, recipes, and examples that run."""

import ast
import doctest
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml
from test_import_law import HOMES, LAW, NO_TORCH

from hybridizer.cli import main
from hybridizer.core.errors import RecipeError
from hybridizer.recipe.load import load_recipe
from support.workshop import make_workshop

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
LIVING = [page for page in PAGES if page.name != "log.md"]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?<![\w./-])((?:[\w.-]+/)+[\w-]+\.(?:py|md|yaml|json|txt)|scripts/[\w.-]+)(?![\w/])")
PLACEHOLDER = re.compile(r"\.\.\.|<\w+>")


def name(page):
    return str(page.relative_to(ROOT))


def prose(page):
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def blocks(page, *languages):
    """The fenced blocks in one of `languages`, with their indentation taken off."""
    for indent, language, text in FENCE.findall(page.read_text()):
        if language in languages:
            yield re.sub(f"^{indent}", "", text, flags=re.MULTILINE)


def anchors(page):
    """The anchors that a code host gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(page):
    return [(text, target) for text, target in LINK.findall(prose(page)) if "://" not in target]


def broken_link(page, target):
    """What is wrong with a relative link; None where it resolves."""
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists():
        return f"there is no {target}"
    return f"{path or page.name} has no heading #{anchor}" if anchor and anchor not in anchors(file) else None


def defined_in(path):
    """The functions, classes, constants and `Class.attribute` names that a module defines."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        names |= bound_by(node)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner}" for child in node.body for inner in bound_by(child)}
    return names


def bound_by(node):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def undefined(page, text, target):
    """The name that a link such as [`make_plan`](../hybridizer/plan/make.py) promises and its file does not define."""
    file = (page.parent / target.partition("#")[0]).resolve()
    code = CODE.fullmatch(text)
    if code is None or file.suffix != ".py" or not file.exists():
        return None
    symbol = code[1].removesuffix("()")
    return symbol if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)?", symbol) and symbol not in defined_in(file) else None


def commands(page):
    """Every command line of the page that calls hybridize, as a list of words without the program's name."""
    lines = [line for block in blocks(page, "", "bash", "sh", "console") for line in joined(block)]
    lines += joined("\n".join(line for line in prose(page).splitlines() if line.startswith("    ")))
    lines += [code for code in CODE.findall(prose(page)) if code.startswith("hybridize ")]
    for line in lines:
        call = re.search(r"(?:^|[\s'\"])(?:-m hybridizer|hybridize) +(.*)$", line.split(" #")[0])
        if call and "hybridizer/" not in call[0]:
            yield shlex.split(call[1])


def joined(block):
    return re.sub(r"\\\n\s*", " ", block).splitlines()


def wrong_command(words):
    """What click would refuse in a command line; None where it parses. Words that stand for something are let pass."""
    verb, *arguments = [word for word in words if not PLACEHOLDER.fullmatch(word)]
    command = main.commands.get(verb)
    if command is None:
        return f"there is no command {verb}" if not verb.startswith("-") else None
    context = click.Context(command, info_name=verb)
    try:
        values, left, _ = command.make_parser(context).parse_args(list(arguments))
        for parameter in command.get_params(context):
            given = values.get(parameter.name)
            if isinstance(parameter.type, click.Choice | click.types.FloatParamType | click.types.IntParamType):
                parameter.type_cast_value(context, given) if isinstance(given, str) else None
    except click.UsageError as error:
        return error.format_message()
    return f"{left} is too much" if left else None


OPTIONS = {
    option
    for command in main.commands.values()
    for parameter in command.get_params(click.Context(command))
    for option in parameter.opts
}
LAUNCHERS = {"--use_fsdp", "--num_processes", "--machine_rank", "--standalone", "--help", "--version", "--fast"}


def unknown_options(page):
    found = {word for code in CODE.findall(prose(page)) if code.startswith("--") for word in code.split()[:1]}
    return sorted({word.partition("=")[0] for word in found} - OPTIONS - LAUNCHERS)


BASE = {"donors": {"a": "a", "b": "b"}, "layout": {"host": "a", "deep": "a", "shallow": "b", "boundary": 0.5}}


def recipes(page):
    """Every YAML block of the page that is a recipe, or sections of one, which are put into a small whole."""
    for block in blocks(page, "yaml"):
        values = yaml.safe_load(block)
        yield block if "donors" in values else yaml.safe_dump({**BASE, **values})


def wrong_recipe(text, folder):
    path = folder / "recipe.yaml"
    path.write_text(text)
    try:
        load_recipe(path)
    except RecipeError as error:
        return str(error)
    return None


def missing_files(page):
    """Paths in code that exist neither from the root nor inside the package nor among the tests."""
    text = prose(page)
    spans = CODE.findall(text) + [line for block in blocks(page, "", "bash", "sh") for line in block.splitlines()]
    found = {path for span in spans for path in FILE.findall(span)}
    own = {path for path in found if path.startswith(("hybridizer/", "scripts/", "tests/", "docs/", "recipes/"))}
    own |= {path for path in found - own if path.endswith(".py")}
    return sorted(path for path in own if not any((ROOT / up / path).exists() for up in ("", "hybridizer")))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_resolves(page):
    assert [wrong for _, target in links(page) if (wrong := broken_link(page, target))] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", LIVING, ids=name)
def test_every_function_that_is_linked_is_defined_in_its_file(page):
    assert [wrong for text, target in links(page) if (wrong := undefined(page, text, target))] == []


@pytest.mark.parametrize("page", LIVING, ids=name)
def test_every_file_that_is_named_exists(page):
    assert missing_files(page) == []


@pytest.mark.parametrize("page", LIVING, ids=name)
def test_every_command_parses_and_every_option_exists(page):
    assert [f"{' '.join(words)}: {wrong}" for words in commands(page) if (wrong := wrong_command(words))] == []
    assert unknown_options(page) == []


@pytest.mark.parametrize("page", LIVING, ids=name)
def test_every_recipe_loads(page, tmp_path):
    assert [wrong for text in recipes(page) if (wrong := wrong_recipe(text, tmp_path))] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in LIVING if any(blocks(page, "python", "pycon"))], ids=name
)  # fmt: skip
def test_every_python_example_runs(page, bench):
    make_workshop(bench)
    runner, namespace = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), {}
    for number, block in enumerate(blocks(page, "python", "pycon")):
        if ">>>" in block:
            example = doctest.DocTestParser().get_doctest(block, namespace, f"{name(page)}[{number}]", name(page), 0)
            runner.run(example, clear_globs=False)
            namespace.update(example.globs)
        else:
            exec(compile(block, f"{name(page)}[{number}]", "exec"), namespace)
    assert runner.summarize(verbose=False).failed == 0


def test_the_readme_lists_every_command():
    listed = {words[0] for words in commands(ROOT / "README.md")}
    assert listed >= set(main.commands), set(main.commands) - listed


ARCHITECTURE = ROOT / "docs/architecture.md"


def tree_of(block):
    """The paths of a drawn tree, from the first word of each line and its indentation."""
    above = []
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        above = [(depth, part) for depth, part in above if depth < indent] + [(indent, line.split()[0])]
        yield "".join(part for _, part in above)


def test_the_tree_shows_every_folder_of_the_package_and_nothing_that_is_not_there():
    (tree,) = (block for block in blocks(ARCHITECTURE, "text") if block.startswith("hybridizer/\n"))
    shown = set(tree_of(tree))
    assert sorted(path for path in shown if not (ROOT / path).exists()) == []
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in ROOT.glob("hybridizer/*/__init__.py")}
    assert folders <= shown, folders - shown


def test_the_law_in_the_document_is_the_law_in_the_test():
    (law,) = (block for block in blocks(ARCHITECTURE, "text") if block.startswith("__main__"))
    drawn = [set(re.findall(r"\w+", rank)) for rank in law.split("->")]
    assert drawn == LAW
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", prose(ARCHITECTURE), re.MULTILINE)
    assert {library: set(CODE.findall(homes)) for library, homes in rows} == HOMES
    (sentence,) = re.findall(r"^No torch at import: (.*)$", prose(ARCHITECTURE), re.MULTILINE)
    assert set(CODE.findall(sentence)) == NO_TORCH


def test_the_checks_find_what_is_wrong(tmp_path):
    page = ROOT / "docs/x.md"
    assert broken_link(page, "nowhere.md") and broken_link(page, "../README.md#nowhere")
    assert not broken_link(page, "../README.md#hybridizer")
    assert undefined(page, "`make_plane`", "../hybridizer/plan/make.py") == "make_plane"
    assert undefined(page, "`Plan.hush`", "../hybridizer/plan/plan.py") == "Plan.hush"
    assert not undefined(page, "`Plan.hash`", "../hybridizer/plan/plan.py")
    assert wrong_command(["bild", "x.yaml"]) and wrong_command(["build", "x.yaml", "y.yaml"])
    assert "No such option" in wrong_command(["build", "x.yaml", "--replce"])
    assert wrong_command(["plan", "x.yaml", "--device", "tpu"])
    assert not wrong_command(["plan", "RECIPE", "--device", "cuda", "..."])
    assert wrong_recipe("donors: {a: a}\nlayout: {hots: a}\n", tmp_path)
