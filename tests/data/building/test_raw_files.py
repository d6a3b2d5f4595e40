"""What the readers of raw files share."""

import codecs
import json

import pytest

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import read_json, read_text

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
