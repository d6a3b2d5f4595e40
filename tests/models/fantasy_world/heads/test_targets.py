import pytest
import torch

from stagecoach.data.fantasy_world.cameras import decode_pose
from stagecoach.models.common.keyed import rng_keys
from stagecoach.models.fantasy_world.heads.targets import all_frames, draw_frames, make_targets


def keyed(count: int, seed: int = 0) -> dict:
    return {"uid": torch.arange(count), "rng_key": rng_keys(seed, 1, range(count))}


def geometry(batch: int = 2, frames: int = 5, height: int = 6, width: int = 8) -> dict:
    generator = torch.Generator().manual_seed(3)
    eye = torch.eye(3).expand(batch, frames, 3, 3)
    translation = torch.randn(batch, frames, 3, 1, generator=generator)
    return {
        **keyed(batch),
        "depth": (1 + torch.rand(batch, frames, height, width, generator=generator)).half(),
        "extrinsics": torch.cat([eye, translation], -1),
        "intrinsics": torch.tensor([10.0, 9.0, width / 2, height / 2]).expand(batch, frames, 4),
    }


def test_frames_are_a_run_of_neighbours_that_may_wrap_around_the_end():
    frames = draw_frames(keyed(400), "frames", 13, 4)
    assert frames.shape == (400, 4)
    assert (frames.diff(dim=1) > 0).all()
    breaks = (frames.diff(dim=1) != 1).sum(1)
    assert breaks.max() == 1
    assert (frames[breaks == 1][:, 0] == 0).all()
    assert (frames[breaks == 1][:, -1] == 12).all()


def test_every_frame_of_the_clip_is_as_likely_as_any_other():
    counts = torch.bincount(draw_frames(keyed(3000), "frames", 9, 3).flatten(), minlength=9)
    assert counts.min() > 1000 * 0.88
    assert counts.max() < 1000 * 1.12


def test_frames_do_not_depend_on_the_other_samples_of_the_batch():
    whole = draw_frames(keyed(6), "frames", 81, 8)
    part = draw_frames({"uid": torch.arange(3, 5), "rng_key": rng_keys(0, 1, [3, 4])}, "frames", 81, 8)
    torch.testing.assert_close(whole[3:5], part)


def test_more_frames_than_the_clip_has_gives_all_of_them():
    batch = keyed(3)
    torch.testing.assert_close(draw_frames(batch, "frames", 5, 9), all_frames(batch, 5))


def test_depth_is_valid_where_finite_and_positive():
    batch = geometry()
    batch["depth"][0, 1, 0, :4] = torch.tensor([0.0, -1.0, torch.nan, torch.inf]).half()
    targets = make_targets(batch, all_frames(batch, 5))
    assert not targets.valid[0, 1, 0, :4].any()
    assert targets.valid.sum() == targets.valid.numel() - 4
    assert torch.isfinite(targets.points).all()
    assert (targets.depth[0, 1, 0, :4] == 0).all()


def test_points_project_back_to_their_pixel_and_depth():
    batch = geometry()
    frames = torch.tensor([[0, 3], [2, 4]])
    targets = make_targets(batch, frames)
    for b, k in ((0, 1), (1, 0)):
        f = frames[b, k]
        seen = targets.points[b, k] @ batch["extrinsics"][b, f, :, :3].T + batch["extrinsics"][b, f, :, 3]
        torch.testing.assert_close(seen[..., 2], batch["depth"][b, f].float())
        u = seen[..., 0] / seen[..., 2] * 10 + 4
        torch.testing.assert_close(u, (torch.arange(8) + 0.5).expand(6, 8), atol=1e-4, rtol=0)


def test_poses_are_those_of_all_frames_and_decode_to_the_cameras():
    batch = geometry()
    targets = make_targets(batch, torch.tensor([[1], [2]]))
    assert targets.poses.shape == (2, 5, 9)
    extrinsics, intrinsics = decode_pose(targets.poses, 6, 8)
    torch.testing.assert_close(extrinsics, batch["extrinsics"], atol=1e-5, rtol=0)
    torch.testing.assert_close(intrinsics, batch["intrinsics"], atol=1e-4, rtol=0)


def test_adjacent_marks_neighbours_of_the_clip_only():
    batch = geometry()
    targets = make_targets(batch, torch.tensor([[0, 3, 4], [1, 2, 3]]))
    assert targets.adjacent.tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize("count", [1, 3])
def test_targets_work_on_the_meta_device(count):
    batch = {k: v.to("meta") for k, v in geometry().items()}
    targets = make_targets(batch, draw_frames(batch, "frames", 5, count))
    assert targets.points.shape == (2, count, 6, 8, 3)
