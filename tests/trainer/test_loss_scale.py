"""fp16 searches for its loss scale at the start of a run; that is no failure, and what cannot be helped by it is."""

import json
from pathlib import Path

import pytest

from tests.distributed import cases
from tests.distributed.cases import toy_recipe
from tests.pair import Pair
from tests.toy import write_toy_shards


def train_in_half(recipe: dict) -> None:
    """DeepSpeed refuses fp16 on a CPU, whose arithmetic PyTorch has all the same."""
    import torch
    from deepspeed.accelerator import get_accelerator

    kind = type(get_accelerator())
    kind.is_fp16_supported = lambda self: True
    kind.supported_dtypes = lambda self: [torch.float, torch.bfloat16, torch.half]
    cases.train(recipe, [1])


@pytest.fixture(scope="module")
def alone():
    process = Pair(size=1)
    yield process
    process.close()


def steps_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "skipped_steps" in line]


@pytest.mark.parametrize("zero", [1, 3])
def test_overflows_while_the_loss_scale_falls_are_neither_failures_nor_steps_of_the_gradient_check(
    alone, tmp_path, zero
):
    write_toy_shards(tmp_path / "shards")
    # Gradients are some thousand times too large for the first scale of 2^16.
    options = {"precision": "fp16", "zero": zero, "loss_weights": {"fit": 3e4}, "max_skipped": 3, "steps": 24}
    shards = str(tmp_path / "shards")
    recipe = toy_recipe(shards, str(tmp_path / "run"), gradient_check_steps=3, **options)
    alone.run(train_in_half, recipe.model_dump())
    steps = steps_of(tmp_path / "run")
    assert 5 <= steps[-1]["skipped_steps"] <= 20
    assert steps[-1]["loss"] < steps[0]["loss"]
    silent = toy_recipe(
        shards, str(tmp_path / "silent"), gradient_check_steps=3, model={"unused_layer": True}, **options
    )
    with pytest.raises(AssertionError, match=r"no gradient reached layers\.1\.first\.norm\.weight.* in 3 steps"):
        alone.run(train_in_half, silent.model_dump())


def test_a_loss_that_is_not_finite_stops_a_run_in_fp16_as_in_any_other_precision(alone, tmp_path):
    write_toy_shards(tmp_path / "shards", samples=8, broken=tuple(range(8)))
    recipe = toy_recipe(str(tmp_path / "shards"), str(tmp_path / "run"), precision="fp16", max_skipped=3)
    with pytest.raises(AssertionError, match="NonFiniteError: 3 steps in a row up to step 3"):
        alone.run(train_in_half, recipe.model_dump())


def test_gradients_that_overflow_at_the_smallest_loss_scale_stop_the_run(alone, tmp_path):
    write_toy_shards(tmp_path / "shards")
    options = {"precision": "fp16", "loss_weights": {"fit": 1e9}, "max_skipped": 3, "steps": 30}
    with pytest.raises(AssertionError, match=r"NonFiniteError: 3 steps in a row up to step \d\d had"):
        alone.run(train_in_half, toy_recipe(str(tmp_path / "shards"), str(tmp_path / "run"), **options).model_dump())
