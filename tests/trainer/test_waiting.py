"""A wait says what it waits for, once it is long."""

import logging
import time

from stagecoach.trainer import waiting


def test_a_long_wait_is_named_again_and_again_and_a_short_one_never(caplog, monkeypatch):
    monkeypatch.setattr(waiting, "EVERY", 0.3)
    monkeypatch.setattr(waiting, "TICK", 0.05)
    monkeypatch.setattr(waiting, "_clock", waiting._Clock())
    with caplog.at_level(logging.WARNING), waiting.waiting("node7:29500", after=0.2), waiting.waiting("data", after=5):
        time.sleep(1.0)
    said = [record.getMessage() for record in caplog.records]
    assert 2 <= len(said) <= 4
    assert all(line.startswith("waiting for node7:29500 (") for line in said)
    time.sleep(0.5)
    assert len(caplog.records) == len(said)


def test_a_wait_costs_microseconds(monkeypatch):
    monkeypatch.setattr(waiting, "_clock", waiting._Clock())
    started = time.perf_counter()
    for _ in range(1000):
        with waiting.waiting("data"):
            pass
    assert time.perf_counter() - started < 0.2
