"""The 14 B design's own parts: who attends to whom, how poses and Plücker coordinates are grouped."""

import torch

from stagecoach.models.fantasy_world.camera import CameraEncoder, average_groups, fold_plucker, halve_time
from stagecoach.models.fantasy_world.config import SPECIAL_TOKENS, AggregatorConfig, CameraControlConfig
from stagecoach.models.fantasy_world.geometry.aggregator import AggregatorPair, PosedTokens, TimeProjection, group_poses
from stagecoach.models.fantasy_world.geometry.tokens import camera_tokens, patch_tokens
from stagecoach.models.fantasy_world.rope import RotaryTables

LATENT = torch.empty(1, 16, 3, 4, 6)  # grid (3, 2, 3)
CONFIG = AggregatorConfig(dim=32, heads=2, pose_hidden=16)
PER_FRAME = SPECIAL_TOKENS + 6


def open_pair(x):
    torch.manual_seed(0)
    pair, tables = AggregatorPair(CONFIG), RotaryTables([16])
    for name, parameter in pair.named_parameters():
        if name.endswith("layer_scale"):
            parameter.data.fill_(1)
    time = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y, carried = pair.open(x, time, tables.geometry(16, LATENT[:, :, :1]), tables.geometry(16, LATENT))
        return carried[0], pair.close(y, carried)


def test_the_frame_block_stays_inside_a_frame_and_the_global_block_does_not():
    x = torch.randn(1, 3 * PER_FRAME, 32)
    y = x.clone()
    y[:, PER_FRAME] += 1  # the camera token of the second latent frame
    (frame_x, out_x), (frame_y, out_y) = open_pair(x), open_pair(y)
    moved = (frame_x != frame_y).flatten(2).any(-1)[0].unflatten(0, (3, -1)).any(1)
    assert moved.tolist() == [False, True, False]
    assert (out_x != out_y).any(-1).all()


def test_the_global_block_knows_the_order_of_frames():
    x = torch.randn(1, 3 * PER_FRAME, 32)
    turned = x.unflatten(1, (3, -1)).flip(1).flatten(1, 2)
    out, other = open_pair(x)[1], open_pair(turned)[1].unflatten(1, (3, -1)).flip(1).flatten(1, 2)
    patches, others = patch_tokens(out, 3), patch_tokens(other, 3)
    assert (patches - others)[:, [0, 2]].abs().max() > 1e-6


def test_poses_are_grouped_as_the_vae_groups_frames():
    poses = torch.arange(9.0)[None, :, None].expand(1, 9, 9)
    assert group_poses(poses)[0].unflatten(1, (4, 9))[..., 0].tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_halving_time_twice_is_the_vaes_grouping():
    x = torch.randn(1, 81, 2)
    torch.testing.assert_close(halve_time(halve_time(x)), average_groups(x))


def test_given_poses_reach_the_camera_tokens_and_nothing_else():
    tokens, patches, poses = PosedTokens(CONFIG), torch.randn(2, 3, 6, 32), torch.randn(2, 3, 36)
    visible, withheld = (tokens(patches, poses, torch.tensor(given)) for given in ([True, True], [True, False]))
    assert torch.equal(visible[0], withheld[0])
    assert (camera_tokens(visible, 3)[1] != camera_tokens(withheld, 3)[1]).any(-1).all()
    differs = (visible[1] != withheld[1]).any(-1).unflatten(0, (3, -1))
    assert not differs[:, 1:].any()
    assert torch.equal(patch_tokens(visible, 3), patches)


def test_folded_plucker_coordinates_keep_each_pixel():
    extrinsics = torch.eye(3, 4).expand(1, 2, 3, 4)
    folded = fold_plucker(extrinsics, torch.tensor([20.0, 20.0, 12.0, 8.0]).expand(1, 2, 4), 16, 24, torch.float32)
    assert folded.shape == (1, 2, 384, 2, 3)
    direction = torch.nn.functional.normalize(torch.tensor([(17.5 - 12) / 20, (10.5 - 8) / 20, 1.0]), dim=0)
    pixel = folded[0, 1].unflatten(0, (6, 8, 8))[3:, 2, 1, 1, 2]  # row 10 = 8 + 2, column 17 = 16 + 1
    torch.testing.assert_close(pixel, direction)


def test_camera_features_are_one_per_token_and_zero_where_withheld():
    encoder = CameraEncoder(CameraControlConfig(features=8), 16)
    out = encoder(torch.randn(2, 9, 384, 4, 6), torch.tensor([False, True]))
    assert out.shape == (2, 3 * 2 * 3, 8)
    assert not out[0].any()
    assert out[1].any()


def test_time_is_embedded_in_fp32():
    projection = TimeProjection(32, 8).bfloat16()
    out = projection(torch.tensor([999.0, 999.5]))
    assert out.dtype == torch.float32
    assert out.shape == (2, 6, 8)
    assert not torch.equal(out[0], out[1])  # bf16 would round both timesteps to 1000
