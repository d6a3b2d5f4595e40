"""The planner counts what a stage holds, and its formulas are ZeRO's."""

import json

import pytest
import torch
import yaml

from stagecoach.models import FAMILIES
from stagecoach.trainer.ds_config import read_ds_config
from stagecoach.trainer.planning import planner
from stagecoach.trainer.planning.meter import ModuleRow, StepCosts
from stagecoach.trainer.planning.op_work import Amount
from stagecoach.trainer.planning.planner import (
    Cluster,
    Sizes,
    activation_bytes,
    activation_parts,
    advice,
    elementwise,
    flops_per_sample,
    state_bytes,
    traffic_bytes,
)
from stagecoach.trainer.planning.saved_bytes import KeptBytes
from stagecoach.trainer.recipe import Recipe
from tests.commands import run_stagecoach
from tests.toy import ToyConfig, ToyFamily

SEED = Sizes(trained=956_000_000, frozen=1_420_000_000, frozen_bytes=2_840_000_000, width=2)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", "tests.toy:ToyFamily")


def toy_values(**changes):
    stage = {"steps": 100, "global_batch": 8, "micro_batch": 2, "learning_rate": 1e-2}
    return {"family": "toy", "size": "tiny", "run": "unused", "stages": {1: stage, 2: stage}} | changes


def ds_config(zero, **section):
    config = read_ds_config(Recipe.model_validate(toy_values(zero=zero)))
    config["zero_optimization"] |= section
    return config


def test_a_plan_counts_the_parameters_of_the_network_and_of_each_module():
    found = planner.plan(Recipe.model_validate(toy_values()), Cluster(gpus=4))["stages"]["2"]
    network = ToyFamily().build(ToyConfig(), 2, "cpu", torch.float32)
    frozen = sum(p.numel() for layer in network.layers for p in layer.frozen.parameters())
    total = sum(p.numel() for p in network.parameters())
    assert (found["trainable"], found["frozen"]) == (total - frozen, frozen)
    second = sum(p.numel() for layer in network.layers for p in layer.second.parameters())
    assert found["modules"]["layers.*.second"] == {
        "modules": 2,
        "trainable": second,
        "frozen": 0,
        "lr_scale": 0.5,
        "start_fraction": 0.0,
    }
    assert sum(row["frozen"] for row in found["modules"].values()) == frozen
    assert (found["gpus"], found["micro_batch"], found["accumulation"]) == (4, 2, 1)


def test_gpus_that_do_not_divide_a_global_batch_are_refused_as_the_run_would():
    with pytest.raises(ValueError, match="stage 1: global_batch is 8, expected a multiple of the world size 3; use 6"):
        planner.plan(Recipe.model_validate(toy_values()), Cluster(gpus=3))


def test_states_are_those_of_the_published_estimate_for_wan_1_3b():
    # 64 ranks, reduction and accumulation in bf16 (ZeRO-1), in GiB without buckets and gathered weights.
    plain = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 1}}
    found = sum(state_bytes(SEED, 1, "replicate", 64, plain).values()) / 2**30
    assert found == pytest.approx(6.4, abs=0.05)
    in_fp32 = plain | {"data_types": {"grad_accum_dtype": "fp32"}}
    assert sum(state_bytes(SEED, 1, "replicate", 64, in_fp32).values()) / 2**30 == pytest.approx(9.9, abs=0.06)
    parts = state_bytes(SEED, 3, "shard", 64, {"zero_optimization": {"stage": 3}})
    assert parts["frozen"] + parts["trainable"] == pytest.approx(2 * 2.376e9 / 64)
    assert parts["master_weights_and_adam"] == pytest.approx(12 * 0.956e9 / 64)


def test_traffic_is_that_of_the_published_estimate():
    sizes, bf16 = SEED, {"zero_optimization": {}}
    assert traffic_bytes(sizes, 1, "replicate", 4, bf16) == 6 * sizes.trained
    assert traffic_bytes(sizes, 2, "replicate", 4, bf16) == (4 * 4 + 2) * sizes.trained
    in_fp32 = bf16 | {"communication_data_type": "fp32"}
    assert traffic_bytes(sizes, 1, "replicate", 1, in_fp32) == 10 * sizes.trained
    # The default reuse distance of 1e9 makes 1.8 gathers of each of 2.376e9 weights.
    gathers = (traffic_bytes(sizes, 3, "shard", 1, bf16) / 2 - sizes.trained) / 2.376e9
    assert gathers == pytest.approx(1.79, abs=0.01)
    near = {"zero_optimization": {"stage3_max_reuse_distance": 4.8e9}}
    assert traffic_bytes(sizes, 3, "shard", 1, near) == 2 * 2.376e9 + 2 * sizes.trained


def test_offload_takes_masters_off_the_gpu_and_hpz_adds_a_copy_to_it():
    plain = state_bytes(SEED, 3, "replicate", 8, ds_config(3))
    offloaded = state_bytes(SEED, 3, "replicate", 8, ds_config(3, offload_optimizer={"device": "cpu"}))
    assert plain["master_weights_and_adam"] == 12 * SEED.trained / 8
    assert offloaded["master_weights_and_adam"] == 0
    secondary = state_bytes(SEED, 3, "replicate", 64, ds_config(3, zero_hpz_partition_size=8))
    assert secondary["gathered"] - state_bytes(SEED, 3, "replicate", 64, ds_config(3))["gathered"] == 2 * 956e6 / 8


ROWS = (
    ModuleRow("stem", "no_grad", Amount(20.0, 8.0, 2.0), Amount()),
    ModuleRow("layers", "trained", Amount(200.0, 0.0, 6.0), Amount(400.0, 0.0, 8.0)),
    ModuleRow("layers", "grad_passthrough", Amount(0.0, 80.0), Amount(0.0, 200.0)),
    ModuleRow("norm", "grad_passthrough", Amount(0.0, 0.0, 4.0), Amount(0.0, 0.0, 8.0)),
)
COSTS = StepCosts(2, ROWS, Amount(100.0, 60.0, 5.0), KeptBytes(90, 50, 40, 20, 8, 10, 12))
"""Of a micro-batch of two."""


def test_flops_are_those_of_a_sample_by_kind_and_with_what_each_policy_runs_again():
    found = flops_per_sample(COSTS)
    assert found["forward_parts"] == {"linear": 110.0, "attention": 44.0}
    assert found["training_parts"] == {"linear": 310.0, "attention": 144.0}
    assert (found["forward"], found["training"]) == (154.0, 454.0)
    assert found["by_activation_checkpointing"] == {"none": 454.0, "selective": 504.0, "full": 534.0}
    assert [(row["module"], row["training"]) for row in found["modules"]] == [
        ("stem", 14.0),
        ("layers", 300.0),
        ("layers", 140.0),
    ]


def test_activations_are_those_of_the_micro_batch_and_named_by_part():
    assert activation_bytes(COSTS) == {"none": 90, "selective": 50, "full": 40}
    assert activation_parts(COSTS) == {"outside": 20, "boundaries": 8, "attention": 10, "largest_unit": 12}


def test_a_stage_is_bound_by_what_takes_longer_at_full_rates(monkeypatch):
    monkeypatch.setitem(planner.PEAK_BF16, "H20", 100.0)
    monkeypatch.setitem(planner.MEMORY_BANDWIDTH, "H20", 4.0)
    found = elementwise(COSTS, "full", 3, "H20")
    assert found == {
        "bytes": 3 * 33.0,
        "seconds": 3 * 33 / 4,
        "arithmetic_seconds": 3 * 1068 / 100,
        "bound": "arithmetic",
    }
    monkeypatch.setitem(planner.MEMORY_BANDWIDTH, "H20", 1.0)
    assert elementwise(COSTS, "none", 1, "H20")["bound"] == "memory"


def option(zero, seconds, fits=True, total=10e9):
    return {
        "zero": zero,
        "frozen": "replicate",
        "step_seconds": seconds,
        "fits": fits,
        "memory_bytes": {"total": total, "activations": 2e9},
    }


def test_the_advice_names_the_fastest_that_fits_and_by_how_much():
    one, three = option(1, 0.9), option(3, 1.0)
    assert "ZeRO-1 with frozen weights replicated would be fastest: 0.1 s (10.0%)" in advice([one, three], three, "H20")
    assert "as fast as any" in advice([one, three], one, "H20")
    big = option(1, 0.9, fits=False, total=200e9)
    assert "as fast as any" in advice([big, three], three, "H20")
    assert "does not fit; ZeRO-3" in advice([big, three], big, "H20")
    assert advice([big], big, "H20").startswith("Nothing fits into the 96 GB of an H20")
    sharded = option(3, 1.0) | {"frozen": "shard"}
    assert advice([sharded], sharded, "H20").startswith("ZeRO-3 with frozen weights sharded, which the recipe chooses")


def test_json_is_one_object_and_the_table_says_the_same(tmp_path, capfd):
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(toy_values()))
    assert run_stagecoach("plan", "--recipe", file, "--gpus", "2", "--json")[1] == 0
    stages = json.loads(capfd.readouterr().out)["stages"]
    assert {"trainable", "frozen", "modules", "flops_per_sample", "memory_bytes", "elementwise"} <= stages["1"].keys()
    run_stagecoach("plan", "--recipe", file, "--gpus", "2")
    text = capfd.readouterr().out
    assert f"{stages['2']['trainable']:,}" in text
    assert "as fast as any" in text or "would be fastest" in text


def test_sharing_among_more_gpus_or_sharding_the_frozen_weights_makes_each_hold_less():
    def stage(gpus=4, **changes):
        return planner.plan(Recipe.model_validate(toy_values(**changes)), Cluster(gpus=gpus))["stages"]["1"]

    assert (
        stage(8)["memory_bytes"]["master_weights_and_adam"] == stage(4)["memory_bytes"]["master_weights_and_adam"] / 2
    )
    assert stage(4)["memory_bytes"]["frozen"] > stage(4, frozen="shard")["memory_bytes"]["frozen"]
