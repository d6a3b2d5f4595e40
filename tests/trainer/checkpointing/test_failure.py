"""Why a checkpoint cannot be written is one sentence with all that an operator needs."""

import errno
import os
import re

import pytest

from stagecoach.data.local_files import UnreachableError
from stagecoach.trainer.checkpointing.failure import SaveError, check_space, explained, free_bytes
from stagecoach.trainer.checkpointing.store import CheckpointStore


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_path_reason_bytes_and_last_checkpoint_are_said(tmp_path, code):
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=3)

    def write():
        raise OSError(code, os.strerror(code), "optimizer/rank_00003.safetensors")

    write_explained = explained(write, store.path(30), 123_456, store)
    with pytest.raises(SaveError) as caught:
        write_explained()
    text = str(caught.value)
    assert text.startswith(f"{store.path(30)}: cannot be written ({os.strerror(code)}")
    assert "rank_00003" in text
    assert "123,456 bytes" in text
    assert re.search(r"and [\d,]+ are free there", text)
    assert "there is no checkpoint yet" in text
    store.path(20).mkdir(parents=True)
    with pytest.raises(SaveError, match=r"the last good checkpoint is .*checkpoint_20; free space there"):
        write_explained()


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_system_that_fails_is_no_full_disk(tmp_path, code):
    store = CheckpointStore(tmp_path, keep=3)

    def write():
        raise OSError(code, os.strerror(code), "model.safetensors")

    with pytest.raises(UnreachableError, match=r"cannot be written .*: model.safetensors\); .* --resume auto goes on"):
        explained(write, store.path(30), 1, store)()


def test_other_mistakes_are_left_as_they_are(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    with pytest.raises(KeyError):
        explained(lambda: {}["x"], store.path(1), 1, store)()


def test_room_is_looked_for_where_the_file_system_tells(tmp_path, monkeypatch):
    check_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(OSError, match="No space left"):
        check_space(tmp_path / "not" / "yet", free_bytes(tmp_path) * 2)
    # Some network file systems say that they have no blocks at all.
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((0,) * 10))
    assert free_bytes(tmp_path) is None
    check_space(tmp_path, 2**60)
