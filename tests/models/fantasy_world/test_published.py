"""``compatibility: published`` computes what the published code does, within 1e-5 under the same random weights, which
come through a file in its layout."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from stagecoach.models.family import Progress
from stagecoach.models.fantasy_world import published as loader
from stagecoach.models.fantasy_world.camera import CameraAdapter, fold_plucker, published_lens
from stagecoach.models.fantasy_world.camera import plucker as plucker_of
from stagecoach.models.fantasy_world.config import FantasyWorldConfig
from stagecoach.models.fantasy_world.geometry.aggregator import AggregatorPair, TimeProjection
from stagecoach.models.fantasy_world.heads.camera_head import CameraHead
from stagecoach.models.fantasy_world.heads.dpt import DPT, ResidualConv, TemporalUpsampler
from stagecoach.models.fantasy_world.rope import plane_rotation
from stagecoach.models.weights import load_network, open_weights
from tests.models.fantasy_world import published_formulas as formula
from tests.models.fantasy_world import published_heads as heads
from tests.models.fantasy_world.conftest import AGGREGATOR, with_base
from tests.models.fantasy_world.fakes import make_batch
from tests.models.fantasy_world.inputs import make_inputs, open_gates
from tests.models.fantasy_world.published_file import SMALL, UNUSED_TENSORS, published_weights

close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def world(base_folders, tmp_path_factory):
    """``config``; published weights ``w``; Wan's, ``b``; the ``network`` that the file of ``w`` gives."""
    config = with_base(SMALL, base_folders["aggregator"])
    w, path = published_weights(config), tmp_path_factory.mktemp("published") / "model.pth"
    torch.save(w | UNUSED_TENSORS, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "SIZES", {loader.SIZE: with_base(AGGREGATOR, base_folders["aggregator"])})
        b = load_file(next(Path(config.base).glob("*.safetensors")))
        yield SimpleNamespace(config=config, w=w, b=b, network=load_network(open_weights(path)))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def inputs():
    found = make_inputs(SMALL)
    turn = torch.randn(2, SMALL.clip.frames, 3, generator=torch.Generator().manual_seed(2)) * 0.2
    turn[:, 0] = 0
    cross = torch.stack([torch.linalg.cross(turn, axis.expand_as(turn)) for axis in torch.eye(3)], -1)
    found["extrinsics"][..., :3] = torch.matrix_exp(cross)
    found["frames"] = torch.arange(SMALL.clip.frames).expand(2, -1)
    found["timestep"] = torch.tensor([92.6, 12.5])  # diffusers' angles, for the backbone, are fp32
    return found


def differs(default: torch.nn.Module, module: torch.nn.Module, expected: torch.Tensor, *inputs) -> bool:
    """Whether ``default`` gives something else with the weights of ``module``."""
    default.load_state_dict(module.state_dict(), strict=False)
    found = default(*inputs)
    return bool((found - expected).abs().amax() > 1e-3 * expected.abs().amax())


@torch.no_grad()
def test_the_forward_is_the_published_one(world, inputs):
    expected, found = heads.forward(world.w, world.b, world.config, inputs), world.network.predict(**inputs)
    assert found.keys() == expected.keys()
    for name in ("video", "depth", "depth_confidence", "points", "points_confidence"):
        scale = expected[name].abs().amax().clamp_min(1)
        close(found[name] / scale, expected[name] / scale)
        assert expected[name].std() > 0.01, name
    for ours, theirs in zip(found["poses"], expected["poses"], strict=True):
        close(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("part", ["frame", "global"])
def test_the_aggregators_blocks_are_vggts_under_the_published_modulation(world, part):
    (f, h, w), pair = SMALL.clip.grid, world.network.irg[1].geo_block
    latent = torch.empty(1, 1, f, 2 * h, 2 * w)
    x, time = torch.randn(2, f * (5 + h * w), 32), torch.randn(2, 6, 32)
    rotations = plane_rotation(16, latent[:, :, :1]), plane_rotation(16, latent)
    opened, carried = pair.open(x, time, *rotations)
    frame = "vggt.aggregator.frame_blocks.1"
    e, at = formula.six(world.w, frame, time.repeat_interleave(f, 0)), formula.places(f, h, w)
    frames = x.reshape(2 * f, -1, 32)
    frames = formula.block_attention(world.w, frame, frames, 2, e, at[: frames.shape[1]])
    frames = formula.block_mlp(world.w, frame, frames, e).reshape(x.shape)
    if part == "frame":
        return close(carried[0], frames)
    name = "IRGBlock.1.x_agg"
    e = formula.six(world.w, name, time)
    half = formula.block_attention(world.w, name, frames, 2, e, at)
    close(opened, half)
    expected = formula.block_mlp(world.w, name, half, e)
    close(pair.close(opened, carried), expected)
    default = AggregatorPair(SMALL.aggregator)
    default.load_state_dict(pair.state_dict())
    table = world.network.rope.geometry(16, latent[:, :, :1]), world.network.rope.geometry(16, latent)
    assert (default.close(*default.open(x, time, *table)) - expected).abs().max() > 0.1


@torch.no_grad()
def test_the_time_of_the_geometry_is_exact_at_pure_noise_too(world):
    timestep, module = torch.tensor([999.7, 3.2]), world.network.geometry_time
    expected = formula.geometry_time(world.w, timestep, 256)
    close(module(timestep), expected)
    default = TimeProjection(256, 32)
    default.load_state_dict(module.state_dict())
    assert (default(timestep) - expected).abs().max() > (module(timestep) - expected).abs().max()


@torch.no_grad()
def test_the_exchange_is_the_published_one(world):
    (f, h, w), dim, cross = SMALL.clip.grid, SMALL.interaction.head_dim, world.network.irg[1].cross_attention
    latent = torch.empty(1, 1, f, 2 * h, 2 * w)
    x_v, x_g = torch.randn(2, f * h * w, SMALL.backbone.dim), torch.randn(2, f * (5 + h * w), 32)
    found = cross(x_v, x_g, *world.network.rope.video(dim, latent), *world.network.rope.geometry(dim, latent))
    turns = formula.turns(dim, f, h, w), formula.turns(dim, f, h, w, 5)
    expected = formula.exchange(world.w, "IRGBlock.1.bicross_attention", x_v, x_g, *turns, SMALL.interaction.heads)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)


@torch.no_grad()
def test_rays_and_camera_features_are_the_published_ones(world, inputs):
    height, width = SMALL.clip.height, SMALL.clip.width
    lens = published_lens(inputs["intrinsics"], height, width)
    folded = fold_plucker(inputs["extrinsics"], lens, height, width, torch.float32)
    plucker = formula.rays(inputs["extrinsics"], inputs["intrinsics"], height, width)
    close(folded, torch.nn.functional.pixel_unshuffle(plucker.permute(0, 1, 4, 2, 3), 8))
    lens = torch.tensor([500.0, 480.0, 296.0, 168.0])[None, None]
    spread = [
        plucker_of(torch.eye(3, 4)[None, None], one, 336, 592)[..., 3].aminmax()
        for one in (lens, published_lens(lens, 336, 592))
    ]
    assert [round(float(found.max - found.min), 4) for found in spread] == [1.0176, 0.0015]
    close(world.network.pose_encoder(folded, torch.tensor([True, True])), formula.camera_features(world.w, plucker))


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 2])  # before the split, and behind it, where the file has it elsewhere
def test_an_adapter_has_a_relu_and_adds_nothing_to_a_withheld_camera(world, block):
    mixed, features = torch.randn(2, 18, SMALL.backbone.dim), torch.randn(2, 18, 24)
    features[1] = 0
    place = f"pipe.dit.blocks.{block}" if block < SMALL.split else f"IRGBlock.{block - SMALL.split}.x_dit"
    expected = formula.camera_shift(world.w, f"{place}.cross_attn.processor", mixed, features)
    adapter = world.network.camera_adapters[block]
    found = adapter(mixed, features)
    close(found, expected)
    assert found[0].any()
    assert not found[1].any()
    default = CameraAdapter(SMALL.camera_control, SMALL.backbone.dim)
    assert differs(default, adapter, expected[:1], mixed[:1], features[:1])
    assert default(mixed, features)[1].any()


@torch.no_grad()
def test_the_camera_head_is_the_published_one(world):
    tokens, head = torch.randn(2, 3, 64), world.network.camera_head
    expected = heads.camera_head(world.w, tokens, 2, 2)
    for ours, theirs in zip(head(tokens), expected, strict=True):
        close(ours, theirs)
    assert (expected[-1][..., 7:] == 0).any()  # the published ReLU
    assert differs(
        torch.nn.Sequential(CameraHead(SMALL.camera_head, 64), Last()), torch.nn.Sequential(head), expected[-1], tokens
    )


class Last(torch.nn.Module):
    def forward(self, estimates):
        return estimates[-1]


@torch.no_grad()
def test_time_is_upsampled_as_the_streamed_decoder_does_it(world):
    x, upsampler = torch.randn(1, 32, 4, 3, 5), world.network.dpt.heads["depth"].temporal[0]
    expected = heads.streamed(world.w, "vggt.depth_head.temporal_upsamplers.0", x)
    close(upsampler(x), expected)
    assert differs(TemporalUpsampler(32), upsampler, expected, x)
    close(upsampler(x[:, :, :1]), heads.streamed(world.w, "vggt.depth_head.temporal_upsamplers.0", x[:, :, :1]))


@torch.no_grad()
def test_a_residual_adds_what_its_relu_in_place_leaves(world):
    x, unit = torch.randn(2, 24, 5, 7), world.network.dpt.heads["points"].fusion.steps[1].skip
    expected = heads.residual_unit(world.w, "vggt.point_head.scratch.refinenet2.resConfUnit1", x)
    close(unit(x), expected)
    assert differs(ResidualConv(24), unit, expected, x)


@torch.no_grad()
@pytest.mark.parametrize(("ours", "theirs"), [("depth", "vggt.depth_head"), ("points", "vggt.point_head")])
def test_a_dense_head_enlarges_before_it_upsamples_time(world, ours, theirs):
    grid, size, head = SMALL.clip.grid, (SMALL.clip.height, SMALL.clip.width), world.network.dpt.heads[ours]
    taps = [torch.randn(2, grid[0] * (5 + grid[1] * grid[2]), 64) for _ in range(4)]
    frames = torch.arange(SMALL.clip.frames).expand(2, -1)
    apart = [tap.unflatten(1, (grid[0], -1)) for tap in reversed(taps)]
    expected = heads.dense_head(world.w, theirs, apart, grid, *size)
    close(head(taps, frames, grid, *size)[ours], expected)
    few = torch.tensor([[1, 4, 5], [0, 2, 8]])
    close(head(taps, few, grid, *size)[ours], expected[torch.arange(2)[:, None], few])
    default = DPT(SMALL.dpt, 64, [ours])
    default.load_state_dict(head.state_dict())
    assert (default(taps, frames, grid, *size)[ours] - expected).abs().max() > 0.01


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_reaches_every_trained_tensor(world, make_network, stage):
    network = make_network(world.config, stage)
    open_gates(network)
    losses = network(make_batch(2, world.config, stage=stage), Progress(0, 10, stage, 0))["losses"]
    sum(loss.mean() for loss in losses.values()).backward()
    assert all(loss.isfinite().all() for loss in losses.values())
    dead = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead


def test_the_geometry_of_another_design_is_refused():
    with pytest.raises(ValueError, match="published for geometry wan, expected geometry aggregator"):
        FantasyWorldConfig.model_validate(SMALL.model_dump() | {"geometry": "wan"})
    with pytest.raises(ValueError, match="vggt is set for compatibility default, expected published"):
        FantasyWorldConfig.model_validate(AGGREGATOR.model_dump() | {"vggt": "model.pt"})
