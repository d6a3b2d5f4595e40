"""A checkpoint says in which order its samples came; a run in another order does not go on from it."""

import json
from dataclasses import asdict, replace

import pytest

from stagecoach.data.files import seal_directory
from stagecoach.trainer.checkpointing.state import STATE, TrainingState, check_resumable, read_state
from stagecoach.trainer.checkpointing.store import CheckpointStore

OLD = TrainingState("toy", "", 1, 4, 1, 1, "fp32", "replicate", 8, 0, "shards", None)
NEW = replace(OLD, order=2)


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    """With one checkpoint as a version wrote it that knew of no orders."""
    folder = tmp_path / "checkpoint_4"
    (folder / "optimizer").mkdir(parents=True)
    (folder / "optimizer" / "rank_0.safetensors").write_bytes(b"")
    content = asdict(OLD)
    del content["order"]
    (folder / STATE).write_text(json.dumps(content))
    seal_directory(folder)
    return CheckpointStore(tmp_path, 3)


def test_a_checkpoint_of_before_goes_on_where_the_order_is_as_it_was(store):
    assert store.newest_valid() == store.path(4)
    found = read_state(store.path(4))
    assert found == OLD
    check_resumable(store.path(4), found, OLD)


def test_a_checkpoint_of_before_is_refused_where_buckets_come_in_another_order(store):
    with pytest.raises(ValueError, match=r"checkpoint_4: its samples came in order 1 .*expected order 2.*never$"):
        check_resumable(store.path(4), read_state(store.path(4)), NEW)


def test_a_later_order_is_refused_and_the_same_is_gone_on_with(tmp_path):
    check_resumable(tmp_path, NEW, NEW)
    for other in (OLD, replace(OLD, order=3)):
        with pytest.raises(ValueError, match="came in order"):
            check_resumable(tmp_path, other, NEW)
