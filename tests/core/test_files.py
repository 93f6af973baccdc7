import os
import stat

import pytest

from hybridizer.core.files import new_folder, write_file


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
