import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from stagecoach.models.family import ExitCriterion, Metric
from stagecoach.trainer.reporting.chart import HEIGHT, POINTS, WIDTH, Series, line_chart, thinned
from stagecoach.trainer.reporting.report import EMBED_BYTES, chart_groups, write_report

VOID = {"meta", "img", "br"}


class Checked(HTMLParser):
    """Collects text and tags, and fails where a tag is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.text, self.tags = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "a <run>"
    records = []
    for step in range(0, 101, 10):
        part = step / 100
        records.append(
            {
                "stage": 1,
                "step": step,
                "time": 0.0,
                "loss": 2 - part,
                "depth_loss": 0.5 - 0.45 * part,
                "step_seconds": 0.1,
            }
        )
        if step % 50 == 0:
            records.append(
                {
                    "stage": 1,
                    "step": step,
                    "time": 0.0,
                    "val_depth_error": 0.9 - 0.6 * part,
                    "val_depth_error_withheld": 0.95 - 0.5 * part,
                    "val_depth_error_baseline": 0.4,
                    "val_camera_error": 0.5,
                    "val_camera_error_baseline": 0.3,
                }
            )
    records.append({"stage": 2, "step": 10, "time": 0.0, "loss": None, "diffusion_loss": 1.25})
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    module = {"pattern": "irg.*.geo_block", "modules": 4, "parameters": 1234567, "lr_scale": 0.5}
    (folder / "run.json").write_text(
        json.dumps(
            {
                "starts": [
                    {
                        "time": "2025-01-01T00:00:00+00:00",
                        "stage": 1,
                        "step": 0,
                        "host": "node<1>",
                        "world_size": 2,
                        "argv": ["launch/stage1.py", "--set", "a=<b>"],
                        "versions": {"torch": "2.13.0"},
                        "commit": "c" * 40,
                    }
                ],
                "stage1": {
                    "name": "latent bridging",
                    "modules": [module, module | {"lr_scale": None}],
                    "trainable": 1234567,
                    "frozen": 1234567,
                    "exits": [{"metric": "depth_loss", "limit": 0.1}, {"metric": "camera_loss", "limit": 0.05}],
                    "metrics": [
                        {"name": "val_depth_error", "unit": "m", "baseline": "val_depth_error_baseline"},
                        {"name": "val_camera_error", "baseline": "val_camera_error_baseline"},
                    ],
                },
            }
        )
    )
    return folder


def row(table: str, name: str) -> list[str]:
    return next(line.split() for line in table.splitlines() if line.split()[1] == name)


def test_the_table_holds_first_last_baseline_and_whether_it_was_reached(run):
    table = write_report(run)
    assert row(table, "depth_loss") == ["1", "depth_loss", "0.5", "0.05", "<", "0.1", "yes"]
    assert row(table, "val_depth_error") == ["1", "val_depth_error", "0.9", "0.3", "0.4", "m", "yes"]
    assert row(table, "val_camera_error") == ["1", "val_camera_error", "0.5", "0.5", "0.3", "no"]
    assert row(table, "diffusion_loss") == ["2", "diffusion_loss", "1.25", "1.25"]
    names = [line.split()[1] for line in table.splitlines()]
    assert "step_seconds" not in names
    assert not [name for name in names if name.endswith("_baseline")]


@pytest.mark.parametrize(("last", "reached"), [(0.9, "yes"), (0.7, "no")])
def test_higher_is_better_where_the_metric_says_so(tmp_path, last, reached):
    record = {"stage": 2, "step": 10, "time": 0.0, "similarity": last, "similarity_of_none": 0.8, "sharpness": last}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    metrics = [
        Metric("similarity", "cosine", higher_is_better=True, baseline="similarity_of_none"),
        Metric("sharpness", "dB", higher_is_better=True),
        Metric("share", higher_is_better=None, baseline="similarity_of_none"),
    ]
    facts = {"exits": [vars(ExitCriterion("sharpness", 0.8))], "metrics": [vars(metric) for metric in metrics]}
    (tmp_path / "run.json").write_text(json.dumps({"stage2": facts}))
    table = write_report(tmp_path)
    value = str(last)
    assert row(table, "similarity") == ["2", "similarity", value, value, "0.8", "cosine", reached]
    assert row(table, "sharpness") == ["2", "sharpness", value, value, ">", "0.8", "dB", reached]
    assert "similarity_of_none" not in table


def test_a_criterion_that_was_never_measured_is_not_reached(run):
    assert row(write_report(run), "camera_loss") == ["1", "camera_loss", "-", "-", "<", "0.05", "no"]


def test_a_value_that_was_not_finite_at_the_end_is_not_replaced_by_an_older_one(run):
    with open(run / "metrics.jsonl", "a") as handle:
        handle.write(json.dumps({"stage": 1, "step": 110, "time": 0.0, "depth_loss": None}) + "\n")
    assert row(write_report(run), "depth_loss") == ["1", "depth_loss", "0.5", "-", "<", "0.1", "no"]


def test_the_page_stands_alone_and_escapes_what_it_shows(run):
    write_report(run)
    page = (run / "report.html").read_text()
    checked = Checked(page)
    text = " ".join(checked.text)
    for words in ("a <run>", "node<1>", "a=<b>", "latent bridging", "irg.*.geo_block", "1,234,567", "frozen", "× the"):
        assert words in text
    tags = {tag for tag, _ in checked.tags}
    assert "script" not in tags
    assert "link" not in tags
    for _, attributes in checked.tags:
        for name in ("src", "href"):
            assert not (attributes.get(name) or "").startswith(("http", "//"))
    assert "prefers-color-scheme: dark" in page


def test_charts_are_svg_with_the_baseline_dashed(run):
    write_report(run)
    charts = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", (run / "report.html").read_text())]
    # Stage 1: loss, depth_loss, val_depth_error (two curves), val_camera_error, step_seconds. Stage 2: diffusion_loss.
    assert len(charts) == 6
    dashed = [chart for chart in charts if any("stroke-dasharray" in line.attrib for line in chart.iter("line"))]
    assert len(dashed) == 3
    assert max(len(list(chart.iter("polyline"))) for chart in charts) == 2


def test_the_newest_pictures_are_inside_and_large_ones_are_linked(run):
    for step in (20, 100):
        (run / "previews" / "stage1" / f"step_{step}").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(run / "previews/stage1/step_20/old.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(run / "previews/stage1/step_100/new.png")
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)
    Image.fromarray(noise).save(run / "previews/stage1/step_100/large.png")
    assert (run / "previews/stage1/step_100/large.png").stat().st_size > EMBED_BYTES
    write_report(run)
    sources = {
        attributes["alt"]: attributes["src"]
        for tag, attributes in Checked((run / "report.html").read_text()).tags
        if tag == "img"
    }
    assert set(sources) == {"new", "large"}
    assert sources["new"].startswith("data:image/png;base64,")
    assert sources["large"] == "previews/stage1/step_100/large.png"


def test_a_run_of_one_line_and_without_run_json_has_a_report_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": 1, "step": 0, "time": 0.0, "loss": 0.0}\n')
    assert "loss" in write_report(tmp_path)
    Checked((tmp_path / "report.html").read_text())


def test_a_folder_without_metrics_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.jsonl: missing"):
        write_report(tmp_path)


def test_names_share_a_chart_by_their_beginning():
    names = ["loss/depth", "camera_loss_given", "camera_loss", "loss", "camera_loss_withheld", "camera"]
    assert chart_groups(names) == {
        "loss/depth": ["loss/depth"],
        "loss": ["loss"],
        "camera": ["camera", "camera_loss", "camera_loss_given", "camera_loss_withheld"],
    }


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=40),
    st.lists(st.floats(-1e6, 1e6), max_size=2),
)
@example([1.0], [2.225073858507e-311])
@settings(deadline=None)
def test_any_curve_makes_a_chart_whose_lines_stay_inside(values, levels):
    chart = line_chart([Series("a<b", list(enumerate(values)))], [("level", level) for level in levels])
    found = re.search(r"<svg.*</svg>", chart)
    if found is None:
        assert not np.isfinite(values).any()
        return
    svg = ElementTree.fromstring(found.group())
    for line in svg.iter("polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT
    for line in svg.iter("line"):
        assert 0 <= float(line.attrib["y1"]) <= HEIGHT


@given(st.integers(1, 5000))
def test_a_long_curve_is_thinned_and_keeps_its_last_point_and_its_mean(count):
    points = [(step, float(step)) for step in range(count)]
    few = thinned(points)
    assert len(few) <= POINTS
    assert few[-1] == points[-1]
    assert [step for step, _ in few] == sorted({step for step, _ in few})
    assert np.mean([value for _, value in few]) == pytest.approx(np.mean([v for _, v in points]), rel=0.05, abs=1)
