"""Validation visits each held-out sample once, with as many forwards on every rank."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.data.format.schema import Field, SampleSchema
from stagecoach.data.format.shards import ShardWriter, write_manifest
from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.data.streaming.mixture import DatasetMixture
from stagecoach.data.streaming.windows import Window
from stagecoach.trainer.distributed import World
from stagecoach.trainer.evaluate import Evaluator, rank_share


@given(samples=st.integers(1, 60), size=st.integers(1, 12))
def test_ranks_share_samples_without_loss_or_repetition_and_do_equal_work(samples, size):
    shares = [rank_share(samples, rank, size) for rank in range(size)]
    assert len({len(indices) for indices, _ in shares}) == 1
    counted = [i for indices, flags in shares for i, flag in zip(indices, flags, strict=True) if flag]
    assert sorted(counted) == list(range(samples))
    assert all(0 <= i < samples for indices, _ in shares for i in indices)


def test_held_out_clips_that_are_too_short_for_the_window_are_left_out(tmp_path):
    schema = SampleSchema("clips", 1, (Field("pose", "f32", ("F", 2)),), window="F")
    with ShardWriter(tmp_path, schema) as writer:
        for number, frames in enumerate((9, 3, 12, 4, 8)):
            writer.add(f"clip{number}", {"pose": np.zeros((frames, 2), np.float32)})
    write_manifest(tmp_path, schema, writer.shards, {}, {})
    held_out = DatasetMixture([ShardSet.open(tmp_path, schema)])
    world = World(0, 1, 0, torch.device("cpu"))
    evaluator = Evaluator(None, None, None, held_out, {}, world, Window(4, 2))
    assert evaluator.usable == [0, 2, 4]
    assert evaluator.buckets == 1
    (batch,) = evaluator._batches(evaluator.usable, 3)
    assert batch["pose"].shape == (3, 4, 2)
    # Whole clips are all usable, and each length is a bucket of its own.
    whole = Evaluator(None, None, None, held_out, {}, world)
    assert (whole.usable, whole.buckets) == ([0, 1, 2, 3, 4], 5)
