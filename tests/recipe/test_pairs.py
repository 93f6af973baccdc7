import pytest

from hybridizer.recipe.load import load_recipe

BLEND = """
donors: {a: x, b: y}
layout:
  host: a
  slices:
    - {donor: a, layers: LAYERS}
    - blend:
        method: linear
        sources: [{donor: a, layers: SIDE, parameters: {weight: 1}}, {donor: b, layers: 0..1, parameters: {weight: 1}}]
train: {data: [{path: t.txt}], tokens: 5, freeze: FREEZE}
"""


def warnings_of(tmp_path, layers="0..3", side="0..1", freeze="0..3"):
    text = BLEND.replace("LAYERS", layers).replace("SIDE", side).replace("FREEZE", freeze)
    (tmp_path / "r.yaml").write_text(text)
    return list(load_recipe(tmp_path / "r.yaml", ()).warnings)


@pytest.mark.parametrize(("key", "line"), [("layers", 6), ("side", 9), ("freeze", 10)])
def test_two_layers_that_look_like_the_ends_of_a_range_are_warned_about(tmp_path, key, line):
    (warning,) = warnings_of(tmp_path, **{key: "[0, 21]"})
    assert warning == (
        f"{tmp_path}/r.yaml:{line}: two layers, 0 and 21; "
        "write 0..20 for a range (mergekit's [0, 21]), 0..21 with both ends"
    )


@pytest.mark.parametrize("layers", ["0..21", "[0, 1]", "[3, 0]", "[0, 21, 22]", "5", "[4, 4]"])
def test_other_lists_of_layers_are_not(tmp_path, layers):
    assert warnings_of(tmp_path, layers=layers, freeze=layers) == []
