import errno
import hashlib
import os
import threading

import pytest

from hybridizer.checkpoint import sealing
from hybridizer.checkpoint.layout import OutputTensor
from hybridizer.checkpoint.sealing import Growth, flush_growing, hash_growing
from hybridizer.checkpoint.writer import write_checkpoint
from hybridizer.core.errors import OutputError

LONG = 30.0  # seconds; reached only by a thread that waits for something that does not come


def write(folder, tensors, max_shard_bytes=1 << 30):
    return write_checkpoint(folder, tensors, max_shard_bytes=max_shard_bytes, metadata={}, on_progress=lambda _: None)


def test_a_file_is_hashed_while_it_is_written(tmp_path, monkeypatch):
    begun = threading.Event()
    take = sealing._take

    def watched(*arguments):
        for piece in take(*arguments):
            yield piece
            begun.set()

    def source():
        yield b"12"
        assert begun.wait(LONG), "hashing waits until the file is complete"
        yield b"34"

    monkeypatch.setattr(sealing, "_take", watched)
    written = write(tmp_path, [OutputTensor("w", "U8", (4,), source)])
    assert written.files == {
        "model.safetensors": hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    }


def test_the_hash_is_of_what_the_file_holds_and_not_of_what_was_to_be_written(tmp_path):
    path = tmp_path / "file"
    with path.open("xb", buffering=0) as file:
        growth = Growth(file)
        file.write(b"written")
        with path.open("r+b") as other:
            other.write(b"W")
        growth.advance()
        growth.end()
        assert hash_growing(path, growth, threading.Event()) == hashlib.sha256(b"Written").hexdigest()


def test_a_file_that_another_program_cuts_short_is_hashed_as_far_as_it_goes(tmp_path):
    path = tmp_path / "file"
    with path.open("xb", buffering=0) as file:
        growth = Growth(file)
        file.write(b"written")
        growth.advance()
        os.truncate(path, 3)
        growth.end()
        assert hash_growing(path, growth, threading.Event()) == hashlib.sha256(b"wri").hexdigest()


def grown(path, content):
    """A file of `content`, complete."""
    with path.open("xb", buffering=0) as file:
        growth = Growth(file)
        file.write(content)
        growth.advance()
        growth.end()
    return growth


def test_the_next_bytes_are_read_while_those_before_them_are_hashed(tmp_path, monkeypatch):
    read_all = threading.Event()

    def hash_slowly(chunks):
        next(chunks)
        assert read_all.wait(LONG), "reading waits until what was read is hashed"
        return str(1 + sum(1 for _ in chunks))

    growth = grown(tmp_path / "file", bytes(2 * sealing._CHUNK_BYTES))
    wait_beyond = growth.wait_beyond
    monkeypatch.setattr(growth, "wait_beyond", lambda position: (position and read_all.set()) or wait_beyond(position))
    monkeypatch.setattr(sealing, "hash_chunks", hash_slowly)
    assert hash_growing(tmp_path / "file", growth, threading.Event()) == "2"


def test_a_file_of_more_pieces_than_there_are_buffers_is_hashed_in_order(tmp_path):
    content = os.urandom(7 * sealing._CHUNK_BYTES + 3)
    growth = grown(tmp_path / "file", content)
    assert hash_growing(tmp_path / "file", growth, threading.Event()) == hashlib.sha256(content).hexdigest()


def test_a_file_that_cannot_be_read_back_fails(tmp_path):
    growth = grown(tmp_path / "file", b"written")
    with pytest.raises(FileNotFoundError):
        hash_growing(tmp_path / "lost", growth, threading.Event())


def test_hashing_that_fails_ends_the_reading(tmp_path, monkeypatch):
    def fail(chunks):
        next(chunks)
        raise ValueError("no hash")

    monkeypatch.setattr(sealing, "hash_chunks", fail)
    growth = grown(tmp_path / "file", bytes(9 * sealing._CHUNK_BYTES))
    with pytest.raises(ValueError, match="no hash"):
        hash_growing(tmp_path / "file", growth, threading.Event())


def test_a_long_file_is_flushed_in_steps_and_then_as_a_whole(tmp_path, monkeypatch):
    calls, stepped = [], threading.Event()
    monkeypatch.setattr(sealing, "FLUSH_BYTES", 10)
    monkeypatch.setattr(os, "fdatasync", lambda _: (calls.append("step"), stepped.set()))
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("whole"))
    with (tmp_path / "file").open("xb", buffering=0) as file:
        growth = Growth(file)
        thread = threading.Thread(target=flush_growing, args=(growth, threading.Event()))
        thread.start()
        file.write(bytes(11))
        growth.advance()
        assert stepped.wait(LONG), "nothing is flushed before the end"
        file.write(bytes(3))
        growth.advance()
        growth.end()
        thread.join()
    assert calls == ["step", "whole"]


def test_a_flush_that_fails_while_the_file_is_written_fails_the_run(tmp_path, monkeypatch):
    failed = threading.Event()

    def fail(_):
        failed.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def source():
        yield bytes(20)
        assert failed.wait(LONG)
        yield bytes(20)

    monkeypatch.setattr(sealing, "FLUSH_BYTES", 10)
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        write(tmp_path, [OutputTensor("w", "U8", (40,), source)])


def test_a_stopped_run_is_not_flushed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("flushed"))
    stop = threading.Event()
    stop.set()
    with (tmp_path / "file").open("xb", buffering=0) as file:
        growth = Growth(file)
        growth.end()
        flush_growing(growth, stop)
