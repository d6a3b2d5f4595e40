"""Dense and camera heads: order and causality in time, size in space, ranges of what they give."""

import pytest
import torch
from torch import nn

from stagecoach.models.fantasy_world.config import SIZES, SPECIAL_TOKENS, CameraHeadConfig, DPTConfig
from stagecoach.models.fantasy_world.heads.camera_head import CameraHead, FrameExpansion
from stagecoach.models.fantasy_world.heads.dpt import (
    DenseHeads,
    SpatialFusion,
    TemporalDoubling,
    TemporalUpsampler,
    position_code,
)

DPT = DPTConfig(taps=(1, 2, 3, 4), channels=(8, 8, 12, 12), features=8, hidden=8, last=4, chunk=3)


def make_heads(**changes):
    torch.manual_seed(0)
    return DenseHeads(DPT.model_copy(update=changes), 16)


def make_taps(f, h, w, batch=1):
    return [torch.randn(batch, f * (SPECIAL_TOKENS + h * w), 16) for _ in range(4)]


@torch.no_grad()
def test_upsampling_puts_the_frames_of_a_latent_frame_side_by_side():
    up = TemporalUpsampler(2)
    for doubling in (up.first, up.second):
        nn.init.zeros_(doubling.upsample.weight)
        doubling.upsample.weight[:, :, -1] = torch.eye(2).repeat(2, 1)[..., None, None]  # both copies of the frame
        nn.init.zeros_(doubling.conv.weight)
    for conv in (up.conv, up.first.upsample, up.second.upsample, up.first.conv, up.second.conv):
        nn.init.zeros_(conv.bias)
    up.conv.weight.copy_(torch.eye(2)[..., None, None, None])
    x = torch.arange(4.0).expand(1, 2, 4).reshape(1, 2, 4, 1, 1)
    assert up(x)[0, 0, :, 0, 0].tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_a_latent_frame_reaches_no_earlier_frame_than_its_own(k):
    torch.manual_seed(0)
    up = TemporalUpsampler(4)
    x = torch.randn(1, 4, 5, 3, 3)
    y = x.clone()
    y[:, :, k] += 1
    changed = (up(x) - up(y)).abs().amax((0, 1, 3, 4)) > 1e-6
    assert changed.shape == (17,)
    assert changed.nonzero()[0].item() == (0 if k == 0 else 4 * (k - 1) + 1)


def test_a_single_frame_passes_the_upsampler():
    assert TemporalDoubling(4)(torch.randn(1, 4, 1, 3, 3)).shape == (1, 4, 1, 3, 3)


@torch.no_grad()
def test_camera_tokens_are_expanded_in_the_order_of_time():
    expansion = FrameExpansion(2)
    expansion.expand.weight.copy_(torch.eye(2).repeat(4, 1))
    expansion.expand.bias.zero_()
    tokens = torch.arange(4.0)[None, :, None].expand(1, 4, 2)
    assert expansion(tokens)[0, :, 0].tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(64, 96, (3, 4, 6)), (60, 90, (2, 4, 6)), (48, 112, (3, 3, 7)), (37, 53, (1, 2, 3))]
)
@pytest.mark.parametrize("shared_trunk", [True, False])
def test_outputs_have_the_size_of_the_input_frames_and_lawful_values(height, width, grid, shared_trunk):
    heads = make_heads(shared_trunk=shared_trunk)
    frames = torch.tensor([[4 * (grid[0] - 1), 0, 0]])
    out = heads(make_taps(*grid), frames, grid, height, width)
    assert out["depth"].shape == out["depth_confidence"].shape == (1, 3, height, width)
    assert out["points"].shape == (1, 3, height, width, 3)
    assert out["points_confidence"].shape == (1, 3, height, width)
    assert all(x.dtype == torch.float32 for x in out.values())
    assert (out["depth"] > 0).all()
    assert (out["depth_confidence"] >= 1).all()
    assert (out["points_confidence"] >= 1).all()


def test_frames_are_those_that_were_asked_for_whatever_the_chunk():
    grid = (3, 4, 6)
    taps = make_taps(*grid, batch=2)
    with torch.no_grad():
        every = make_heads()(taps, torch.arange(9).repeat(2, 1), grid, 64, 96)
        some = make_heads(chunk=4)(taps, torch.tensor([[7, 2], [0, 8]]), grid, 64, 96)
    for name in every:
        torch.testing.assert_close(some[name], torch.stack([every[name][0, [7, 2]], every[name][1, [0, 8]]]))


def test_the_spatial_part_sees_as_many_frames_at_a_time_as_a_chunk_holds():
    heads, seen = make_heads(), []
    fusion = next(module for module in heads.modules() if isinstance(module, SpatialFusion))
    fusion.register_forward_pre_hook(lambda module, args: seen.append(len(args[2])))
    heads(make_taps(3, 2, 3), torch.arange(7)[None], (3, 2, 3), 32, 48)
    assert seen == [3, 3, 1]


def test_the_deepest_tap_is_enlarged_most():
    heads, shapes = make_heads(), []
    fusion = next(module for module in heads.modules() if isinstance(module, SpatialFusion))
    for layer in fusion.adapt:
        layer.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape[2:])))
    taps = make_taps(1, 5, 7)
    taps[3] = taps[3].detach().requires_grad_()
    heads(taps, torch.zeros(1, 1, dtype=torch.long), (1, 5, 7), 80, 112)
    assert shapes == [(20, 28), (10, 14), (5, 7), (3, 4)]
    streams = []
    heads = make_heads()
    fusion = next(module for module in heads.modules() if isinstance(module, SpatialFusion))
    fusion.register_forward_pre_hook(lambda module, args: streams.extend(args[2:]))
    heads(taps, torch.zeros(1, 1, dtype=torch.long), (1, 5, 7), 80, 112)
    reached = [
        torch.autograd.grad(s.sum(), taps[3], allow_unused=True, retain_graph=True)[0] is not None for s in streams
    ]
    assert reached == [True, False, False, False]


def test_the_position_code_tells_all_places_apart():
    code = position_code(32, 6, 9, 1.5, torch.empty(0))[0].flatten(1).T
    assert torch.cdist(code, code).fill_diagonal_(1).min() > 1e-3


def make_camera_head():
    torch.manual_seed(0)
    return CameraHead(CameraHeadConfig(width=16, heads=2, layers=1, mlp_ratio=2, hidden=8), 24)


def test_every_iteration_gives_a_pose_per_video_frame():
    poses = make_camera_head()(torch.randn(2, 3, 24))
    assert [tuple(pose.shape) for pose in poses] == [(2, 9, 9)] * 4
    assert all(pose.dtype == torch.float32 and (pose[..., 7:] > 0).all() for pose in poses)


def test_refinement_starts_from_the_identity_pose():
    head = make_camera_head()
    nn.init.zeros_(head.branch_out.weight)
    nn.init.zeros_(head.branch_out.bias)
    pose = head(torch.randn(1, 2, 24))[-1]
    assert torch.equal(pose[..., :7], torch.tensor([0, 0, 0, 0, 0, 0, 1.0]).expand(1, 5, 7))


def test_an_iteration_sees_the_previous_pose_without_a_gradient_through_it():
    head = make_camera_head()
    seen = []
    head.embed_pose.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    poses = head(torch.randn(1, 2, 24))
    assert [x.requires_grad for x in seen] == [True, False, False, False]
    torch.testing.assert_close(seen[1][..., :7], poses[0][..., :7].detach())
    assert not torch.equal(seen[2], seen[1])


def test_fields_of_view_have_a_gradient_at_the_start():
    head = make_camera_head()
    head(torch.randn(1, 2, 24))[-1][..., 7:].sum().backward()
    assert (head.branch_out.weight.grad[7:].abs().sum(1) > 0).all()


def test_taps_of_the_sizes_are_those_of_the_method():
    assert SIZES["wan2.1-1.3b"].dpt.taps == (6, 9, 12, 18)
    assert SIZES["wan2.1-14b"].dpt.taps == (8, 12, 18, 24)
