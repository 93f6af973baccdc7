import errno
import os
from pathlib import Path

import pytest

from hybridizer.checkpoint import copy
from hybridizer.checkpoint.copy import copy_range, write_all
from hybridizer.core.errors import OutputError

CONTENT = bytes(range(256)) * 40
REAL_COPY = getattr(os, "copy_file_range", None)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def copied(source, begin, end):
    """What copy_range appends to a file that holds 'start'; its steps must add up."""
    steps = []
    target = source.with_name("target")
    with target.open("xb", buffering=0) as file:
        file.write(b"start")
        copy_range(source, begin, end, file.fileno(), steps.append)
    content = target.read_bytes()
    assert content[:5] == b"start"
    assert sum(steps) == end - begin
    return content[5:]


def fail_with(code):
    def copy(*_):
        raise OSError(code, os.strerror(code))

    return copy


@pytest.mark.parametrize(("begin", "end"), [(0, len(CONTENT)), (7, 8), (300, 9001), (5, 5)])
def test_a_range_is_copied(source, begin, end):
    assert copied(source, begin, end) == CONTENT[begin:end]


def test_no_file_stays_open(source):
    before = len(list(Path("/proc/self/fd").iterdir()))
    copied(source, 0, 10)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    "code", [errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EIO], ids=errno.errorcode.get
)
def test_what_the_kernel_refuses_is_copied_by_hand(source, monkeypatch, code):
    monkeypatch.setattr(os, "copy_file_range", fail_with(code))
    assert copied(source, 300, 9001) == CONTENT[300:9001]


def test_a_system_without_the_call_copies_by_hand(source, monkeypatch):
    monkeypatch.delattr(os, "copy_file_range")
    assert copied(source, 300, 9001) == CONTENT[300:9001]


def test_the_kernel_does_the_work_where_it_can(source, monkeypatch):
    monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("copied by hand"))
    assert copied(source, 300, 9001) == CONTENT[300:9001]


def test_short_steps_add_up(source, monkeypatch):
    monkeypatch.setattr(os, "copy_file_range", lambda s, t, count, offset: REAL_COPY(s, t, min(count, 1000), offset))
    assert copied(source, 300, 9001) == CONTENT[300:9001]


@pytest.mark.parametrize("answer", [lambda *_: 0, fail_with(errno.EIO)])
def test_a_kernel_that_stops_midway_is_taken_over(source, monkeypatch, answer):
    calls = iter([lambda s, t, count, offset: REAL_COPY(s, t, 1000, offset), answer])

    def copy(*given):
        return next(calls)(*given)

    monkeypatch.setattr(os, "copy_file_range", copy)
    assert copied(source, 300, 9001) == CONTENT[300:9001]


def test_large_ranges_go_in_several_steps(source, monkeypatch):
    monkeypatch.setattr(copy, "KERNEL_CHUNK_BYTES", 1000)
    assert copied(source, 300, 9001) == CONTENT[300:9001]
    source.with_name("target").unlink()
    monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.setattr(copy, "HAND_CHUNK_BYTES", 1000)
    assert copied(source, 300, 9001) == CONTENT[300:9001]


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_source_that_ends_early_is_named(source, monkeypatch, in_kernel):
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range")
    with pytest.raises(OutputError, match=rf"source: bytes .* the file now ends at {len(CONTENT)}"):
        copied(source, 300, len(CONTENT) + 1)


def test_a_bad_sector_names_the_source(source, monkeypatch):
    monkeypatch.setattr(os, "copy_file_range", fail_with(errno.EIO))
    monkeypatch.setattr(os, "pread", fail_with(errno.EIO))
    with pytest.raises(OutputError, match="source: cannot be read: Input/output error"):
        copied(source, 0, 10)


@pytest.mark.parametrize("in_kernel", [True, False])
def test_offsets_beyond_four_gigabytes(tmp_path, monkeypatch, in_kernel):
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range")
    path = tmp_path / "source"
    begin = 5_000_000_000
    with path.open("wb") as file:  # a hole and one block on disk
        file.seek(begin)
        file.write(b"far away")
    assert copied(path, begin - 3, begin + 8) == b"\0\0\0far away"


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda target, data: real_write(target, data[:3]))
    with (tmp_path / "target").open("xb", buffering=0) as file:
        write_all(file.fileno(), b"0123456789")
    assert (tmp_path / "target").read_bytes() == b"0123456789"
