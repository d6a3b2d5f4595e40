"""Saving behind the steps, without an engine: what a checkpoint holds, and when its failure is raised."""

import logging
import os
import re
import signal
import time

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from stagecoach.data.files import check_directory
from stagecoach.models.weights import AdapterCard
from stagecoach.trainer.checkpointing import save
from stagecoach.trainer.checkpointing.failure import SaveError
from stagecoach.trainer.checkpointing.layout import MOMENTS, Fragment
from stagecoach.trainer.checkpointing.state import TrainingState
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.distributed import World

NUMEL = 1 << 20
CARD = AdapterCard("toy", "tiny", 1, "one", 0, "", "", None, "raw", {})


@pytest.fixture
def saver(tmp_path, monkeypatch):
    """Of one rank with one flat partition of each kind."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parameter = nn.Parameter(torch.randn(NUMEL))
    moments = {name: torch.randn(NUMEL) for name in MOMENTS}
    monkeypatch.setattr(save, "master_partitions", lambda engine: [parameter.detach()])
    monkeypatch.setattr(save, "find_fragments", lambda engine, parameters: {"w": Fragment(0, 0, 0, NUMEL)})
    monkeypatch.setattr(save, "adam_states", lambda engine: [moments])
    monkeypatch.setattr(save, "adam_steps", lambda engine: 1)
    monkeypatch.setattr(save, "loss_scaler_state", lambda engine: {})
    world = World(0, 1, 0, torch.device("cpu"))
    store = CheckpointStore(tmp_path / "checkpoints", keep=5)
    found = save.Saver(store, None, {"w": parameter}, None, world, asynchronous=True)
    found.meet()
    yield found
    found.close()
    dist.destroy_process_group()


def state(step):
    return TrainingState("f", "", 1, step, 1, 1, "fp32", "", 1, 0, "", None)


def wait_for(saver):
    end = time.monotonic() + 30
    while not saver.writer.has_answered():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_checkpoint_holds_what_there_was_when_it_was_saved(saver):
    before = saver.parameters["w"].detach().clone()
    os.kill(saver.writer.process.pid, signal.SIGSTOP)
    path = saver.save(state(1), "config", CARD)
    with torch.no_grad():
        saver.parameters["w"].zero_()
    assert not path.exists()
    os.kill(saver.writer.process.pid, signal.SIGCONT)
    saver.wait()
    check_directory(path)
    assert load_file(path / "model.safetensors")["w"].equal(before)
    assert (path / "config.yaml").read_text() == "config"


def test_what_is_written_is_abandoned_where_the_folder_is_another_runs(saver, caplog):
    os.kill(saver.writer.process.pid, signal.SIGSTOP)
    path = saver.save(state(1), "", CARD)
    saver.abandon()
    saver.close()
    assert not path.exists()
    assert "the last checkpoint was not written: the process" in caplog.text


def test_one_is_written_at_a_time(saver):
    first, second = saver.save(state(1), "", CARD), saver.store.path(2)
    assert saver.save(state(2), "", CARD) == second
    check_directory(first)
    saver.wait()
    check_directory(second)


def test_a_failure_is_raised_by_the_next_save_which_writes_nothing(saver, monkeypatch, caplog):
    good = saver.save(state(1), "", CARD)
    saver.wait()
    monkeypatch.setattr(save, "HEADERS", 2**62)
    saver.save(state(2), "", CARD)
    wait_for(saver)
    saver.look()
    monkeypatch.undo()
    with pytest.raises(SaveError, match=re.escape("checkpoint_2: cannot be written (No space left")) as caught:
        saver.save(state(3), "", CARD)
    assert f"the last good checkpoint is {good}" in str(caught.value)
    saver.wait()  # it is raised once
    assert saver.store.steps() == [1]


def test_the_last_one_is_waited_for_at_the_end_and_its_failure_is_said(saver, caplog):
    with caplog.at_level(logging.INFO):
        path = saver.save(state(1), "", CARD)
        with torch.no_grad():
            saver.parameters["w"][3] = float("nan")
        saver.save(state(2), "", CARD)
        saver.close()
    check_directory(path)
    said = [record.message for record in caplog.records]
    assert said[0].startswith(f"checkpoint {path} (12.6 MB, ")
    assert "training stood still for" in said[0]
    assert said[1].startswith("the last checkpoint was not written: w: holds non-finite values")
    assert len(said) == 2


def test_what_has_been_written_is_said_as_soon_as_somebody_looks_and_once(saver, caplog):
    with caplog.at_level(logging.INFO):
        saver.save(state(1), "", CARD)
        wait_for(saver)
        for _ in range(2):
            saver.look()
        saver.wait()
    assert [record.message[:10] for record in caplog.records] == ["checkpoint"]
