"""A recipe cannot exhaust what reads it, and makes nothing but plain values."""

import os

import pytest

from stagecoach.trainer.settings import RecipeError, parse_override, parse_yaml, read_yaml

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: " + "[" * 20_000 + "]" * 20_000, "nested too deeply"),
        ("".join(f"{' ' * i}a:\n" for i in range(1_200)), "nested too deeply"),
        (BOMB, "more than 100,000 values"),
        ("a: &a [*a]", "alias of what it is part of"),
        ("a: &a {b: *a}", "alias of what it is part of"),
        ("a: !!python/object/apply:os.system ['touch hit']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: b: c", "mapping values"),
        ("[1, 2]", "holds a list"),
        ("", "holds a NoneType"),
        ("a: \x00", "special characters"),
        ("a: 1\n" * 300_000, "expected at most 1,048,576"),
    ],
)
def test_a_recipe_that_cannot_be_is_one_sentence(tmp_path, text, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"recipe\.yaml: ") as caught:
        read_yaml(path)
    assert words in str(caught.value)
    assert os.listdir(tmp_path) == ["recipe.yaml"]


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "latin"])
def test_what_is_no_text_file_is_named(tmp_path, kind):
    path = tmp_path / "recipe.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "latin":
        path.write_bytes(b"a: \xe9")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: .*expected a YAML file"):
        read_yaml(path)


def test_an_override_is_bounded_as_well():
    for value in ("[" * 20_000, "&a [*a]", "!!python/name:os.system"):
        with pytest.raises(RecipeError, match="is not a YAML value"):
            parse_override(f"a={value}")


def test_an_alias_is_another_name_of_a_value():
    assert parse_yaml("a: &a {b: 1}\nc: *a") == {"a": {"b": 1}, "c": {"b": 1}}
    assert parse_yaml("") is None
