import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from hybridizer.core.errors import CheckpointError
from hybridizer.core.records import content_hash, read_json, to_jsonable, write_json


@dataclass(frozen=True)
class Point:
    x: int
    names: tuple[str, ...]


def test_a_record_goes_to_disk_and_back(tmp_path):
    write_json(tmp_path / "p.json", Point(1, ("ä", "b")))
    assert read_json(tmp_path / "p.json") == {"x": 1, "names": ["ä", "b"]}
    assert (tmp_path / "p.json").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_the_hash_does_not_depend_on_the_order_of_keys_and_is_fixed_for_all_time():
    assert content_hash({"b": 1, "a": [2.5, None]}) == content_hash({"a": (2.5, None), "b": 1})
    assert content_hash({"a": 1}) == "sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    assert content_hash({"a": 1}) != content_hash({"a": 1.5})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_json_cannot_carry_is_an_error_rather_than_invalid_json(value):
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        to_jsonable({"deep": [value]})
    with pytest.raises(TypeError, match="a set cannot"):
        to_jsonable({1})
    assert to_jsonable(Path("a")) == "a"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": 1,\n oops}', "bad.json:2: not valid JSON"),
        (b"\xff\xfe", "not UTF-8 text at byte 0"),
        (None, "not there"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, content, says):
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        read_json(path)
