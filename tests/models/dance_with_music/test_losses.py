"""Each loss: its formula, that it is one number per sample, and what it is of nothing."""

import pytest
import torch
import torch.nn.functional as F

from stagecoach.models.common.noise import Noised
from stagecoach.models.common.reduce import weighted_mean
from stagecoach.models.dance_with_music.config import LossConfig
from stagecoach.models.dance_with_music.losses import (
    diffusion_loss,
    face_loss,
    heat_error,
    latent_identity_loss,
    pose_loss,
    temporal_loss,
)
from stagecoach.models.dance_with_music.music_to_pose.heatmaps import gaussian_marginals, heatmap, render_heatmaps

B, T, R, TAU = 2, 5, 16, 0.1
CONSTANTS = LossConfig(sigma=1.0)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(1)
    xy = 0.2 + 0.6 * torch.rand(B, T, 134, 2, generator=generator)
    conf = torch.rand(B, T, 134, generator=generator)
    output = {
        "logits_x": torch.randn(B, T, 134, R, generator=generator) / 10,
        "logits_y": torch.randn(B, T, 134, R, generator=generator) / 10,
        "conf": torch.randn(B, T, 134, generator=generator),
    }
    return output, xy, conf


def noised(latents: torch.Tensor, signal: float) -> Noised:
    count = len(latents)
    return Noised(
        torch.randn_like(latents),
        torch.zeros(count),
        torch.randn_like(latents),
        torch.linspace(0.5, 1, count),
        torch.full((count,), signal),
        torch.full((count,), signal).sqrt(),
        torch.full((count,), 1 - signal).sqrt(),
    )


def test_heat_is_the_cross_entropy_over_all_pixels_for_both_heads(drawn):
    output, xy, _ = drawn
    target = render_heatmaps(xy, torch.ones(B, T, 134), R, 1.0)
    expected = -(target * heatmap(output, TAU).log()).sum((-1, -2))
    torch.testing.assert_close(heat_error(output, xy, TAU, 1.0), expected, rtol=1e-4, atol=1e-4)
    full = {"logits": output["logits_y"].unsqueeze(-1) + output["logits_x"].unsqueeze(-2)}
    torch.testing.assert_close(heat_error(full, xy, TAU, 1.0), expected, rtol=1e-4, atol=1e-4)


def test_a_perfect_prediction_leaves_the_entropy_of_its_targets(drawn):
    _, xy, conf = drawn
    found = conf > 0.3
    x, y = gaussian_marginals(xy, R, 1.0)
    perfect = {"logits_x": x.log() * TAU, "logits_y": y.log() * TAU, "conf": torch.logit(conf, eps=1e-6)}
    entropy = -(x * x.log()).sum(-1) - (y * y.log()).sum(-1)
    expected = weighted_mean(entropy, conf * found)
    there = F.binary_cross_entropy(conf, conf, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(
        pose_loss(perfect, xy, conf, TAU, CONSTANTS), expected + 0.1 * there, rtol=1e-2, atol=1e-2
    )


def test_points_that_were_not_found_do_not_count(drawn):
    output, xy, conf = drawn
    constants = CONSTANTS.model_copy(update={"confidence": 0.0})
    moved = torch.where((conf > 0.3).unsqueeze(-1), xy, torch.full_like(xy, float("nan")))
    torch.testing.assert_close(
        pose_loss(output, moved, conf, TAU, constants), pose_loss(output, xy, conf, TAU, constants)
    )
    nothing = pose_loss(output, xy, torch.zeros_like(conf), TAU, constants)
    assert torch.equal(nothing, torch.zeros(B))


def test_samples_do_not_mix(drawn):
    output, xy, conf = drawn
    whole = pose_loss(output, xy, conf, TAU, CONSTANTS)
    alone = pose_loss({name: value[1:] for name, value in output.items()}, xy[1:], conf[1:], TAU, CONSTANTS)
    assert whole.shape == (B,)
    assert torch.equal(whole[1:], alone)


def test_faces_lose_nothing_when_equal_and_are_defined_for_one_sample():
    face = F.normalize(torch.randn(1, 512), dim=-1)
    valid = torch.ones(1, dtype=torch.bool)
    assert face_loss(face, face, valid) == pytest.approx(0, abs=1e-6)
    assert face_loss(-face, face, valid) == pytest.approx(2, abs=1e-6)
    assert face_loss(-face, torch.zeros_like(face), ~valid) == 0


def test_diffusion_weighs_faces_and_noise_levels():
    noisy = noised(torch.randn(B, T, 4, 8, 8), 0.5)
    faces = torch.zeros(B, T, 8, 8)
    faces[:, :, 2:4, 2:5] = 1
    prediction = torch.randn_like(noisy.target)
    error = (prediction - noisy.target).square()
    expected = noisy.weight * (error * (1 + 2 * faces.unsqueeze(2))).flatten(1).mean(1)
    torch.testing.assert_close(diffusion_loss(noisy, prediction, faces, 3.0), expected)
    torch.testing.assert_close(diffusion_loss(noisy, prediction, faces, 1.0), noisy.weight * error.flatten(1).mean(1))


def test_identity_looks_at_faces_only():
    latents = torch.randn(B, T, 4, 8, 8)
    noisy, faces = noised(latents, 0.25), torch.zeros(B, T, 8, 8)
    faces[0, :, 2:4, 2:4] = 1
    estimate = latents + 2.0 * (1 - faces).unsqueeze(2) + 0.5
    torch.testing.assert_close(
        latent_identity_loss(noisy, estimate, latents, faces, 3.0), torch.tensor([3.0 * 0.25 * 0.25, 0.0])
    )


def test_motion_is_matched_not_removed():
    """0 for the true motion, no matter what else is wrong in all frames alike; more than 0 for a still picture."""
    latents = torch.randn(B, T, 4, 8, 8)
    noisy = noised(latents, 0.5)
    assert temporal_loss(noisy, latents, latents).eq(0).all()
    torch.testing.assert_close(temporal_loss(noisy, latents + 1, latents), torch.zeros(B), atol=1e-6, rtol=0)
    still = latents[:, :1].expand_as(latents)
    torch.testing.assert_close(temporal_loss(noisy, still, latents), 0.5 * latents.diff(dim=1).abs().flatten(1).mean(1))
    single = noised(latents[:, :1], 0.5)
    assert temporal_loss(single, latents[:, :1] + 1, latents[:, :1]).eq(0).all()
