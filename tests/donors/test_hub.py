"""Snapshots of the hub that cannot be had: each reason has a message of its own, with what to do about it."""

from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from hybridizer.core.errors import DonorError
from hybridizer.core.progress import SilentMonitor
from hybridizer.donors.hub import WANTED_FILES, find_snapshot
from hybridizer.pipeline.plan import plan_from_configs
from support.hub import COMMIT, serve_repository
from support.lines import make_donor, write_recipe

UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder to serve; the hub's cache is empty, and the hub is switched off."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("config.json", "model-1.safetensors", "model-2.safetensors"):
        (folder / name).write_bytes(name.encode() * 1000)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@contextmanager
def online(monkeypatch, folder, fault=None):
    with serve_repository("org/tiny", folder, fault=fault) as (endpoint, requested):
        _reach(monkeypatch, endpoint)
        yield requested
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def _reach(monkeypatch, endpoint):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def find(revision="v1", *, download=True):
    return find_snapshot("org/tiny", revision, "r.yaml:2", download=download, patterns=WANTED_FILES)


def refusal(revision="v1"):
    with pytest.raises(DonorError) as caught:
        find(revision)
    (problem,) = caught.value.problems
    assert problem.where == "r.yaml:2"
    return problem.what, problem.fix


def test_a_model_that_was_never_fetched_needs_a_network_once(repository):
    what, fix = refusal()
    assert what == "the model org/tiny@v1 is not in the local cache, and HF_HUB_OFFLINE is set."
    assert fix.startswith("Run with a network once")
    assert find(download=False) is None


def test_a_hub_that_cannot_be_reached_is_named_apart_from_offline_mode(repository, monkeypatch):
    _reach(monkeypatch, UNREACHABLE)
    assert refusal()[0] == "the model org/tiny@v1 is not in the local cache, and the hub could not be reached."


@pytest.mark.slow
def test_a_fetched_revision_is_found_offline_and_another_one_is_refused_with_those_that_are_there(
    repository, monkeypatch
):
    with online(monkeypatch, repository):
        assert find().name == COMMIT
    assert find().name == COMMIT and find(download=False).name == COMMIT
    what, fix = refusal("v9")
    assert "is not in the local cache at revision v9 (revisions there: v1), and HF_HUB_OFFLINE is set" in what
    assert fix.endswith("org/tiny@v1.")
    assert "at revision main (revisions there: v1)" in refusal(None)[0]


@pytest.mark.slow
def test_a_revision_that_the_hub_does_not_have_is_refused_although_another_is_cached(repository, monkeypatch):
    with online(monkeypatch, repository):
        find()
        assert refusal("v9")[0] == "the model org/tiny@v9 has no such revision."


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", [None, UNREACHABLE])
def test_a_partial_snapshot_is_never_taken_for_a_whole_one(repository, monkeypatch, endpoint):
    with online(monkeypatch, repository):
        (find() / "model-2.safetensors").unlink()
    if endpoint:
        _reach(monkeypatch, endpoint)
    what, fix = refusal()
    assert what.startswith("the model org/tiny@v1 is only partly in the local cache, and ")
    assert fix == "Run again with a network: complete files are kept."
    assert find(download=False) is None


@pytest.mark.slow
def test_a_partial_snapshot_is_completed_with_a_network(repository, monkeypatch):
    with online(monkeypatch, repository):
        (find() / "model-2.safetensors").unlink()
        assert (find() / "model-2.safetensors").read_bytes() == b"model-2.safetensors" * 1000


@pytest.mark.slow  # the library tries again for five seconds
def test_a_connection_that_ends_in_the_middle_of_a_file_is_an_error_and_a_second_run_completes_it(
    repository, monkeypatch
):
    with online(monkeypatch, repository, fault="cut"):
        what, fix = refusal()
    assert "could not be fetched" in what and "complete files are kept" in fix
    with online(monkeypatch, repository):
        assert {path.name for path in find().iterdir()} == {path.name for path in repository.iterdir()}


@pytest.mark.slow
def test_an_error_of_the_hub_is_quoted(repository, monkeypatch):
    with online(monkeypatch, repository, fault="broken"):
        assert "the hub answered with an error: Server error '501" in refusal()[0]


@pytest.mark.slow
def test_a_gated_model_names_the_terms_to_accept(repository, monkeypatch):
    with online(monkeypatch, repository, fault="gated"):
        assert refusal()[0] == "the model org/tiny@v1 is gated." and "terms" in refusal()[1]


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_an_error_with_its_reason(repository, monkeypatch, tmp_path):
    Path(tmp_path / "hub").write_text("a file in the place of the cache")
    with online(monkeypatch, repository):
        what, fix = refusal()
    assert "could not be fetched: " in what and fix == "Check permissions and the disk."


@pytest.mark.slow
def test_a_plan_from_configs_fetches_no_weights(bench, monkeypatch, repository):
    make_donor(repository)
    layout = {"host": "a", "deep": "a", "shallow": "a"}
    recipe = write_recipe(bench / "x.yaml", donors={"a": "org/tiny@v1"}, layout=layout)
    with online(monkeypatch, repository) as requested:
        planned = plan_from_configs(recipe, (), SilentMonitor())
    assert not [path for path in requested if path.endswith(".safetensors")]
    assert [path for path in requested if path.endswith("config.json")]
    assert planned.plan.donors["a"].revision == COMMIT and len(planned.plan.layers) == 4
    assert (
        plan_from_configs(recipe, (), SilentMonitor()).plan.tensors == planned.plan.tensors
    )  # offline, from the cache
