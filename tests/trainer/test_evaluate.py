"""Validation visits each held-out sample once, with as many forwards on every rank."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.data.format.schema import Field, SampleSchema
from stagecoach.data.format.shards import ShardWriter, write_manifest
from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.data.streaming.mixture import DatasetMixture
from stagecoach.data.streaming.windows import Window
from stagecoach.models import FAMILIES
from stagecoach.models.common.pictures import TITLE
from stagecoach.models.family import Progress
from stagecoach.trainer.distributed import World
from stagecoach.trainer.evaluate import Evaluator, rank_share
from tests.distributed.cases import toy_recipe
from tests.toy import SCHEMA, ToyConfig, ToyFamily, write_toy_shards


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


class Plain:
    """An engine that runs a function as the root module does."""

    def __init__(self, network):
        self.module, self.network = self, network
        self.calls = 0

    def __call__(self, *arguments, run):
        self.calls += run.__name__ == "sampled"
        return run(*arguments)

    def eval(self):
        self.network.eval()

    train = eval

    def zero_optimization_stage(self):
        return 0


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A call gives the evaluator of a recipe's ``validation`` over five held-out samples."""
    monkeypatch.setitem(FAMILIES, "toy", "tests.toy:ToyFamily")
    monkeypatch.setattr("stagecoach.trainer.meter.sum_over_ranks", lambda table: table)
    write_toy_shards(tmp_path)
    held_out = DatasetMixture([ShardSet.open(tmp_path / "val", SCHEMA)])
    network = ToyFamily().build(ToyConfig(), 1, "cpu", torch.float32)

    def make(rank=0, size=1, **validation):
        recipe = toy_recipe(str(tmp_path), "unused", validation=validation)
        world = World(rank, size, rank, torch.device("cpu"))
        return Evaluator(ToyFamily(), network, Plain(network), held_out, {}, world, None, recipe)

    return make


PROGRESS = Progress(0, 10, 1, 0, training=False)


def test_without_a_choice_validation_is_all_of_the_family_and_nothing_is_sampled(toy):
    evaluator = toy()
    values, pictures = evaluator.validate(PROGRESS, 1)
    assert (set(values), pictures, evaluator.engine.calls) == ({"val_fit", "val_fit_baseline"}, {}, 0)


def test_validation_takes_the_metrics_and_samples_that_are_asked_for(toy, caplog):
    whole, _ = toy().validate(PROGRESS, 1)
    values, pictures = toy(metrics=["val_fit", "psnr"]).validate(PROGRESS, 1)
    assert set(values) == {"val_fit", "val_fit_baseline", "val_sampled_psnr"}
    assert values["val_fit"] == whole["val_fit"]
    # Two frames, of which the second is off by half as much: 20 lg 2 / 2 decibels more than the first.
    assert values["val_sampled_psnr"] > 20
    (key,) = pictures
    assert key == "val0000-sampled"
    assert pictures[key].frames.shape == (2, 240 + TITLE, 480, 3)
    assert pictures[key].rate == 4
    few = toy(metrics=["motion_amount", "lpips"], samples=2)
    values, _ = few.validate(PROGRESS, 1)
    assert set(values) == {"val_sampled_motion_amount"}
    assert few.engine.calls == 2
    assert [r.message for r in caplog.records if "lpips" in r.message] == [
        "val_sampled_lpips is not measured of every sample: torchvision's AlexNet or VGG-16 file is not given, "
        "expected lpips: its path"
    ]
    with pytest.raises(ValueError, match=r"validation.weights.lpips: .*alex.pth is not there"):
        toy(metrics=["lpips"], weights={"lpips": "alex.pth"})


def test_ranks_share_what_is_sampled_and_their_sums_and_counts_give_the_mean(toy, monkeypatch):
    whole, _ = toy(metrics=["psnr", "motion_amount"]).validate(PROGRESS, 1)
    tables = []

    def keep(table):
        tables.append(table)
        return table

    monkeypatch.setattr("stagecoach.trainer.meter.sum_over_ranks", keep)
    calls = []
    for rank in range(2):
        evaluator = toy(rank, 2, metrics=["psnr", "motion_amount"])
        evaluator.validate(PROGRESS, 1)
        calls.append(evaluator.engine.calls)
    assert calls == [3, 3]
    total, count = sum(tables).unbind(1)
    # By name: motion_amount, of one change a sample, then psnr, of two frames.
    assert count.tolist() == [5, 10]
    means = [whole["val_sampled_motion_amount"], whole["val_sampled_psnr"]]
    assert (total / count).tolist() == pytest.approx(means, rel=1e-6)
    # Samples of several lengths are sampled by all ranks, and counted once.
    tables.clear()
    for rank in range(2):
        evaluator = toy(rank, 2, metrics=["psnr"])
        evaluator.buckets = 2
        evaluator.validate(PROGRESS, 1)
        assert evaluator.engine.calls == 5
    assert sum(tables)[0, 1] == 10
    assert (sum(tables)[0, 0] / 10).item() == pytest.approx(whole["val_sampled_psnr"], rel=1e-6)
