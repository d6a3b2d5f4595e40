"""What the readers of raw files share."""

import codecs
import json

import pytest

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import LONGEST_KEY, read_json, read_text, safe_key
from stagecoach.data.format.shards import KEY

ENCODINGS = {
    "utf-8": b"",
    "utf-8 marked": codecs.BOM_UTF8,
    "utf-16-le": b"",
    "utf-16-be": b"",
    "utf-16-le marked": codecs.BOM_UTF16_LE,
    "utf-16-be marked": codecs.BOM_UTF16_BE,
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_text_and_json_are_read_alike_in_every_encoding_that_editors_write(tmp_path, name):
    path, content = tmp_path / "a.json", '{"text": "eine Brücke, 一座桥"}'
    path.write_bytes(ENCODINGS[name] + content.replace(", ", ",\r\n").encode(name.split()[0]))
    assert read_text(path, "text") == content.replace(", ", ",\n")
    path.write_bytes(ENCODINGS[name] + content.encode(name.split()[0]))
    assert read_json(path, "text") == json.loads(content)


def test_text_of_another_encoding_is_refused_by_name(tmp_path):
    (tmp_path / "a.txt").write_bytes("eine Brücke".encode("latin-1"))
    with pytest.raises(RawError, match=r"a\.txt: not readable as text .*expected a caption in UTF-8 or UTF-16"):
        read_text(tmp_path / "a.txt", "a caption")


def test_names_of_any_script_give_keys_that_can_be_read_and_told_apart():
    names = [
        "舞蹈一",
        "舞蹈二",
        "ダンス",
        "춤추는_사람",
        "танец 1",
        "é",
        "हिन्दी",
        "हिन्द",
        "😀",
        "😁",
        "一 二",
        "***",
        "...",
    ]
    keys = [safe_key(name) for name in names]
    assert keys[:6] == ["舞蹈一", "舞蹈二", "ダンス", "춤추는_사람", "танец_1", "é"]
    assert safe_key("e\u0301") == "é"  # as a Mac writes it
    long = [safe_key("舞" * 50 + end) for end in ("一", "二")]
    assert all(len(key.encode()) <= LONGEST_KEY for key in long)
    assert len({*keys, *long}) == len(names) + 2
    assert all(KEY.fullmatch(key) for key in keys + long)
    assert [safe_key(name) for name in ("scene_00001", "a b/c.d", "x" * 60)] == ["scene_00001", "a_b_c_d", "x" * 60]
