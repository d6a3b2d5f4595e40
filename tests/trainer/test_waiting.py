"""A wait says what it waits for, once it is long."""

import logging
import time
from typing import Any

import pytest
import torch.utils.cpp_extension

from stagecoach.trainer import distributed, environment, operators, run, setup, waiting
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.evaluate import Evaluator
from tests.distributed import cases
from tests.pair import Pair, free_port
from tests.toy import ToyFamily, write_toy_shards


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


def test_a_rank_without_the_first_one_says_where_it_waits_for_whom_and_guards_its_builds(caplog, monkeypatch, tmp_path):
    port = str(free_port())
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in (place | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    for module, name, value in (
        (waiting, "AFTER", 0.1),
        (waiting, "TICK", 0.05),
        (waiting, "_clock", waiting._Clock()),
        (environment, "MEET_SECONDS", 1.0),
        (torch.utils.cpp_extension, "FileBaton", torch.utils.cpp_extension.FileBaton),
    ):
        monkeypatch.setattr(module, name, value)
    with caplog.at_level(logging.WARNING), pytest.raises(environment.NodeError):
        distributed.start()
    assert f"waiting for the 2 ranks to meet at 127.0.0.1:{port} (" in caplog.text
    assert torch.utils.cpp_extension.FileBaton is operators.BuildLock


def slow(function: Any) -> Any:
    def slowly(*args: Any, **named: Any) -> Any:
        time.sleep(0.4)
        return function(*args, **named)

    return slowly


def named_waits(recipes: list[dict], stages: list[int]) -> list[str]:
    """What is named while ``recipes`` train a stage each, with all that happens before a step slowed down."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(waiting.__name__).addHandler(handler)
    waiting.AFTER, waiting.TICK = 0.1, 0.02
    for owner, name in (
        (ToyFamily, "build"),
        (ToyFamily, "load_base"),
        (ToyFamily, "helpers"),
        (CheckpointStore, "newest_valid"),
        (Evaluator, "validate"),
        (run, "finished_adapter"),
        (setup, "open_start"),
        (setup, "load_tensors"),
        (setup, "start_engine"),
        (setup, "restore"),
    ):
        setattr(owner, name, slow(getattr(owner, name)))
    setup.StageData.open = slow(setup.StageData.open)  # type: ignore[method-assign]
    read = setup.Stream.__iter__
    setup.Stream.__iter__ = lambda self: map(slow(lambda item: item), read(self))  # type: ignore[method-assign]
    for recipe, stage in zip(recipes, stages, strict=True):
        cases.train(recipe, [stage])
    assert torch.utils.cpp_extension.FileBaton is operators.BuildLock
    return said


@pytest.mark.slow
def test_all_that_a_stage_waits_for_before_its_first_step_is_named(tmp_path):
    write_toy_shards(tmp_path / "shards")
    folder = tmp_path / "run"
    short = {"checkpoint_every": 2, "global_batch": 2, "preview_samples": 0}
    recipes = [cases.toy_recipe(str(tmp_path / "shards"), str(folder), steps=steps, **short) for steps in (2, 4, 2)]
    alone = Pair(size=1)
    try:
        (said,) = alone.run(named_waits, [recipe.model_dump() for recipe in recipes], [1, 1, 2])
    finally:
        alone.close()
    for what in (
        "the shards of stage 1 to be opened",
        "the network to be built",
        "the base weights to be loaded",
        "the frozen helpers to be loaded",
        "DeepSpeed's engine to start",
        "the validation before the first step",
        "the data of step 1",
        "the data of step 2",
        f"what stage 1 left in {folder} to be checked",
        f"the checkpoints in {folder}/stage1/checkpoints to be checked",
        f"{folder}/stage1/checkpoints/checkpoint_2 to be restored",
        f"the weights in {folder}/stage1/adapter to be checked",
        f"the weights in {folder}/stage1/adapter to be loaded",
    ):
        assert any(line.startswith(f"waiting for {what} (") for line in said), (what, said)
