"""Requests as people write them."""

import re

import pytest

from stagecoach.trainer.generating.listing import read_requests


def test_each_line_is_an_entry_and_a_bad_one_is_named_and_stops_no_other(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt":\n[1]\n{"id": "last"}\n')
    first, second, third, last = read_requests(path)
    assert (first.where, first.name, first.entry, first.folder) == (
        f"{path}: line 1",
        "00001",
        {"prompt": "a"},
        tmp_path,
    )
    assert second.entry is None
    assert second.error.startswith(f"{path}: line 3: not JSON (")
    assert third.error == f"{path}: line 4: holds [1], expected a JSON object"
    assert (last.name, last.entry) == ("00005", {"id": "last"})


def test_a_json_file_is_one_request_of_its_name_or_a_list(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text('{"global_caption": "a",\n "objects": []}')
    assert [(item.name, item.where) for item in read_requests(path)] == [("boxes", str(path))]
    path.write_text('[{"prompt": "a"}, 3]')
    assert [item.where for item in read_requests(path)] == [f"{path}: entry 1", f"{path}: entry 2"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", "holds no request, expected one JSON object a line"),
        ("a.json", b"[]", "holds no request, expected one or a list"),
        ("a.json", b"{", "not JSON ("),
        ("a.jsonl", b"\xff\xfe", "not readable ("),
    ],
)
def test_a_file_without_requests_is_refused(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: {reason}")):
        read_requests(tmp_path / name)
