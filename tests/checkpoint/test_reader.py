import json

import pytest

from hybridizer.checkpoint.reader import INDEX_NAME, open_checkpoint
from hybridizer.core.errors import CheckpointError
from support.tensor_files import tensor_file

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
BYTE = ("U8", [1], b"x")


def sharded(folder, weight_map=None, **extra):
    tensor_file(folder / FIRST, {"a": BYTE, "b": BYTE})
    tensor_file(folder / SECOND, {"c": BYTE})
    weight_map = {"a": FIRST, "b": FIRST, "c": SECOND} if weight_map is None else weight_map
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 3}, "weight_map": weight_map} | extra))
    return folder


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert all(problem.fix and str(folder) in problem.where for problem in caught.value.problems)
    return str(caught.value)


def test_a_single_file_is_a_checkpoint(tmp_path):
    file = tensor_file(tmp_path / "model.safetensors", {"a": BYTE})
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.files, checkpoint.index) == ((file,), None)
    assert checkpoint.tensors["a"].file == file


def test_shards_are_joined_through_the_index(tmp_path):
    checkpoint = open_checkpoint(sharded(tmp_path))
    assert checkpoint.files == (tmp_path / FIRST, tmp_path / SECOND)
    assert checkpoint.index == tmp_path / INDEX_NAME
    assert {name: entry.file.name for name, entry in checkpoint.tensors.items()} == {
        "a": FIRST,
        "b": FIRST,
        "c": SECOND,
    }


def test_shards_may_be_links_as_in_the_hub_cache(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    sharded(blobs)
    snapshot.mkdir(parents=True)
    for file in (FIRST, SECOND, INDEX_NAME):
        (snapshot / file).symlink_to(f"../../blobs/{file}")
    assert open_checkpoint(snapshot).tensors["c"].file == snapshot / SECOND


def test_an_index_that_names_only_the_single_file_is_followed(tmp_path):
    tensor_file(tmp_path / "model.safetensors", {"a": BYTE})
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert set(open_checkpoint(tmp_path).tensors) == {"a"}


def test_a_single_file_beside_an_index_of_shards_is_ambiguous(tmp_path):
    tensor_file(sharded(tmp_path) / "model.safetensors", {"a": BYTE})
    assert "holds both model.safetensors and an index of other files" in refusal(tmp_path)


def test_all_missing_shards_are_listed(tmp_path):
    sharded(tmp_path)
    (tmp_path / FIRST).unlink()
    (tmp_path / SECOND).unlink()
    assert f"2 of 2 files are missing: '{FIRST}', '{SECOND}'" in refusal(tmp_path)


def test_a_broken_link_counts_as_a_missing_shard(tmp_path):
    (sharded(tmp_path) / SECOND).unlink()
    (tmp_path / SECOND).symlink_to("../blobs/gone")
    assert f"1 of 2 files are missing: '{SECOND}'" in refusal(tmp_path)


@pytest.mark.parametrize(
    "place",
    ["../x.safetensors", "/etc/x.safetensors", "..", "", "a/b.safetensors", "a\\b.safetensors", "a\0.safetensors", 3],
)
def test_an_index_that_points_outside_the_folder_is_refused(tmp_path, place):
    (tmp_path / "model").mkdir()
    tensor_file(tmp_path / "x.safetensors", {"a": BYTE})
    words = refusal(sharded(tmp_path / "model", {"a": place}))
    assert "places tensor 'a' in" in words
    assert "which is not a file name in this folder" in words


def test_an_index_of_pickles_is_refused(tmp_path):
    assert "which is not a safetensors file" in refusal(sharded(tmp_path, {"a": "model-00001-of-00001.bin"}))


def test_both_sides_of_every_disagreement_are_listed(tmp_path):
    words = refusal(sharded(tmp_path, {"a": FIRST, "b": SECOND, "d": SECOND}))
    assert f"{FIRST} holds 1 tensors that the index does not place there: 'b'" in words
    assert f"{SECOND} lacks 2 tensors that the index places there: 'b', 'd'" in words
    assert f"{SECOND} holds 1 tensors that the index does not place there: 'c'" in words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "weight_map must map tensor names"),
        ('{"weight_map": {}}', "weight_map must map tensor names"),
        ('{"weight_map": ["a"]}', "weight_map must map tensor names"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "the key 'a' occurs twice"),
        ("[1]", "a JSON object was expected, found list"),
        ("version https://git-lfs.github.com/spec/v1", "not an index: this is a Git LFS pointer"),
        ("<html>", "not an index: this is a web page"),
        ("{'weight_map'}", "not valid JSON"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, text, words):
    (sharded(tmp_path) / INDEX_NAME).write_text(text)
    assert words in refusal(tmp_path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["pytorch_model.bin", "training_args.bin"],
            "only pickle weights are here ('pytorch_model.bin', 'training_args",
        ),
        (["consolidated.00.pth"], "reading a pickle can run code"),
        ([FIRST, "pytorch_model.bin"], f"nor {INDEX_NAME} is here, only '{FIRST}'"),
        (["config.json"], "the folder holds 'config.json'"),
        ([f"{n:02}.txt" for n in range(20)], "'07.txt' and 12 more"),
        ([], "the folder holds nothing"),
    ],
)
def test_a_folder_without_weights_says_what_is_there(tmp_path, names, words):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert words in refusal(tmp_path)


def test_a_file_or_nothing_in_place_of_the_folder_is_refused(tmp_path):
    file = tensor_file(tmp_path / "model.safetensors", {"a": BYTE})
    assert "a checkpoint folder was expected, this is a file" in refusal(file)
    assert "there is no such folder" in refusal(tmp_path / "nowhere")


def test_damage_in_a_shard_names_the_shard(tmp_path):
    (sharded(tmp_path) / SECOND).write_bytes(b"")
    assert f"{SECOND}: not safetensors: the file is empty" in refusal(tmp_path)


def test_an_index_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / INDEX_NAME).symlink_to(INDEX_NAME)  # a link to itself: ELOOP, for root as for anyone
    assert "cannot be read: Too many levels of symbolic links" in refusal(tmp_path)
