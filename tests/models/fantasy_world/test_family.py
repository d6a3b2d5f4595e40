import re

import pytest
import torch

from stagecoach.data.fantasy_world.cameras import encode_pose
from stagecoach.models import get_family
from stagecoach.models.family import Progress
from stagecoach.models.fantasy_world.config import SIZES
from stagecoach.models.fantasy_world.family import FantasyWorldFamily
from tests.models.declared import undeclared
from tests.models.fantasy_world.fakes import TINY, make_batch

FAMILY = FantasyWorldFamily()


def claims(config, stage: int) -> list[re.Pattern]:
    """Declared patterns as expressions over parameter names: ``*`` stands for one part."""
    return [
        re.compile(re.escape(t.pattern).replace(r"\*", r"[^.]+") + r"\.")
        for t in FAMILY.stages(config)[stage - 1].trainable
    ]


def progress(stage: int, step: int = 0) -> Progress:
    return Progress(step=step, total_steps=10, stage=stage, seed=0)


def test_registry_knows_the_family_and_its_sizes():
    assert isinstance(get_family("fantasy_world"), FantasyWorldFamily)
    assert set(FAMILY.sizes) == {"tiny", "wan2.1-1.3b", "wan2.1-1.3b-i2v", "wan2.1-14b"}


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("stage", [1, 2])
def test_declared_modules_are_exactly_those_that_require_a_gradient(size, stage):
    config = SIZES[size]
    network = FAMILY.build(config, stage, "meta", torch.bfloat16)
    patterns = claims(config, stage)
    used = set()
    for name, parameter in network.named_parameters():
        owners = [p.pattern for p in patterns if p.match(name)]
        assert len(owners) == int(parameter.requires_grad), (name, owners)
        used.update(owners)
    assert used == {p.pattern for p in patterns}


def test_stages_are_numbered_and_weigh_the_losses_as_the_paper_does():
    first, second = FAMILY.stages(TINY)
    assert (first.index, first.name) == (1, "latent_bridging")
    assert (second.index, second.name) == (2, "unified_co_optimisation")
    weights = [{term.name: term.weight.at(progress(1)) for term in spec.losses} for spec in (first, second)]
    assert weights[0] == {"depth": 1, "points": 1, "camera": 3}
    assert weights[1] == {"depth": 1, "points": 1, "camera": 3, "diffusion": 1}
    assert {(e.metric, e.limit) for e in first.exits} == {
        ("depth_loss", 0.1),
        ("point_loss", 0.5),
        ("camera_loss", 0.05),
    }


def test_lambda_scales_the_geometry_of_stage_two_only():
    config = TINY.model_copy(update={"losses": TINY.losses.model_copy(update={"geometry_weight": 0.5})})
    first, second = ({t.name: t.weight.start for t in spec.losses} for spec in FAMILY.stages(config))
    assert first["camera"] == 3
    assert second == {"diffusion": 1, "depth": 0.5, "points": 0.5, "camera": 1.5}


@pytest.mark.parametrize("stage", [1, 2])
def test_losses_reach_every_trainable_tensor_by_step_three_and_move_no_frozen_one(config, make_network, stage):
    torch.manual_seed(0)
    network = make_network(config, stage)
    spec = FAMILY.stages(config)[stage - 1]
    trainable = {n: p for n, p in network.named_parameters() if p.requires_grad}
    frozen = {n: p.clone() for n, p in network.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-3)
    touched = set()
    for step in range(3):
        result = network(make_batch(2, config, first_uid=2 * step, stage=stage), progress(stage, step))
        assert set(result["losses"]) == {term.name for term in spec.losses}
        assert {e.metric for e in spec.exits} <= set(result["metrics"])
        assert not undeclared(FAMILY, result["metrics"])
        optimizer.zero_grad()
        sum(term.weight.start * result["losses"][term.name].mean() for term in spec.losses).backward()
        for name, parameter in trainable.items():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
            if parameter.grad is not None and parameter.grad.abs().max() > 0:
                touched.add(name)
        optimizer.step()
    assert set(trainable) - touched == set()
    for name, parameter in network.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize("stage", [1, 2])
def test_losses_of_a_batch_of_two_equal_those_of_two_batches_of_one(config, make_network, stage):
    network = make_network(config, stage)
    with torch.no_grad():
        both = network(make_batch(2, config, stage=stage), progress(stage))["losses"]
        for uid in range(2):
            alone = network(make_batch(1, config, first_uid=uid, stage=stage), progress(stage))["losses"]
            for name, value in alone.items():
                torch.testing.assert_close(both[name][uid], value[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", [1, 2])
def test_validation_and_preview_run_on_the_network(config, make_network, stage):
    network, batch = make_network(config, stage), make_batch(1, config, stage=stage)
    clip = config.clip
    poses = encode_pose(batch["extrinsics"], batch["intrinsics"], clip.height, clip.width)
    statistics = {"depth_sum": 1.5, "depth_count": 1, "camera_sum": poses.sum(0).tolist(), "camera_count": 1}
    step = Progress(step=0, total_steps=10, stage=stage, seed=0, training=False)
    metrics = FAMILY.validate(network, batch, step, statistics)
    assert not undeclared(FAMILY, metrics)
    assert ("val_diffusion_loss" in metrics) == (stage == 2)
    assert all(torch.isfinite(total) and count > 0 for total, count in metrics.values())
    assert FAMILY.preview(network, batch, step)["scene_0"].dtype == "uint8"


def test_schema_is_that_of_the_backbone():
    schema = FAMILY.schema(SIZES["wan2.1-14b"])
    assert schema.field("image_latent").shape[0] == 20
    assert schema.field("clip").shape == (257, 1280)
    assert FAMILY.schema(TINY).field("text").shape == ("L", TINY.backbone.text_dim)
    assert FAMILY.schema(TINY).field("clip") is None
