"""A build finds what is wrong with texts before it splices, names what the system refuses, and leaves no debris."""

import re
import resource
import shutil
import subprocess
import sys

import pytest

from hybridizer.checkpoint import publish
from hybridizer.checkpoint.publish import lock
from hybridizer.data import sources
from hybridizer.pipeline import build, evaluate
from support.lines import hybridize, make_donors, write_documents, write_recipe

TRAIN = {
    "data": [{"path": "text.jsonl"}], "tokens": 2000, "seq_len": 64, "lr": 1e-3, "heldout_ratio": 0.2,
    "precision": "float32",
}  # fmt: skip
DIAL = {"host": "a", "deep": "a", "shallow": "b", "boundary": 0.5}


@pytest.fixture
def bench(bench):
    """Two tiny llamas, a text, an own cache, and the working folder."""
    make_donors(bench)
    write_documents(bench / "text.jsonl", 100)
    return bench


def recipe_of(bench, train=None, **sections):
    return write_recipe(bench / "x.yaml", donors={"a": "a", "b": "b"}, layout=DIAL, **sections, **(train or {}))


@pytest.mark.slow
def test_texts_are_tokenised_and_prompts_checked_before_anything_is_spliced(bench, monkeypatch):
    order = []
    for module, name in ((evaluate, "check_prompts"), (sources, "open_sources"), (build, "write_model")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name, **k: order.append(name) or real(*a, **k))
    hybridize("build", recipe_of(bench, {"train": TRAIN}), "--no-load")
    assert order == ["check_prompts", "open_sources", "write_model", "open_sources", "write_model"]


def test_a_prompt_that_leaves_no_room_is_found_before_anything_is_spliced(bench):
    recipe = recipe_of(bench, {"train": TRAIN}, evaluate={"prompts": ["word " * 600]})
    assert "x.yaml" in hybridize("build", recipe, code=2).stderr
    assert not (bench / "runs/x/spliced").exists()


@pytest.mark.slow
def test_records_and_card_hold_no_path_of_this_machine(bench):
    (bench / "deep/er").mkdir(parents=True)
    (bench / "text.jsonl").write_text((bench / "text.jsonl").read_text() + "\nnot JSON\n")
    recipe = write_recipe(
        bench / "deep/er/x.yaml", donors={"a": "../../a", "b": "../../b"}, layout=DIAL,
        train={**TRAIN, "data": [{"path": str(bench / "*.jsonl")}]},
    )  # fmt: skip
    hybridize("build", recipe, "--no-load")
    card = (bench / "runs/x/model/README.md").read_text()
    for again in range(2):
        for path in (bench / "runs/x/model").iterdir():
            assert str(bench).encode() not in path.read_bytes(), (path, again)
        # The recipe in plan.json has absolute paths; a model that is trained and built from it shows none either.
        shutil.rmtree(bench / "runs/x/model")
        shutil.rmtree(bench / "runs/x/training")
        hybridize("build", "runs/x/plan.json", "--no-load")
    assert (bench / "runs/x/model/README.md").read_text() == card


def test_temporary_files_of_a_killed_run_are_removed_by_the_next(bench):
    run = bench / "runs/x"
    (run / "traces").mkdir(parents=True)
    left = [
        run / ".plan.json.a1b2c3d4.partial",
        run / "traces/.a.svg.zzzzzzzz.partial",
        run / ".scores.json.q_w2e3r4.partial",
    ]
    kept = [run / ".notes.partial", run / "mine.partial", run / ".plan.json.partial"]
    for path in (*left, *kept):
        path.touch()
    hybridize("build", recipe_of(bench), "--no-load")
    assert [path.exists() for path in (*left, *kept)] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_a_run_that_is_being_written_is_left_alone(bench, verb):
    recipe = recipe_of(bench)
    hybridize("plan", recipe)
    before = (bench / "runs/x/plan.json").read_bytes()
    with lock(bench / "runs/x"):
        stderr = hybridize(verb, recipe, "--set", "layout.boundary=1", code=1).stderr
    assert "runs/x: another run is writing this folder now." in stderr
    assert (bench / "runs/x/plan.json").read_bytes() == before


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_a_folder_that_cannot_be_written_is_named(bench, verb):
    (bench / "runs").write_text("a file, where a folder is needed")
    stderr = hybridize(verb, recipe_of(bench), "--runs", "runs/inner", code=2).stderr
    assert "runs/inner/x: Not a directory." in stderr or "runs/inner: Not a directory." in stderr
    assert "Check the path and its permissions" in stderr


@pytest.mark.parametrize("verb", ["check", "plan", "build"])
def test_a_cache_that_is_a_file_is_named_or_not_needed(bench, monkeypatch, verb):
    (bench / "file").touch()
    monkeypatch.setenv("HYBRIDIZER_CACHE", str(bench / "file/cache"))
    recipe = recipe_of(bench, {"train": TRAIN} if verb == "build" else None)
    try:
        hybridize(verb, recipe)
    except AssertionError as error:
        assert str(error).startswith("exit 2: ") and "file" in str(error) and "Not a directory" in str(error)


@pytest.mark.parametrize(
    "source", ["x" * 5000, "./" + "x" * 5000, "folder:" + "y/" * 3000, "pkg:a/" + "z" * 300, "a" * 300 + ".gguf"]
)
def test_a_source_longer_than_a_path_can_be_is_an_error_at_its_line(bench, source):
    write_recipe(bench / "x.yaml", donors={"a": source}, layout={"deep": "a", "shallow": "a"})
    for verb in ("check", "plan"):
        assert "x.yaml:2: " in hybridize(verb, "x.yaml", code=2).stderr


@pytest.mark.slow
@pytest.mark.parametrize("limit", [10, 3_000, 20_000, 400_000])
def test_a_full_disk_at_any_place_is_an_error_that_names_a_path(bench, limit):
    recipe = recipe_of(bench)
    command = [sys.executable, "-m", "hybridizer", "build", str(recipe), "--no-load"]

    def shrink():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(command, cwd=bench, preexec_fn=shrink, capture_output=True, text=True)
    assert done.returncode == 1 and re.search(r"runs/x.*File too large", done.stderr), done.stderr
    assert not (bench / "runs/x/model").exists() and not list(bench.rglob("*.partial"))


def test_tokenizer_files_and_records_count_in_the_free_space_check(bench, monkeypatch):
    (bench / "a/LICENSE").write_bytes(b"x" * 3_000_000)
    hybridize("build", recipe_of(bench), "--no-load")
    whole = sum(path.stat().st_size for path in (bench / "runs/x/model").iterdir())
    usage = shutil.disk_usage(bench)
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda folder: usage._replace(free=whole - 1))
    another = ("--set", "layout.boundary=1", "--replace", "--no-load")
    assert "the output needs" in hybridize("build", recipe_of(bench), *another, code=1).stderr
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda folder: usage._replace(free=2 * whole))
    hybridize("build", recipe_of(bench), *another)
