"""run.json and metrics.jsonl that have become something else are named, and give no traceback."""

import json

import pytest
from hypothesis import HealthCheck, given, settings

from stagecoach.data.reading import DamagedError
from stagecoach.trainer.reporting.report import write_report
from stagecoach.trainer.reporting.run_record import RUN_RECORD, read_run_record
from stagecoach.trainer.reporting.sinks import read_metrics
from tests.data.test_reading import variants

START = {
    "time": "2026-01-01T00:00:00+00:00",
    "stage": 1,
    "step": 0,
    "host": "a",
    "world_size": 1,
    "argv": ["stage1.py"],
    "versions": {"torch": "2"},
    "commit": None,
    "more": 3,
}
STAGE = {
    "name": "one",
    "steps": 3,
    "trainable": 1,
    "frozen": 3,
    "modules": [{"pattern": "a", "modules": 1, "parameters": 3, "lr_scale": 1.0, "start_fraction": 0.0}],
    "exits": [{"metric": "loss", "limit": 0.5}],
    "metrics": [{"name": "loss", "unit": "", "higher_is_better": False, "baseline": None}],
}
RECORD = {"starts": [START], "wandb": {"1": "abc"}, "stage1": STAGE, "hosts": ["a"]}
LINE = {"stage": 1, "step": 3, "time": 1.5, "loss": 0.25, "val": None}
QUIET = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(content=variants(RECORD))
@QUIET
def test_a_changed_record_is_reported_or_refused(tmp_path, content):
    (tmp_path / RUN_RECORD).write_bytes(content)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINE) + "\n")
    try:
        write_report(tmp_path)
    except DamagedError as error:
        sentence = str(error)
    else:
        return
    assert RUN_RECORD in sentence


@given(content=variants(LINE))
@QUIET
def test_a_changed_line_of_the_metrics_is_reported_or_left_out(tmp_path, content):
    (tmp_path / RUN_RECORD).write_text(json.dumps(RECORD))
    (tmp_path / "metrics.jsonl").write_bytes(json.dumps(LINE).encode() + b"\n" + content + b"\n")
    assert write_report(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"null", b'{"starts": 3}', b'{"starts": [3]}', b'{"stage1": []}', b""])
def test_a_record_of_another_shape_is_refused_by_name(tmp_path, content):
    (tmp_path / RUN_RECORD).write_bytes(content)
    with pytest.raises(DamagedError, match=r"run\.json"):
        read_run_record(tmp_path)


def test_the_record_that_is_written_is_read_whole(tmp_path):
    (tmp_path / RUN_RECORD).write_text(json.dumps(RECORD))
    assert read_run_record(tmp_path) == RECORD


def test_a_damaged_line_is_named_and_the_last_one_may_be_cut(tmp_path, caplog):
    good = json.dumps(LINE)
    (tmp_path / "metrics.jsonl").write_text(f'{good}\n{{"stage": "1", "step": 3}}\n{good}\n{good[:9]}')
    assert read_metrics(tmp_path / "metrics.jsonl") == [LINE, LINE]
    assert "metrics.jsonl: line 2 is no record" in caplog.text
    assert "line 4" not in caplog.text
