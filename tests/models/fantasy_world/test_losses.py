import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.models.fantasy_world import losses
from stagecoach.models.fantasy_world.config import LossConfig
from stagecoach.models.fantasy_world.heads.targets import Targets
from stagecoach.trainer.recipe import RECIPES
from stagecoach.trainer.settings import read_yaml

DEFAULT = LossConfig()
PLAIN = LossConfig(error_quantile=1.0)


def scene(batch: int = 2, frames: int = 3, height: int = 8, width: int = 12, seed: int = 0) -> Targets:
    g = torch.Generator().manual_seed(seed)
    depth = 2 + 0.01 * torch.randn(batch, frames, height, width, generator=g)
    depth[..., :2, :2] = 4  # gives the frame a depth range, against which a temporal change counts as small
    valid = torch.rand(batch, frames, height, width, generator=g) > 0.2
    return Targets(
        frames=torch.arange(frames).expand(batch, frames),
        depth=torch.where(valid, depth, 0.0),
        valid=valid,
        points=torch.randn(batch, frames, height, width, 3, generator=g),
        poses=torch.cat(
            [
                torch.randn(batch, 5, 3, generator=g),
                torch.nn.functional.normalize(torch.rand(batch, 5, 4, generator=g), dim=-1),
                torch.rand(batch, 5, 2, generator=g),
            ],
            -1,
        ),
    )


def guesses(targets: Targets, seed: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shape = targets.depth.shape
    leaves = {
        "depth": torch.rand(shape, generator=g) + 1,
        "depth_confidence": 1 + torch.rand(shape, generator=g),
        "points": torch.randn(*shape, 3, generator=g),
        "points_confidence": 1 + torch.rand(shape, generator=g),
        "pose_0": torch.randn(targets.poses.shape, generator=g),
        "pose_1": torch.randn(targets.poses.shape, generator=g),
    }
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def evaluate(guess: dict, targets: Targets, config: LossConfig = DEFAULT) -> dict[str, torch.Tensor]:
    return {
        "depth": losses.depth_loss(guess["depth"], guess["depth_confidence"], targets, config),
        "points": losses.points_loss(guess["points"], guess["points_confidence"], targets, config),
        "camera": losses.camera_loss([guess["pose_0"], guess["pose_1"]], targets.poses, config),
    }


def row(x, index: int):
    if isinstance(x, Targets):
        return Targets(**{name: value[index : index + 1] for name, value in vars(x).items()})
    return {name: value[index : index + 1] for name, value in x.items()}


def test_batch_of_two_equals_two_of_one():
    targets = scene()
    guess = guesses(targets)
    both = evaluate(guess, targets)
    for index in range(2):
        alone = evaluate(row(guess, index), row(targets, index))
        for name, value in alone.items():
            assert value.shape == (1,)
            torch.testing.assert_close(both[name][index], value[0], rtol=1e-6, atol=1e-7)


def test_empty_mask_gives_zero_and_finite_gradients():
    targets = scene()
    targets.valid[0] = False
    targets.depth[0] = 0
    guess = guesses(targets)
    terms = evaluate(guess, targets)
    assert terms["depth"][0] == 0
    assert terms["points"][0] == 0
    assert terms["depth"][1] != 0
    sum(t.sum() for t in terms.values()).backward()
    for name, leaf in guess.items():
        assert torch.isfinite(leaf.grad).all(), name
        if not name.startswith("pose"):
            assert (leaf.grad[0] == 0).all(), name
            assert (leaf.grad[1] != 0).any(), name


def test_invalid_pixels_have_no_influence():
    targets = scene()
    guess = guesses(targets)
    before = evaluate(guess, targets)
    noise = torch.where(targets.valid, 0.0, 1000.0)
    changed = dict(
        guess,
        depth=guess["depth"] + noise,
        points=guess["points"] - noise[..., None],
        depth_confidence=guess["depth_confidence"] + noise,
    )
    for name, value in evaluate(changed, targets).items():
        torch.testing.assert_close(value, before[name])


def test_perfect_prediction_with_confidence_one_has_loss_zero_and_finite_gradients():
    targets = scene()
    leaves = [t.clone().requires_grad_() for t in (targets.depth, targets.points, targets.poses)]
    ones = torch.ones_like(targets.depth)
    terms = [
        losses.depth_loss(leaves[0], ones, targets, LossConfig()),
        losses.points_loss(leaves[1], ones, targets, LossConfig()),
        losses.camera_loss([leaves[2]], targets.poses, LossConfig()),
    ]
    for term in terms:
        torch.testing.assert_close(term, torch.zeros(2))
    sum(t.sum() for t in terms).backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_dense_loss_of_a_constant_error_is_error_plus_weighted_error_minus_log_confidence():
    valid = torch.ones(1, 2, 8, 8, dtype=torch.bool)
    target = torch.randn(1, 2, 8, 8, 3)
    prediction = target + torch.tensor([0.3, 0.0, 0.4])
    loss = losses.dense_loss(prediction, target, torch.full((1, 2, 8, 8), 3.0), valid, PLAIN)
    assert loss.item() == pytest.approx(0.5 + 3 * 0.5 - 0.2 * math.log(3), abs=1e-5)


def test_gradient_term_of_a_ramp_is_its_slope_at_every_stride():
    height, width = 16, 16
    error = 0.01 * torch.arange(width, dtype=torch.float32).expand(1, 1, height, width)[..., None]
    ones = torch.ones(1, 1, height, width)
    config = LossConfig(error_quantile=1.0, gradient_scales=3)
    loss = losses.dense_loss(error, torch.zeros_like(error), ones, ones.bool(), config)
    slope = 0.0
    for stride in (1, 2, 4):
        slope += 0.01 * stride / 2 / 3  # half of the pairs lie along the other axis, where the error does not change
    assert loss.item() == pytest.approx(2 * error.mean().item() + slope, abs=1e-6)


def test_confidence_settles_at_alpha_over_the_error():
    target, valid = torch.zeros(1, 1, 4, 4, 1), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    confidence = torch.full((1, 1, 4, 4), 0.2 / 0.05).requires_grad_()
    losses.dense_loss(target + 0.05, target, confidence, valid, PLAIN).sum().backward()
    torch.testing.assert_close(confidence.grad, torch.zeros_like(confidence), atol=1e-7, rtol=0)


def test_quantile_drops_the_largest_errors_and_only_those():
    error = torch.arange(100, dtype=torch.float32).view(1, 1, 10, 10)
    valid = torch.ones_like(error, dtype=torch.bool)
    prediction = error[..., None].clone().requires_grad_()
    config = LossConfig(error_quantile=0.9, error_clamp=1000)
    losses.dense_loss(prediction, torch.zeros_like(prediction), torch.ones_like(error), valid, config).sum().backward()
    trained = prediction.grad[..., 0] != 0
    assert trained.flatten()[1:90].all()
    assert not trained.flatten()[90:].any()


def test_quantile_counts_valid_pixels_only():
    error = torch.ones(1, 1, 10, 10)
    error[..., 0, :] = 50.0
    valid = torch.ones_like(error, dtype=torch.bool)
    valid[..., 0, :] = False
    threshold = losses._threshold(error, valid, 0.98)
    assert threshold.item() == 1.0


def test_a_prediction_that_is_not_a_number_is_seen_in_the_loss():
    targets = scene()
    guess = guesses(targets)
    spoilt = {name: torch.full_like(value, torch.nan) for name, value in guess.items()}
    assert all(torch.isnan(value).all() for value in evaluate(spoilt, targets).values())


def test_temporal_term_ignores_offsets_but_not_flicker():
    targets = scene()
    steady = losses.temporal_gradient_matching(targets.depth + 5, targets, LossConfig())
    torch.testing.assert_close(steady, torch.zeros(2), atol=1e-5, rtol=0)
    flicker = torch.tensor([0.0, 0.5, 0.0]).view(1, 3, 1, 1)
    shaken = losses.temporal_gradient_matching(targets.depth + flicker, targets, LossConfig())
    torch.testing.assert_close(shaken, torch.full((2,), 0.5), atol=1e-5, rtol=0)


def test_temporal_term_skips_moving_edges_and_frames_that_are_no_neighbours():
    depth = torch.full((1, 2, 4, 4), 2.0)
    depth[:, :, 0] = 4.0
    depth[:, 1, 1] = 3.0  # a change of half the range: an edge passed
    valid = torch.ones_like(depth, dtype=torch.bool)
    targets = Targets(
        frames=torch.tensor([[0, 1]]),
        depth=depth,
        valid=valid,
        points=torch.zeros(1, 2, 4, 4, 3),
        poses=torch.zeros(1, 2, 9),
    )
    still = torch.full_like(depth, 2.0)
    torch.testing.assert_close(losses.temporal_gradient_matching(still, targets, LossConfig()), torch.zeros(1))
    apart = Targets(**{**vars(targets), "frames": torch.tensor([[0, 5]])})
    flicker = still + torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    assert losses.temporal_gradient_matching(flicker, targets, LossConfig()).item() == pytest.approx(1)
    assert losses.temporal_gradient_matching(flicker, apart, LossConfig()).item() == 0


def test_one_frame_has_no_temporal_term():
    targets = scene(frames=1)
    assert (losses.temporal_gradient_matching(targets.depth + 1, targets, LossConfig()) == 0).all()


def test_camera_loss_sees_translation_rotation_and_field_of_view():
    target = scene().poses
    for part, weight in ((slice(0, 3), 1.0), (slice(3, 7), 1.0), (slice(7, 9), 0.5)):
        pose = target.clone()
        pose[..., part] += 0.4
        loss = losses.camera_loss([pose], target, LossConfig(huber_delta=0.1))
        torch.testing.assert_close(loss, torch.full((2,), weight * 0.35))


def test_quaternion_and_its_negative_are_one_rotation():
    target = scene().poses
    negative = torch.cat([target[..., :3], -target[..., 3:7], target[..., 7:]], -1)
    torch.testing.assert_close(losses.camera_loss([negative], target, LossConfig()), torch.zeros(2))
    assert losses.pose_error(negative, target).abs().max() == 0


def test_later_refinements_weigh_more_and_their_number_does_not_change_the_scale():
    target = scene().poses
    wrong, config = target + 1, LossConfig()
    alone = losses.camera_loss([wrong], target, config)
    torch.testing.assert_close(losses.camera_loss([wrong] * 4, target, config), alone)
    torch.testing.assert_close(losses.camera_loss([wrong, target], target, config), alone * 0.6 / 1.6)


def test_huber_of_one_is_the_plain_huber_loss():
    target, pose = scene().poses[..., :9], torch.randn(2, 5, 9)
    pose[..., 3:] = target[..., 3:]
    loss = losses.camera_loss([pose], target, LossConfig(huber_delta=1.0))
    expected = torch.nn.functional.huber_loss(pose[..., :3], target[..., :3], reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(loss, expected)


def test_losses_are_fp32_for_bf16_predictions():
    targets = scene()
    guess = {name: value.detach().bfloat16() for name, value in guesses(targets).items()}
    assert all(value.dtype == torch.float32 for value in evaluate(guess, targets).values())


@settings(max_examples=25, deadline=None)
@given(scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e6, 1e30]), seed=st.integers(0, 1000), visible=st.floats(0, 1))
def test_losses_and_gradients_are_finite_for_any_finite_prediction(scale, seed, visible):
    targets = scene(seed=seed)
    targets.valid.copy_(torch.rand(targets.valid.shape, generator=torch.Generator().manual_seed(seed)) < visible)
    guess = {
        name: (value.detach() * (1 if "confidence" in name else scale)).requires_grad_()
        for name, value in guesses(targets, seed).items()
    }
    terms = evaluate(guess, targets)
    assert all(torch.isfinite(value).all() for value in terms.values())
    sum(value.sum() for value in terms.values()).backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in guess.values())


def test_the_reference_profile_counts_all_nine_camera_numbers_alike():
    values = read_yaml(RECIPES / "fantasy_world" / "reference.yaml")["model"]["losses"]
    g = torch.Generator().manual_seed(0)
    pose, target = torch.randn(3, 5, 9, generator=g), torch.randn(3, 5, 9, generator=g)
    target[..., 3:7] *= (pose[..., 3:7] * target[..., 3:7]).sum(-1, keepdim=True).sign()  # the nearer of q and -q
    expected = torch.nn.functional.huber_loss(pose, target, reduction="none", delta=1.0).flatten(1).mean(1)
    torch.testing.assert_close(losses.camera_loss([pose], target, LossConfig(**values)), expected)
    slopes = []
    for number in (0, 3, 7):  # a translation, a number of the quaternion, a field of view, off by the same
        moved = target.clone()
        moved[..., number] += 0.01
        slopes.append(losses.camera_loss([moved], target, LossConfig(**values)))
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(slopes[2], slopes[0], rtol=1e-3, atol=0)
