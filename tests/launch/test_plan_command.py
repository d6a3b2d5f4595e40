"""`launch/plan.py` counts the guide's model without data, weights or a GPU."""

import json
import os
import subprocess
import sys

import pytest

from tests.tiny_data import ROOT


@pytest.fixture(scope="module")
def stages():
    command = [
        sys.executable,
        str(ROOT / "launch" / "plan.py"),
        "--family",
        "fantasy_world",
        "--size",
        "wan2.1-1.3b",
        "--json",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    return json.loads(done.stdout)["stages"]


def test_trainable_parameters_are_the_seeds_within_3_percent(stages):
    assert stages["1"]["trainable"] == pytest.approx(956e6, rel=0.03)
    assert stages["2"]["trainable"] == pytest.approx(1186e6, rel=0.03)
    assert stages["2"]["trainable"] - stages["1"]["trainable"] == pytest.approx(230e6, rel=0.01)
    for stage in stages.values():
        for part in ("trainable", "frozen"):
            assert sum(module[part] for module in stage["modules"].values()) == stage[part]


def test_stage_one_costs_no_more_than_the_estimate_for_the_minimal_design(stages):
    # 255 TFLOP at 336 x 592 x 81 with two heads of 3.6 TFLOP forward, trained (fantasy_world.md, section 6.1).
    flops = stages["1"]["flops_per_sample"]
    heads = sum(row["training"] for row in flops["modules"] if row["module"].startswith(("dpt.", "camera_head.")))
    assert heads > 12e12
    assert flops["training"] - heads <= 1.05 * (255e12 - 2 * 3 * 3.6e12)
    assert (
        flops["forward"]
        < flops["training"]
        < flops["by_activation_checkpointing"]["selective"]
        < flops["by_activation_checkpointing"]["full"]
    )


def test_memory_is_listed_by_part_and_adds_up(stages):
    for stage in stages.values():
        memory = dict(stage["memory_bytes"])
        assert memory.pop("total") == pytest.approx(sum(memory.values()))
        assert {"frozen", "trainable", "gradients", "master_weights_and_adam", "activations"} <= memory.keys()
        assert [(o["zero"], o["frozen"]) for o in stage["options"]] == [
            (1, "replicate"),
            (2, "replicate"),
            (3, "replicate"),
            (3, "shard"),
        ]


def test_gpus_that_do_not_divide_a_global_batch_end_in_one_sentence():
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "plan.py"), "--gpus", "48"],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: stage 1: global_batch is 64, expected a multiple of the world size 48; use 48 or 96"
    )
    assert not done.stdout
