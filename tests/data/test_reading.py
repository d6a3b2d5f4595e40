"""A JSON file of ours is of its declared shape or is refused in one sentence, however it was damaged."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.data.files import SealManifest, write_json
from stagecoach.data.reading import Count, DamagedError, parse_json, read_json, read_regular


@dataclass(frozen=True)
class Record:
    name: str
    step: Count
    rate: float
    bad: tuple[int, ...] = ()
    more: dict[str, Any] | None = None


GOOD = {"name": "a", "step": 3, "rate": 0.5, "bad": [1, 2], "more": {"x": [1, None, {"y": "z"}]}}
LEAVES = st.none() | st.booleans() | st.integers() | st.integers(2**62, 2**70) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths to all values within a value, itself included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def changed(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


@st.composite
def variants(draw, good):
    """Bytes that a JSON file may have become: another value in some place, bytes cut, turned or put in between."""
    kind = draw(st.sampled_from(["value", "key", "cut", "bytes", "twice", "deep", "digits"]))
    text = json.dumps(good).encode()
    if kind == "value":
        return json.dumps(changed(good, draw(st.sampled_from(places(good))), draw(VALUES))).encode()
    if kind == "key":
        return json.dumps(good | {draw(st.text(max_size=6)): draw(VALUES)}).encode()
    if kind == "cut":
        return text[: draw(st.integers(0, len(text) - 1))]
    if kind == "bytes":
        at = draw(st.integers(0, len(text)))
        return text[:at] + draw(st.binary(min_size=1, max_size=4)) + text[at + draw(st.integers(0, 4)) :]
    if kind == "twice":
        return text[:-1] + b"," + text[1:]
    if kind == "deep":
        depth = draw(st.sampled_from([150, 1_000, 100_000]))
        return (
            json.dumps(changed(good, draw(st.sampled_from(places(good))), 7))
            .encode()
            .replace(b"7", b"[" * depth + b"]" * depth)
        )
    return text.replace(b"3", b"3" * draw(st.sampled_from([20, 400, 5_000])))


@given(variants(GOOD))
@settings(max_examples=400, deadline=None)
def test_a_record_that_was_changed_is_of_its_shape_or_refused(content):
    try:
        found = parse_json(content, Record, "record.json")
    except DamagedError as error:
        sentence = str(error)
    else:
        assert type(found.name) is str
        assert type(found.step) is int
        assert 0 <= found.step < 2**63
        assert type(found.rate) in (int, float)
        assert math.isfinite(found.rate)
        assert all(type(index) is int for index in found.bad)
        return
    assert sentence.startswith("record.json: not the JSON expected there (")
    assert len(sentence) < 420


@given(variants({"files": {"a.bin": {"bytes": 3, "sha256": "0" * 64}, "b/c.pt": {"bytes": 0, "sha256": "f" * 64}}}))
@settings(max_examples=300, deadline=None)
def test_a_manifest_that_was_changed_is_of_its_shape_or_refused(content):
    try:
        files = parse_json(content, SealManifest, "manifest.json")["files"]
    except DamagedError:
        return
    assert files
    for entry in files.values():
        assert set(entry) == {"bytes", "sha256"}
        assert type(entry["bytes"]) is int
        assert len(entry["sha256"]) == 64


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "should be an object"),
        (b"null", "should be an object"),
        (b"", "Expecting value"),
        (b"\xff{}", "utf-8"),
        (b'{"name": 1, "step": 1, "rate": 1}', "name: Input should be a valid string"),
        (b'{"name": "a", "step": 1.0, "rate": 1}', "step: Input should be a valid integer"),
        (b'{"name": "a", "step": true, "rate": 1}', "step: Input should be a valid integer"),
        (b'{"name": "a", "step": -1, "rate": 1}', "step: "),
        (b'{"name": "a", "step": 9223372036854775808, "rate": 1}', "step: "),
        (b'{"name": "a", "step": ' + b"9" * 5000 + b', "rate": 1}', "4300 digits"),
        (b'{"name": "a", "step": 1, "rate": NaN}', "NaN is no number"),
        (b'{"name": "a", "step": 1, "rate": 1e999}', "1e999 is too large"),
        (b'{"name": "a", "name": "b", "step": 1, "rate": 1}', "'name' is there twice"),
        (b'{"name": "a", "step": 1, "rate": 1, "stop": 2}', "stop: Unexpected keyword"),
        (b"[" * 100_000, "recursion"),
        (b'{"name": "\\ud800", "step": 1, "rate": 1}', "Invalid JSON"),
    ],
)
def test_what_is_wrong_is_said(content, words):
    with pytest.raises(DamagedError, match=r"record\.json: not the JSON expected there") as caught:
        parse_json(content, Record, "record.json")
    assert words in str(caught.value)


def test_what_was_written_is_read_back(tmp_path):
    write_json(tmp_path / "a.json", GOOD)
    assert read_json(tmp_path / "a.json", Record) == Record("a", 3, 0.5, (1, 2), GOOD["more"])


def test_a_file_is_regular_and_no_larger_than_allowed(tmp_path):
    path: Path = tmp_path / "a"
    with pytest.raises(DamagedError, match="a: cannot be read"):
        read_regular(path)
    with open(path, "wb") as handle:
        handle.truncate(1 << 40)  # holes alone
    with pytest.raises(DamagedError, match=r"1,099,511,627,776 bytes, expected at most 67,108,864"):
        read_regular(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedError, match="a: no regular file"):
        read_regular(path)
    with pytest.raises(DamagedError, match="no regular file"):
        read_regular("/dev/zero")
