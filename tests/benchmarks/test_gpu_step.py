"""The benchmark trains what the trainer trains. Its times on a CPU are no figures and are not looked at."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks.gpu_step import measure
from stagecoach.data.format.schema import DTYPES, check_sample
from stagecoach.models import get_family
from stagecoach.models.common.example_batch import TORCH_DTYPES
from stagecoach.trainer.planning.meter import step_costs
from stagecoach.trainer.recipe import load_recipe
from stagecoach.trainer.stage_plan import StagePlan
from tests.tiny_data import ROOT

SMALL = ("--profile", "tiny", "--stage", "1", "--warmup", "1", "--steps", "1", "--json")


def run(*arguments: str, code: str | None = None) -> dict:
    script = str(ROOT / "benchmarks" / "gpu_step.py")
    command = [sys.executable, *(("-c", code) if code else (script,)), *arguments]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("size", ["tiny", "wan2.1-14b"])
def test_a_batch_is_what_the_schema_asks_for(size):
    family = get_family("fantasy_world")
    config = family.sizes[size]
    clip = config.clip.model_copy(update={"frames": 9, "height": 32, "width": 48})
    config = config.model_copy(update={"clip": clip})
    batch = family.example_batch(config, 1, 2, "cpu", 0)
    schema = family.schema(config)
    for i in range(2):
        arrays = {}
        for field in schema.fields:
            if field.name in batch:
                tensor = batch[field.name][i]
                assert tensor.dtype == TORCH_DTYPES[field.dtype]
                arrays[field.name] = np.zeros(tuple(tensor.shape), DTYPES[field.dtype])
        check_sample(schema, arrays, "batch")
        assert arrays["depth"].shape == (9, 32, 48)
    assert (batch["depth"] > 0).all()
    assert torch.equal(batch["extrinsics"][0, 0], torch.eye(4)[:3])
    again = family.example_batch(config, 1, 2, "cpu", 0)
    assert torch.equal(batch["latent"], again["latent"])
    assert not torch.equal(batch["latent"], family.example_batch(config, 1, 2, "cpu", 1)["latent"])


@pytest.mark.parametrize("size", ["tiny", "flux-dev"])
def test_a_batch_of_pictures_is_what_the_schema_asks_for(size):
    from stagecoach.data.movie_post_production.schema import valid_objects

    family = get_family("movie_post_production")
    config = family.sizes[size]
    batch = family.example_batch(config, 1, 2, "cpu", 0)
    arrays = {
        field.name: np.zeros(tuple(batch[field.name][0].shape), DTYPES[field.dtype])
        for field in family.schema(config).fields
        if field.name in batch
    }
    check_sample(family.schema(config), arrays, "batch")
    boxes = batch["boxes"]
    assert valid_objects(boxes).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    area = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).sum(1)
    assert area.tolist() == pytest.approx([2, 2], rel=1e-3)
    assert set(batch["depth"].unique().tolist()) <= {0, 1, 2}
    assert batch["dino"].float().norm(dim=-1).sub(1).abs().max() < 2e-3


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_of_movie_post_production_is_timed(stage):
    """The sound recipe names folders of frozen helpers; the benchmark needs none."""
    recipe = load_recipe(
        family="movie_post_production",
        profile="tiny",
        overrides=["model.vae.base=weights/vae", "model.dino.base=weights/dino"],
    )
    found = measure(recipe, stage, plain=True, warmup=1, steps=1)
    assert found["step_seconds"] > 0
    assert found["trainable"] > 0


@pytest.mark.parametrize("profile", ["tiny", "tiny-svd"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_of_dance_with_music_is_timed(profile, stage):
    recipe = load_recipe(
        family="dance_with_music",
        profile=profile,
        overrides=["model.weights.vae=weights/vae", "model.weights.denoising_unet=weights/unet"],
    )
    family, config = get_family("dance_with_music"), StagePlan.resolve(recipe, stage).config
    batch = family.example_batch(config, stage, 2, "cpu", 0)
    frames = config.frames
    assert batch["latents"].shape[1] == {1: frames.m2p, 2: frames.image, 3: frames.motion[1]}[stage]
    found = measure(recipe, stage, plain=True, warmup=1, steps=1)
    assert found["step_seconds"] > 0
    assert found["trainable"] > 0


def test_plain_steps_train_the_stage_and_report_every_number():
    recipe = load_recipe(profile="tiny")
    found = measure(recipe, 1, plain=True, warmup=1, steps=2)
    assert found["steps"] == 2
    assert 0 < found["step_seconds_least"] <= found["step_seconds"] <= found["step_seconds_most"]
    assert found["samples_per_second"] * found["step_seconds"] == pytest.approx(2)
    assert found["mfu"] is None
    assert found["trainable"] > 0
    assert found["flops_per_sample"] == step_costs(StagePlan.resolve(recipe, 1), 2).flops() / 2
    assert found["last_loss"] < found["first_loss"]


@pytest.mark.slow
def test_plain_needs_no_deepspeed_and_starts_at_the_engines_loss():
    without = (
        "import sys; sys.modules['deepspeed'] = None; sys.path.insert(0, '.');"
        "from benchmarks.gpu_step import main; main()"
    )
    plain, engine = run(*SMALL, "--plain", code=without), run(*SMALL)
    assert engine["engine"] == "deepspeed zero3"
    assert plain["first_loss"] == pytest.approx(engine["first_loss"], rel=1e-5)
    assert plain["last_loss"] == pytest.approx(engine["last_loss"], rel=1e-3)
    assert plain["trainable"] == engine["trainable"]
