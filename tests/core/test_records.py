from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from hybridizer.core.errors import CheckpointError
from hybridizer.core.records import content_hash, read_json, read_record, to_jsonable, write_json


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


@dataclass(frozen=True)
class Dot:
    size: float
    kind: Literal["dot"] = "dot"


@dataclass(frozen=True)
class Line:
    points: tuple[Point, ...]
    kind: Literal["line"] = "line"


@dataclass(frozen=True)
class Drawing:
    shapes: tuple[Dot | Line, ...]
    settings: Mapping[str, float | int | bool]
    anything: Mapping[str, Any]
    title: str | None = None


DRAWING = Drawing(
    (Dot(1.0), Line((Point(2, ("a", "b")),))), {"i": 1, "f": 1.0, "b": True, "t": 0.1}, {"n": [1, 2.0, None]}
)


def stored(**changes):
    return {"schema": "drawing/1", **json.loads(json.dumps(asdict(DRAWING))), **changes}


def test_a_record_is_read_back_equal_and_of_the_same_types(tmp_path):
    write_json(tmp_path / "d.json", {"schema": "drawing/1", **to_jsonable(DRAWING)})
    for source in (tmp_path / "d.json", stored()):
        found = read_record(source, Drawing, "drawing/1", "d.json", "Draw again.")
        assert found == DRAWING and content_hash(found) == content_hash(DRAWING)
        assert [type(value) for value in found.settings.values()] == [int, float, bool, float]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (stored(schema="drawing/0"), "its schema is 'drawing/0', and this version reads 'drawing/1'"),
        ([], "no 'drawing/1' in it"),
        ({"schema": "drawing/1"}, "`shapes`: Field required"),
        (stored(colour="red"), "`colour` is missing, or is not a field"),
        ({k: v for k, v in stored().items() if k != "title"}, "`title` is missing, or is not a field"),
        (stored(shapes=[{"kind": "line", "points": [{"x": 1, "names": [], "y": 2}]}]), "`shapes.0.points.0.y` is mis"),
        (stored(shapes=[{"kind": "dot", "size": "1"}]), "`shapes.0"),
        (stored(shapes=[{"kind": "ring", "size": 1}]), "`shapes.0"),
        (stored(title=1), "`title`: Input should be a valid string"),
        (stored(anything={"a": math.nan}), "nan cannot be written as JSON"),
        (stored(settings={"a": "1"}), "`settings.a"),
        (stored(anything={"a": "\ud800"}), "d.json"),
    ],
)
def test_a_record_that_is_not_whole_is_refused_with_the_field(value, says):
    with pytest.raises(CheckpointError, match="^d.json: ") as caught:
        read_record(value, Drawing, "drawing/1", "d.json", "Draw again.")
    assert says in str(caught.value) and str(caught.value).endswith("Draw again.")


def test_json_without_end_and_folders_are_refused_too(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "long.json").write_text("9" * 5000)
    for name in ("deep.json", "long.json", "."):
        with pytest.raises(CheckpointError, match="to be read|cannot be read"):
            read_json(tmp_path / name)
