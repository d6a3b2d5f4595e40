"""The figures of docs/ are those that the program draws, and the chart of an evaluation shows its result's numbers."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.figures import FIGURES, INTERVAL, axis, evaluation_chart, request
from stagecoach.data.outputs.sheet import write_picture
from stagecoach.trainer.evaluating.evaluation import Settings, evaluate
from tests.tiny_data import ROOT


def test_each_figure_that_the_docs_name_is_drawn_and_stands_in_them():
    text = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    named = set(re.findall(r"figures\.py\s+--only\s+(\w+)", text))
    assert named == set(FIGURES)
    for file_name, _ in FIGURES.values():
        assert f"]({file_name})" in text
        assert (ROOT / "docs" / file_name).is_file()


def test_controls_change_the_reference_alone_or_the_box_alone():
    entries = [_entry(place) for place in range(6)]
    asked, other, mirrored = (request(entries, 5, name, Path("/here")) for name in ("A", "B", "C"))
    assert asked["objects"][0]["reference"] == "/here/raw/images/4.png#0.1,0.2,0.4,0.6"
    assert other["objects"][0].pop("reference") == "/here/raw/images/0.png#0.1,0.2,0.4,0.6"
    assert mirrored["objects"][0].pop("bbox") == [0.6, 0.2, 0.9, 0.6]
    assert other == asked | {"objects": [_without(asked["objects"][0], "reference")]}
    assert mirrored == asked | {"objects": [_without(asked["objects"][0], "bbox")]}


def test_the_interval_is_drawn_from_its_lower_to_its_upper_end(tmp_path):
    noise = np.random.default_rng(0)
    for name in map(str, range(8)):
        picture = noise.integers(40, 200, (32, 32, 3))
        write_picture(tmp_path / "true" / f"{name}.png", picture.astype(np.uint8))
        for side, error in (("a", 5), ("b", 20)):
            made = picture + noise.normal(0, error, picture.shape)
            write_picture(tmp_path / side / f"{name}.png", made.clip(0, 255).astype(np.uint8))
    settings = Settings(("psnr",), device="cpu")
    result = evaluate([tmp_path / "a"], tmp_path / "out", settings, tmp_path / "true", tmp_path / "b")
    difference = result["against"]["metrics"]["psnr"]["difference"]
    assert 0 < difference["low"] < difference["high"]
    chart = evaluation_chart({"B": result}, "B", "noisier", width=400)
    drawn = np.flatnonzero((chart == INTERVAL).all(-1).any(0))
    place = axis([difference], 400)
    assert drawn[0] == pytest.approx(min(place(difference["low"]), place(difference["mean"]) - 5), abs=1.5)
    assert drawn[-1] == pytest.approx(max(place(difference["high"]), place(difference["mean"]) + 5), abs=1.5)


def _entry(place):
    thing = {"bbox": [0.1, 0.2, 0.4, 0.6], "caption": "a thing", "category_name": "thing", "depth_label": "foreground"}
    scene = {"image_id": f"scene_{place}", "image_path": f"images/{place}.png", "global_caption": "a thing in front"}
    return scene | {"width": 64, "height": 64, "objects": [thing | {"object_id": 0}]}


def _without(values, name):
    return {key: value for key, value in values.items() if key != name}
