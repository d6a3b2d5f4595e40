"""Pixels, cosines and decibels, sample by sample; what is masked has no influence."""

import math
from dataclasses import replace

import pytest
import torch

from stagecoach.models.common.reduce import total
from stagecoach.models.dance_with_music.clip import Clip, References
from stagecoach.models.dance_with_music.metrics import identity_cosine, motion, pose_error_px, psnr


def test_pose_error_is_in_pixels_of_the_picture_over_confident_points():
    target = torch.full((2, 3, 134, 2), 0.5)
    xy = target.clone()
    xy[0, :, 0] += torch.tensor([3 / 64, 4 / 32])  # 3 columns and 4 rows: 5 pixels
    xy[1, :, 1] = torch.nan  # a point that was not found
    conf = torch.ones(2, 3, 134)
    conf[1, :, 1] = 0.3
    error, count = pose_error_px(xy, target, conf, 32, 64)
    assert error.tolist() == pytest.approx([15.0, 0.0])
    assert count.tolist() == [3 * 134, 3 * 133]
    assert [x.item() for x in total((error, count))] == pytest.approx([15.0, 3 * 267])


class _MeanColour(torch.nn.Module):
    def forward(self, faces):
        return faces.mean((2, 3))


def test_identity_is_the_cosine_with_the_reference_where_both_have_a_face():
    frames = torch.zeros(2, 3, 3, 32, 32)
    for n, colour in enumerate(([1.0, 0, 0], [0, 1.0, 0], [1.0, 1.0, 0])):
        frames[:, n, :] = torch.tensor(colour)[:, None, None]
    none = torch.zeros(2, 3, 134, 2)
    clip = Clip(frames, none, none, none[..., 0], none[..., 0, 0], none[..., 0, 0], none[..., 0, 0])
    clip = replace(clip, face_box=torch.tensor([0.3, 0.3, 0.6, 0.6]).expand(2, 3, 4))
    clip = replace(clip, face_valid=torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.uint8))
    reference = torch.tensor([[5.0, 0, 0], [5.0, 0, 0]])
    one = References(frames, frames, reference, reference[:, 0], torch.tensor([1, 0]))
    found, count = identity_cosine(_MeanColour(), frames, clip, one)
    assert found.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert count.tolist() == [2, 0]
    found, count = identity_cosine(_MeanColour(), frames, clip, replace(one, has_face=torch.tensor([1, 1])))
    assert found.tolist() == pytest.approx([1.0, 1 + math.sqrt(0.5)], abs=1e-6)


def test_psnr_is_that_of_floats():
    truth = torch.zeros(1, 2, 3, 8, 8)
    frames = truth.clone()
    frames[:, 0] += 0.2  # a tenth of the range: 20 dB
    frames[:, 1] += 2.0  # what leaves the range is cut: half of it, 6 dB
    found, count = psnr(frames, truth)
    assert found.item() / count.item() == pytest.approx((20 + 20 * math.log10(2)) / 2, abs=1e-4)


def test_a_still_video_is_told_from_a_moving_one():
    truth = torch.linspace(-1, 1, 5)[None, :, None, None, None].expand(1, 5, 3, 8, 8)
    still = motion(truth[:, :1].expand_as(truth), truth)
    same = motion(truth, truth)
    assert [x.item() for x in still["motion_amount"]] == [0, 4]
    assert still["motion_error"][0].item() == pytest.approx(1.0)
    assert same["motion_error"][0].item() == 0
    assert same["motion_amount"][0].item() == pytest.approx(same["motion_amount_true"][0].item())
    assert motion(truth[:, :1], truth[:, :1])["motion_error"][1].item() == 0
