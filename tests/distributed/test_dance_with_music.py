"""DanceWithMusic on two ranks under ZeRO-3: the losses of plain PyTorch, MusicToPose that opens late, parts of
adapters, resuming while windows grow."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stagecoach.trainer.recipe import Recipe
from tests.distributed import cases
from tests.distributed.plain import plain_losses
from tests.distributed.test_resume import stop_at
from tests.tiny_dance import FAMILY, make_tiny_dance

STEPS = 6
OPENS = 5
"""First step at or past 0.8 of them."""
BACKBONES = ("tiny", "tiny-svd")


@pytest.fixture(scope="module")
def dance(tmp_path_factory):
    return make_tiny_dance(tmp_path_factory.mktemp("dance"), 8)


def recipe_for(dance, run: Path | str, size: str = "tiny", **changes: Any) -> Recipe:
    own = {"size": size, "steps": STEPS, "model": {"m2p": {"dropout": 0.1}}}
    return cases.cpu_recipe(FAMILY, dance.shards, run, 3, **own | changes)


def adapter(run: Path, stage: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted((run / f"stage{stage}" / "adapter").glob("*.safetensors")):
        found |= load_file(file)
    return found


@pytest.fixture(scope="module", params=BACKBONES)
def finished(request, pair, dance, tmp_path_factory):
    """Size and folder of a run of A, B and C; a checkpoint of B from before MusicToPose opens is kept."""
    run = tmp_path_factory.mktemp("run")
    recipe = recipe_for(dance, run, request.param, checkpoint_every=OPENS).model_dump()
    for stage in (1, 2, 3):
        pair.run(cases.train, recipe, [stage])
    return request.param, run


@pytest.mark.slow
def test_all_stages_under_zero_3_give_the_losses_of_plain_pytorch(finished, dance):
    """Four micro-batches over two ranks against one batch on one."""
    size, run = finished
    recipe = recipe_for(dance, "unused", size)
    for index in (1, 2, 3):
        init = run / f"stage{index - 1}" / "adapter" if index > 1 else None
        found = cases.losses(run, index)
        assert len(found) == STEPS
        assert found == pytest.approx(plain_losses(recipe, index, init), rel=2e-5)


@pytest.mark.slow
def test_music_to_pose_does_not_change_by_a_bit_before_it_opens_in_b(finished):
    _, run = finished
    before, after = adapter(run, 1), adapter(run, 2)
    held = load_file(run / "stage2" / "checkpoints" / f"checkpoint_{OPENS}" / "model.safetensors")
    names = [name for name in before if name.startswith("m2p.")]
    assert set(names) == set(before)
    assert all(torch.equal(held[name], before[name]) for name in names)
    changed = {name for name in names if not torch.equal(after[name], before[name])}
    assert {name for name in changed if name.startswith("m2p.head.")}
    assert len(changed) > len(names) / 2
    others = [name for name in held if not name.startswith("m2p.")]
    assert any(not torch.equal(held[name], after[name]) for name in others)


@pytest.mark.slow
def test_an_adapter_has_a_file_for_each_part_and_c_changes_time_only(finished):
    size, run = finished
    files = {path.stem for path in (run / "stage3" / "adapter").glob("*.safetensors")}
    expected = {"m2p", "guidance_pose", "face_tokens", "identity_adapter", "denoising_unet", "reference_unet", "motion"}
    if size == "tiny-svd":
        expected = {"m2p", "guidance_pose_net", "face_tokens", "identity_adapter", "denoising_unet"}
    assert files == expected
    second, third = adapter(run, 2), adapter(run, 3)
    moved = {name for name in third if name not in second or not torch.equal(third[name], second[name])}
    temporal = ("motion_modules",) if size == "tiny" else ("temporal_", "time_mixer", "time_pos_embed")
    assert moved
    assert all(any(part in name for part in temporal) for name in moved)


@pytest.mark.slow
def test_the_seeds_names_are_logged(finished):
    _, run = finished
    names = {
        1: ("pose_loss", "face_loss", "pose_error_px", "beat_alignment"),
        2: ("diffusion_loss", "pose_loss", "id_loss"),
        3: ("diffusion_loss", "id_loss", "temporal_loss"),
    }
    for stage, expected in names.items():
        for name in expected:
            assert len(cases.losses(run, stage, name)) == STEPS, f"{name} in stage {stage}"


@pytest.mark.slow
def test_a_stopped_and_resumed_stage_equals_the_uninterrupted_one_to_the_last_digit(pair, finished, dance, tmp_path):
    """In champ's B past the step at which MusicToPose opens, in SVD's C between two lengths of windows."""
    size, run = finished
    stage = 2 if size == "tiny" else 3
    recipe = recipe_for(dance, tmp_path, size, checkpoint_every=OPENS).model_dump()
    init = run / f"stage{stage - 1}" / "adapter"
    messages = pair.run(stop_from, recipe, stage, 3, init)
    assert all("step 3" in message for message in messages)
    pair.run(train_from, recipe, stage, init)
    assert cases.losses(tmp_path, stage) == cases.losses(run, stage)
    one, other = adapter(tmp_path, stage), adapter(run, stage)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_other_engines_give_the_same_losses_in_c(pair, finished, dance, tmp_path):
    """Frozen weights partitioned and recompute are costly here; B of champ has them in ``test_dance_reference.py``."""
    size, run = finished
    for number, change in enumerate(({"zero": 1}, {"frozen": "shard", "activation_checkpointing": "selective"})):
        recipe = recipe_for(dance, tmp_path / str(number), size, **change)
        pair.run(train_from, recipe.model_dump(), 3, run / "stage2" / "adapter")
        assert cases.losses(tmp_path / str(number), 3) == pytest.approx(cases.losses(run, 3), rel=2e-5), change


def train_from(recipe: dict, stage: int, init: Path) -> str:
    return cases.train(recipe, [stage], init=init)[0]


def stop_from(recipe: dict, stage: int, step: int, init: Path) -> str:
    return stop_at(recipe, stage, step, init=init)
