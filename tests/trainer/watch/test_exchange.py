"""What another node's watcher said is taken whole or not at all, and nobody waits for it."""

import json
import os
import zlib

import pytest

from stagecoach.trainer.watch.exchange import NodeFile


def line(text: str) -> bytes:
    return f"{zlib.crc32(text.encode()):08x} {text}\n".encode()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"00000000 {}\n",
        line("[]"),
        line("null"),
        line("[" * 50_000),
        line(json.dumps({"token": "other", "count": 9})),
        line(json.dumps({"token": "t"})),
        None,
        "pipe",
    ],
)
def test_what_is_none_of_this_run_changes_nothing_and_is_not_waited_for(tmp_path, content):
    theirs, mine = NodeFile(tmp_path, 1, "t"), NodeFile(tmp_path, 1, "t")
    assert theirs.write({"states": [1]})
    mine.read(1.0)
    before = dict(mine.content)
    assert before["states"] == [1]
    mine.path.unlink()
    if content == "pipe":
        os.mkfifo(mine.path)
    elif content is not None:
        mine.path.write_bytes(content)
    mine.read(2.0)
    assert (mine.content, mine.seen) == (before, 1.0)
    mine.path.unlink(missing_ok=True)
    assert theirs.write({"states": [2]})
    mine.read(3.0)
    assert (mine.content["states"], mine.seen) == ([2], 3.0)
