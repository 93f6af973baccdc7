import contextlib
import errno
import fcntl
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from hybridizer.checkpoint import publish
from hybridizer.checkpoint.layout import OutputTensor
from hybridizer.checkpoint.publish import begin_output, to_output_error
from hybridizer.checkpoint.writer import write_checkpoint
from hybridizer.core.errors import OutputError
from support import killed_output
from support.tensor_files import small_disk

ROOT = Path(__file__).parents[2]


def fill(folder, word="new"):
    (folder / "weights").write_text(word)
    (folder / "manifest.json").write_text("{}")


def read(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def path_of(descriptor):
    return Path(f"/proc/self/fd/{descriptor}").readlink()


@pytest.fixture
def final(tmp_path):
    return tmp_path / "runs" / "model"


@pytest.fixture
def finished(final):
    with begin_output(final) as folder:
        fill(folder, "old")
    return final


def test_the_folder_appears_when_the_block_ends(final):
    with begin_output(final) as folder:
        fill(folder)
        assert folder.parent == final.parent
        assert not final.exists()
    assert read(final) == {"weights": "new", "manifest.json": "{}"}
    assert names(final.parent) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_nothing_is_left_when_the_block_raises(final, error):
    with pytest.raises(error), begin_output(final) as folder:
        fill(folder)
        raise error("midway")
    assert names(final.parent) == []


def test_folders_and_files_have_the_users_own_mode(final):
    before = os.umask(0o027)
    try:
        with begin_output(final):
            pass
    finally:
        os.umask(before)
    assert final.stat().st_mode & 0o777 == 0o750


def test_everything_is_flushed_before_the_name_is_given(final, monkeypatch):
    log = []
    real_fsync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (log.append(path_of(fd).name), real_fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (log.append("RENAME"), real_rename(a, b)))
    with begin_output(final) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("x")
        (folder / "link").symlink_to("nowhere")
        log.clear()
    position = log.index("RENAME")
    assert sorted(log[:position]) == [folder.name, "deep", "file"]
    assert log[position + 1 :] == ["runs"]


def test_an_occupied_name_is_refused_and_left_alone(finished):
    with pytest.raises(OutputError, match="the folder exists and holds manifest.json, weights"), begin_output(finished):
        pytest.fail("the block was entered")
    assert read(finished)["weights"] == "old"
    assert names(finished.parent) == ["model"]


def test_an_empty_folder_is_not_occupied(final):
    final.mkdir(parents=True)
    with begin_output(final) as folder:
        fill(folder)
    assert read(final)["weights"] == "new"


def test_a_folder_that_fills_up_meanwhile_is_not_overwritten(final):
    with pytest.raises(OutputError, match="model: Directory not empty"), begin_output(final) as folder:
        fill(folder)
        final.mkdir()
        (final / "theirs").write_text("x")
    assert names(final.parent) == ["model"]
    assert read(final) == {"theirs": "x"}


@pytest.mark.parametrize("kind", ["file", "link"])
def test_files_and_links_are_never_replaced(tmp_path, final, kind):
    final.parent.mkdir()
    if kind == "file":
        final.write_text("x")
    else:
        final.symlink_to(tmp_path)
    for replace in (False, True):
        with pytest.raises(OutputError, match="of that name is there"), begin_output(final, replace=replace):
            pytest.fail("the block was entered")
    assert final.is_symlink() or final.read_text() == "x"


def test_a_mount_point_is_refused_before_the_work(final, monkeypatch):
    final.mkdir(parents=True)
    monkeypatch.setattr(Path, "is_mount", lambda self: self == final)
    with pytest.raises(OutputError, match="is a mount point"), begin_output(final):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_finished_output_is_replaced_when_asked(finished, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(publish, "_exchange", lambda *_: False)
    (finished / "stale").write_text("of the old one")
    with begin_output(finished, replace=True) as folder:
        fill(folder)
        assert read(finished)["weights"] == "old"
    assert read(finished) == {"weights": "new", "manifest.json": "{}"}
    assert names(finished.parent) == ["model"]


def test_the_exchange_is_one_step_here(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / folder.name).touch()
    assert publish._exchange(one, two)
    assert (names(one), names(two)) == (["two"], ["one"])
    with pytest.raises(OSError, match="No such file"):
        publish._exchange(one, tmp_path / "missing")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, None])
def test_a_system_without_the_exchange_says_so(tmp_path, monkeypatch, code):
    class Library:
        if code:

            def renameat2(self, *_):
                publish.ctypes.set_errno(code)
                return -1

    monkeypatch.setattr(publish.ctypes, "CDLL", lambda *_, **__: Library())
    assert publish._exchange(tmp_path / "a", tmp_path / "b") is False


def test_a_failed_move_aside_puts_the_old_one_back(finished, tmp_path):
    with pytest.raises(FileNotFoundError):
        publish._move_aside(tmp_path / "missing", finished)
    assert read(finished)["weights"] == "old"


def test_a_folder_that_is_no_output_of_ours_is_not_replaced(final):
    final.mkdir(parents=True)
    (final / "thesis.tex").write_text("x")
    with (
        pytest.raises(OutputError, match=r"holds no manifest.json.*it holds thesis.tex"),
        begin_output(final, replace=True),
    ):
        pytest.fail("the block was entered")
    assert read(final) == {"thesis.tex": "x"}


def test_replace_needs_nothing_to_replace(final):
    with begin_output(final, replace=True) as folder:
        fill(folder)
    assert read(final)["weights"] == "new"


def test_a_second_run_into_the_same_folder_is_refused_at_once(final):
    with begin_output(final) as first:
        fill(first)
        with pytest.raises(OutputError, match="another run is writing this folder now"), begin_output(final):
            pytest.fail("the block was entered")
        assert names(first) == ["manifest.json", "weights"]
        with begin_output(final.with_name("other")) as other:
            fill(other)
    assert names(final.parent) == ["model", "other"]


def test_a_lock_that_was_removed_in_between_is_taken_again(final, monkeypatch):
    real_flock = fcntl.flock
    calls = []

    def flock(descriptor, how):
        if not calls:  # the run that held it ends right now
            path_of(descriptor).unlink()
        calls.append(descriptor)
        real_flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with begin_output(final):
        assert len(calls) == 2
        assert (final.parent / ".model.lock").exists()


def test_a_file_system_without_locks_is_refused(final, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OutputError, match="cannot be locked against other runs"), begin_output(final):
        pytest.fail("the block was entered")


def test_left_overs_of_this_name_only_are_removed(final):
    mine, theirs = ".model.01234567.partial", [".model.b.01234567.partial", ".model.0123456.partial", ".model.partial"]
    for name in [mine, *theirs]:
        (final.parent / name / "deep").mkdir(parents=True)
    (final.parent / ".model.89abcdef.partial").write_text("a file, as durable writes leave it")
    with begin_output(final):
        assert mine not in names(final.parent)
    assert names(final.parent) == sorted([*theirs, ".model.89abcdef.partial", "model"])


def test_a_parent_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file: File exists"), begin_output(tmp_path / "file" / "model"):
        pytest.fail("the block was entered")


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    tensors = [OutputTensor("w", "U8", (400_000,), lambda: iter([bytes(200_000)] * 2))]
    with small_disk(tmp_path / "disk", 262_144) as disk:
        with pytest.raises(OutputError, match="No space left"), begin_output(disk / "model") as folder:
            write_checkpoint(folder, tensors, max_shard_bytes=1 << 30, metadata={}, on_progress=lambda _: None)
        assert names(disk) == []
        with begin_output(disk / "model") as folder:
            fill(folder)


@contextlib.contextmanager
def program(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, killed_output.__file__, *map(str, arguments)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "states"),
    [
        ([], ["absent", "generation 2"]),
        (["replace"], ["generation 1", "generation 2"]),
        (["replace", "no-exchange"], ["generation 1", "absent", "generation 2"]),
    ],
)
def test_killed_before_any_step_leaves_nothing_half_done(final, options, states):
    final.parent.mkdir()
    with program("steps", final, *options) as process:
        *killed, survived = [json.loads(line) for line in process.stdout]
    assert len(killed) > 25
    assert {code for code, _ in killed} == {-9}
    seen = [state for _, state in killed]
    assert sorted(set(seen), key=seen.index) == states
    assert survived == [0, "generation 2"]
    assert names(final.parent) == ["model"]


@pytest.mark.slow
def test_killed_at_random_moments_leaves_a_whole_output(final):
    chance = random.Random(0)
    for _ in range(4):
        with program("forever", final) as process:
            for _ in range(chance.randrange(1, 6)):
                process.stdout.readline()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=chance.random() * 0.03)
        assert killed_output.describe(final).startswith("generation")
    with begin_output(final, replace=True) as folder:
        fill(folder)
    assert names(final.parent) == ["model"]


def test_a_path_in_bytes_is_named_as_text(tmp_path):
    error = OSError(errno.EIO, os.strerror(errno.EIO), os.fsencode(tmp_path / "x"))
    assert str(to_output_error(error, tmp_path)).startswith(f"{tmp_path / 'x'}: Input/output error.")
