import hashlib
import json
import os
import threading

import pytest

from hybridizer.checkpoint import hashing
from hybridizer.checkpoint.hashing import RACY_NS, fingerprint_files, hash_file, hash_files
from hybridizer.core.errors import CheckpointError


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "fingerprints"


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files whose content is really read, in a list that grows."""
    names = []

    def counting(path, stop=None):
        names.append(path.name)
        return hash_file(path, stop)

    monkeypatch.setattr(hashing, "hash_file", counting)
    return names


def write(folder, **contents):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def years_later():
    return 10**19


def test_a_file_hash_is_its_sha256(tmp_path):
    content = os.urandom(3_000_001)
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_hashing_gives_up_when_asked(tmp_path):
    (tmp_path / "file").write_bytes(bytes(10))
    stop = threading.Event()
    stop.set()
    assert hash_file(tmp_path / "file", stop) == hashlib.sha256().hexdigest()


def test_many_files_are_hashed_in_their_order(tmp_path):
    files = write(tmp_path / "model", c=b"1" * 3_000_000, a=b"22", b=b"")
    expected = [(name, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in files.items()]
    assert list(hash_files(files)) == expected


def test_no_more_is_read_after_a_failure(tmp_path, cache, hashed, monkeypatch):
    monkeypatch.setattr(hashing, "HASH_THREADS", 1)
    files = {"gone": tmp_path / "gone", **write(tmp_path / "model", **{f"f{n}": b"1" for n in range(50)})}
    with pytest.raises(CheckpointError):
        fingerprint_files(files, cache)
    assert len(hashed) < 50


def test_a_fingerprint_is_golden(tmp_path, cache):
    files = write(tmp_path / "model", a=b"1", b=b"22")
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    text = json.dumps(hashes, sort_keys=True, separators=(",", ":"))
    expected = "sha256:5b2abdfb113463a9d1260d25d7a8f6ecdad319e1ca94777f46bb1256101dc02f"
    assert fingerprint_files(files, cache) == "sha256:" + hashlib.sha256(text.encode()).hexdigest() == expected


def test_place_and_order_do_not_matter_and_names_and_content_do(tmp_path, cache):
    here = write(tmp_path / "here", a=b"1", b=b"22")
    there = write(tmp_path / "there", b=b"22", a=b"1")
    first = fingerprint_files(here, cache)
    assert fingerprint_files(there, cache) == first
    assert fingerprint_files({"a": here["b"], "b": here["a"]}, cache) != first
    assert fingerprint_files({"a": here["a"]}, cache) != first
    assert fingerprint_files(write(tmp_path / "other", a=b"1", b=b"23"), cache) != first


def test_a_second_run_reads_no_content(tmp_path, cache, hashed):
    files = write(tmp_path / "model", a=b"1", b=b"22")
    first = fingerprint_files(files, cache, years_later)
    assert sorted(hashed) == ["a", "b"]
    assert fingerprint_files(files, cache, years_later) == first
    assert len(hashed) == 2


def test_a_rewrite_of_the_same_size_that_sets_mtime_back_is_seen(tmp_path, cache):
    files = write(tmp_path / "model", a=b"1")
    status = files["a"].stat()
    first = fingerprint_files(files, cache, years_later)
    files["a"].write_bytes(b"2")
    os.utime(files["a"], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files["a"].stat().st_mtime_ns == status.st_mtime_ns
    assert fingerprint_files(files, cache, years_later) != first


def test_a_file_of_the_last_two_seconds_is_not_remembered(tmp_path, cache, hashed):
    files = write(tmp_path / "model", a=b"1")
    changed = files["a"].stat().st_ctime_ns
    fingerprint_files(files, cache, lambda: changed + RACY_NS - 1)
    fingerprint_files(files, cache, lambda: changed - 1)  # a clock that was set back
    assert not cache.exists()
    fingerprint_files(files, cache, lambda: changed + RACY_NS)
    fingerprint_files(files, cache, lambda: changed + RACY_NS)
    assert hashed == ["a"] * 3


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"identity": 3}', b"\xff", lambda text: text.replace(b'"sha256": "', b'"sha256": "g')],
)
def test_a_damaged_memory_is_rewritten(tmp_path, cache, hashed, damage):
    files = write(tmp_path / "model", a=b"1")
    first = fingerprint_files(files, cache, years_later)
    (place,) = cache.iterdir()
    good = place.read_bytes()
    place.write_bytes(damage(good) if callable(damage) else damage)
    assert fingerprint_files(files, cache, years_later) == first
    assert (place.read_bytes(), len(hashed)) == (good, 2)


def test_a_memory_of_another_file_is_not_used(tmp_path, cache):
    files = write(tmp_path / "model", a=b"1", b=b"2")
    fingerprint_files(files, cache, years_later)
    one, two = cache.iterdir()
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    assert fingerprint_files(files, cache, years_later) == fingerprint_files(files, tmp_path / "empty", years_later)


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path):
    files = write(tmp_path / "model", a=b"1")
    (tmp_path / "occupied").write_bytes(b"")
    assert fingerprint_files(files, tmp_path / "occupied", years_later).startswith("sha256:")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, cache, monkeypatch):
    files = write(tmp_path / "model", a=b"1")

    def growing(path, stop=None):
        path.write_bytes(b"12")
        return hash_file(path, stop)

    monkeypatch.setattr(hashing, "hash_file", growing)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        fingerprint_files(files, cache, years_later)
    assert not cache.exists()


def test_a_missing_file_is_named(tmp_path, cache):
    with pytest.raises(CheckpointError, match="gone: cannot be read: No such file"):
        fingerprint_files({"gone": tmp_path / "gone"}, cache)


def test_temporary_files_of_killed_runs_are_removed_from_the_cache(tmp_path, cache):
    files = write(tmp_path / "model", a=b"1")
    cache.mkdir(parents=True)
    left = cache / ".0f.json.abcdefgh.partial"
    left.touch()
    os.utime(left, (0, 0))
    fingerprint_files(files, cache, years_later)
    assert [path.suffix for path in cache.iterdir()] == [".json"]
