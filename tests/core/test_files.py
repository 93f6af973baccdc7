import os

import pytest

from hybridizer.core.files import write_file


def test_a_write_that_fails_leaves_the_old_file_and_no_trace(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_file(path, "old")

    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, "new")
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
