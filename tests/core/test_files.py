import os
import stat
import time

import pytest

from hybridizer.core.files import STALE_SECONDS, hidden_sibling, new_folder, remove_stale, write_file


def test_a_write_that_fails_leaves_the_old_file_and_no_trace(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_file(path, "old")

    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, "new")
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_appears_whole_with_the_users_own_mode(tmp_path):
    before = os.umask(0o027)
    try:
        with new_folder(tmp_path / "a") as partial:
            (partial / "b").write_text("x")
            assert not (tmp_path / "a").exists()
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("occupied", [True, False])
def test_a_folder_that_cannot_be_finished_leaves_no_trace(tmp_path, occupied):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "theirs").touch()
    with pytest.raises(OSError, match="Directory not empty" if occupied else "midway"), new_folder(tmp_path / "a"):
        if not occupied:
            raise OSError("midway")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "theirs"]


def test_a_small_file_is_flushed_once_and_its_folder_once(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (flushed.append(os.fstat(descriptor)), fsync(descriptor)))
    write_file(tmp_path / "file", "text")
    assert [stat.S_ISDIR(status.st_mode) for status in flushed] == [False, True]
    assert flushed[0].st_size == 4, "flushed before it was written"


def test_temporary_files_and_folders_of_killed_runs_are_removed_and_nothing_else(tmp_path):
    old = time.time() - STALE_SECONDS - 60
    folder, growing = hidden_sibling(tmp_path / "tokens"), hidden_sibling(tmp_path / "growing")
    for path in (folder, growing):
        path.mkdir()
        (path / "tokens.npy").touch()
        os.utime(path / "tokens.npy", (old, old))
    (growing / "ends.npy").touch()
    files = {name: tmp_path / name for name in (".a.json.k2_x9abc.partial", ".new.json.12345678.partial", ".partial",
                                                "a.12345678.partial", ".mine.partial", "a.json")}  # fmt: skip
    for path in files.values():
        path.touch()
    for path in (*files.values(), folder, growing):
        if path.name != ".new.json.12345678.partial":
            os.utime(path, (old, old))
    remove_stale(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*files, growing.name} - {".a.json.k2_x9abc.partial"}
