"""Requests on two ranks: shared out, failed, refused, resumed, compared."""

import base64
import json
import re
from html.parser import HTMLParser

from stagecoach.data.files import TEMPORARY
from tests.distributed.answering import answer_all, compare_all

LINES = [
    {"id": "a"},
    {"id": "b", "wrong": 1},
    {"id": "c"},
    {"id": "d", "fails": "no such song"},
    {"id": "c", "prompt": "again"},
    {"id": "e", "fails": "memory"},
    {"id": "f"},
    {"id": "g"},
]


def write(path, lines):
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


def test_requests_are_shared_out_and_a_failure_is_one_line_that_stops_no_other(pair, tmp_path):
    requests, output = write(tmp_path / "r.jsonl", LINES), tmp_path / "out"
    (output / f"{TEMPORARY}old").mkdir(parents=True)
    first, second = pair.run(answer_all, requests, str(output))
    assert first == second
    assert first["made"] == [str(output / name) for name in "acfg"]
    assert sorted(path.name for path in output.iterdir()) == ["a", "c", "f", "g"]
    where = f"{requests}: line"
    assert sorted(first["failed"]) == [
        f"{where} 2: wrong is given",
        f"{where} 4: no such song",
        f"{where} 5: id 'c' is that of {where} 3 too, expected another",
        f"{where} 6: the device has no memory left (no room); --offload and --vae-tiling save some",
    ]
    ranks = {json.loads((output / name / "result.json").read_text())["facts"]["rank"] for name in "acfg"}
    assert ranks == {0, 1}

    before = (output / "c" / "video.mp4").read_bytes()
    again, _ = pair.run(answer_all, requests, str(output))
    assert (again["made"], again["kept"]) == ([], first["made"])
    other, _ = pair.run(answer_all, requests, str(output), "b")
    assert (other["made"], other["kept"]) == ([], [])
    refused = [line for line in other["failed"] if "was made with" in line]
    assert len(refused) == 4
    assert refused[0].startswith(
        f"{where} 1: {output / 'a'}: was made with settings.weights 'a, raw' instead of 'b, raw'; expected the same"
    )
    assert pair.run(answer_all, requests, str(output), "b", True)[0]["made"] == first["made"]
    assert (output / "c" / "video.mp4").read_bytes() == before  # the noise is that of seed and request


class Sources(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.names = [], set()

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "poster", "data")]


def test_a_page_shows_each_column_and_seed_and_needs_nothing_else(pair, tmp_path):
    requests = write(tmp_path / "r.jsonl", [{"id": "a", "prompt": "<b>"}, {"id": "d", "fails": "always"}])
    found, _ = pair.run(compare_all, requests, str(tmp_path / "out"))
    assert len(found["made"]) == 4
    assert {line.partition(":")[0] for line in found["failed"]} == {"base", "late"}
    page = (tmp_path / "out" / "compare.html").read_text()
    sources = Sources()
    sources.feed(page)
    assert len(sources.found) == 8  # two columns, two seeds, a video and a picture
    assert all(source.startswith(("data:video/mp4;base64,", "data:image/png;base64,")) for source in sources.found)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "default-src 'none'" in page
    assert {"video", "img", "script"} <= sources.names
    assert "b" not in sources.names
    for column in ("base", "late"):
        for seed in (0, 7):
            video = (tmp_path / "out" / "samples" / column / "a" / f"seed{seed}" / "video.mp4").read_bytes()
            assert f"data:video/mp4;base64,{base64.b64encode(video).decode()}" in sources.found
    again, _ = pair.run(compare_all, requests, str(tmp_path / "out"))
    assert len(again["kept"]) == 4
