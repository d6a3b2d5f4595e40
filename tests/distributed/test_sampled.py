"""Sampled metrics over two ranks, in the metrics file with what is known of them."""

import pytest
import torch

from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.data.streaming.mixture import DatasetMixture
from stagecoach.models import FAMILIES
from stagecoach.models.family import Progress
from stagecoach.trainer.distributed import World
from stagecoach.trainer.evaluate import Evaluator
from stagecoach.trainer.reporting.report import write_report
from stagecoach.trainer.reporting.run_record import read_run_record
from stagecoach.trainer.reporting.sinks import read_metrics
from tests.distributed import cases
from tests.toy import SCHEMA, ToyConfig, ToyFamily
from tests.trainer.test_evaluate import Plain


def test_two_ranks_log_the_mean_of_one_and_the_run_says_what_it_means(pair, shards, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", "tests.toy:ToyFamily")
    recipe = cases.toy_recipe(
        shards, str(tmp_path), zero=3, steps=4, validation={"metrics": ["val_fit", "psnr"], "every": 2}
    )
    pair.run(cases.train, recipe.model_dump(), [1])
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "val_sampled_psnr" in r]
    assert [r["step"] for r in records] == [0, 2, 4]
    held_out = DatasetMixture([ShardSet.open(f"{shards}/val", SCHEMA)])
    network = ToyFamily().build(ToyConfig(), 1, "cpu", torch.float32)
    world = World(0, 1, 0, torch.device("cpu"))
    monkeypatch.setattr("stagecoach.trainer.meter.sum_over_ranks", lambda table: table)
    alone = Evaluator(ToyFamily(), network, Plain(network), held_out, {}, world, None, recipe)
    expected, _ = alone.validate(Progress(0, 4, 1, recipe.seed, training=False), 1)
    assert records[0]["val_sampled_psnr"] == pytest.approx(expected["val_sampled_psnr"], rel=1e-5)
    assert records[0]["val_fit"] == pytest.approx(expected["val_fit"], rel=1e-5)
    declared = {m["name"]: m for m in read_run_record(tmp_path)["stage1"]["metrics"]}
    assert declared["val_sampled_psnr"]["unit"] == "dB"
    assert declared["val_sampled_psnr"]["higher_is_better"]
    assert (tmp_path / "previews" / "stage1" / "step_4" / "val0000-sampled.gif").is_file()
    line = next(line for line in write_report(tmp_path).splitlines() if "val_sampled_psnr" in line)
    assert "dB" in line
    assert "data:image/gif;base64," in (tmp_path / "report.html").read_text()
