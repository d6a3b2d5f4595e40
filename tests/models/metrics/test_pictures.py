"""Frames against the true ones: decibels, similarities and changes, sample by sample."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import lpips as library
from torchmetrics.functional.image import peak_signal_noise_ratio

from stagecoach.models.metrics.metric import Absent, Unavailable, measured
from stagecoach.models.metrics.pictures import Lpips, lpips, ms_ssim, psnr, ssim
from stagecoach.models.metrics.temporal import motion, style_consistency, temporal_consistency, warp_error


def test_psnr_is_that_of_floats():
    truth = torch.zeros(1, 2, 3, 8, 8)
    frames = truth.clone()
    frames[:, 0] += 0.2  # a tenth of the range: 20 dB
    frames[:, 1] += 2.0  # what leaves the range is cut: half of it, 6 dB
    found, count = psnr(frames, truth, -1, 1)
    assert found.item() / count.item() == pytest.approx((20 + 20 * math.log10(2)) / 2, abs=1e-4)


def test_a_still_video_is_distinguished_from_a_moving_one():
    truth = torch.linspace(-1, 1, 5)[None, :, None, None, None].expand(1, 5, 3, 8, 8)
    still = motion(truth[:, :1].expand_as(truth), truth, -1, 1)
    same = motion(truth, truth, -1, 1)
    assert [x.item() for x in still["motion_amount"]] == [0, 4]
    assert still["motion_error"][0].item() == pytest.approx(1.0)
    assert same["motion_error"][0].item() == 0
    assert same["motion_amount"][0].item() == pytest.approx(same["motion_amount_true"][0].item())
    assert motion(truth[:, :1], truth[:, :1])["motion_error"][1].item() == 0


def _pair(height: int = 48, width: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 3, 3, height, width, generator=generator)
    return (truth + 0.1 * torch.randn(truth.shape, generator=generator)).clamp(0, 1), truth


def test_psnr_of_a_known_offset_and_of_the_library():
    frames, truth = _pair()
    found, count = psnr(frames, truth)
    pairs = [list(zip(a, b, strict=True)) for a, b in zip(frames, truth, strict=True)]
    expected = [sum(peak_signal_noise_ratio(a, b, data_range=1.0).item() for a, b in clip) for clip in pairs]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    offset, _ = psnr(0.5 * truth, 0.5 * truth + 0.01)
    assert (offset / count).tolist() == pytest.approx([40.0, 40.0], abs=1e-3)
    assert (psnr(truth, truth)[0] / count).tolist() == [100.0, 100.0]


def test_similarity_is_one_of_equal_frames_and_falls_with_noise():
    frames, truth = _pair()
    same, count = ssim(truth, truth)
    assert (same / count).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert (ssim(frames, truth)[0] < 0.95 * same).all()
    # Of two constants the structure is the same, and the luminance term is left: (2 a b + c) / (a^2 + b^2 + c).
    a, b, c = 0.2, 0.6, 0.01**2
    flat, _ = ssim(torch.full((1, 1, 3, 32, 32), a), torch.full((1, 1, 3, 32, 32), b))
    assert flat.item() == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=1e-4)


def test_five_scales_need_a_picture_of_176_pixels():
    frames, truth = _pair(176, 180)
    same, count = ms_ssim(truth[:, :1], truth[:, :1])
    assert (same / count).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert (ms_ssim(frames[:, :1], truth[:, :1])[0] < same).all()
    absent = measured(ms_ssim, *_pair(175, 200))
    assert isinstance(absent, Absent)
    assert absent.reason.startswith("pictures of 175x200 found")


def _classifier(kind: str) -> nn.Module:
    """The convolutions of torchvision's AlexNet or VGG-16 under its names, with random weights."""
    if kind == "alex":
        layers = [
            nn.Conv2d(3, 64, 11, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
        ]
        layers += [nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1)]
        layers += [nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)]
    else:
        layers, channels = [], 3
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2, 2)]
            channels = width or channels
    net = nn.Module()
    net.features = nn.Sequential(*layers)
    net.classifier = nn.Linear(4, 2)
    return net


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_lpips_from_a_local_file_equals_the_library(kind, tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = _classifier(kind)
    path = tmp_path / "backbone.pth"
    torch.save(net.state_dict(), path)
    # The library takes its backbone from torchvision, which is not there: this one stands in for it.
    vision = ModuleType("torchvision")
    vision.models = SimpleNamespace(alexnet=lambda weights: net, vgg16=lambda weights: net)
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    monkeypatch.setattr(library, "_TORCHVISION_AVAILABLE", True)
    expected = library._LPIPS(net=kind, pnet_rand=True)
    frames, truth = _pair(64, 72)
    found, count = lpips(Lpips(path, kind), frames, truth)
    wanted = expected(frames.flatten(0, 1), truth.flatten(0, 1), normalize=True).view(2, 3).sum(1)
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
    assert found.min() > 0
    assert count.tolist() == [3, 3]
    assert lpips(Lpips(path, kind), truth, truth)[0].tolist() == [0, 0]


def test_lpips_without_its_weights_is_absent_with_its_reason(tmp_path):
    assert "no such file" in measured(Lpips, tmp_path / "alexnet.pth").reason
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "other.pth")
    with pytest.raises(Unavailable, match=r"other.pth: weights features.0.bias missing or of another shape"):
        Lpips(tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(Unavailable, match=r"text.pth: not readable as weights"):
        Lpips(tmp_path / "text.pth")


def test_a_flow_that_is_right_leaves_no_warp_error():
    picture = torch.rand(3, 20, 26, generator=torch.Generator().manual_seed(1))
    clip = torch.stack([picture.roll(2 * k, -1) for k in range(3)])  # two columns to the right per frame
    flow = torch.zeros(2, 2, 20, 26)
    flow[:, 0] = 2.0
    assert warp_error(clip, flow) < 1e-5
    assert warp_error(clip, torch.zeros_like(flow)) > 0.2
    valid = torch.ones(2, 20, 26, dtype=torch.bool)
    clip[1, :, :, 10] += 1.0
    assert warp_error(clip, flow) > 0.01
    valid[0, :, 8] = valid[1, :, 10] = False
    assert warp_error(clip, flow, valid) < 1e-5
    with pytest.raises(Unavailable, match="no pixel of the clip has a flow"):
        warp_error(clip, torch.full_like(flow, 100.0))


def test_consistency_is_the_cosine_of_neighbours_and_of_the_reference():
    angles = torch.tensor([0.0, 30.0, 60.0]).deg2rad()
    features = 5 * torch.stack([angles.cos(), angles.sin()], 1)
    assert temporal_consistency(features) == pytest.approx(100 * math.cos(math.radians(30)), abs=1e-4)
    expected = 100 * (1 + math.cos(math.radians(30)) + 0.5) / 3
    assert style_consistency(features, torch.tensor([2.0, 0.0])) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(Unavailable, match="one frame found"):
        temporal_consistency(features[:1])
