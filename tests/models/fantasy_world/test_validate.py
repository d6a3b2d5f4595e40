import dataclasses

import numpy as np
import pytest
import torch

from stagecoach.data.fantasy_world.cameras import encode_pose
from stagecoach.data.pictures import turbo
from stagecoach.models.family import Progress
from stagecoach.models.fantasy_world.heads.targets import all_frames, make_targets
from stagecoach.models.fantasy_world.preview import SAMPLED, draw_paths, preview, sampled
from stagecoach.models.fantasy_world.validate import validate
from stagecoach.models.metrics.measuring import measure
from stagecoach.models.metrics.metric import Absent
from stagecoach.models.metrics.weights import Models
from tests.models.fantasy_world.fakes import TINY, FakeNetwork, make_batch

STEP = Progress(step=0, total_steps=10, stage=1, seed=0, training=False)


def statistics_of(batch: dict) -> dict:
    depth = batch["depth"].double()
    poses = encode_pose(batch["extrinsics"], batch["intrinsics"], *depth.shape[-2:])
    return {
        "depth_sum": depth.sum().item(),
        "depth_count": int((depth > 0).sum()),
        "camera_sum": poses.double().sum(0).tolist(),
        "camera_count": len(poses),
    }


def mean(metric) -> float:
    return (metric[0] / metric[1]).item()


def test_geometry_is_read_at_the_last_inference_step_with_camera_given_and_withheld():
    network, batch = FakeNetwork(), make_batch(2)
    metrics = validate(network, batch, STEP, statistics_of(batch))
    given, withheld = network.calls
    for call in (given, withheld):
        torch.testing.assert_close(call["timestep"], torch.full((2,), 92.592593))
        assert torch.equal(call["frames"], all_frames(batch, TINY.clip.frames))
        assert torch.equal(call["latents_noisy"], given["latents_noisy"])
    assert given["camera_given"].all()
    assert not withheld["camera_given"].any()
    truth = batch["depth"].float()
    assert mean(metrics["val_depth_error"]) == pytest.approx((1.5 - truth[truth > 0]).abs().mean().item(), rel=1e-5)
    assert metrics["val_depth_error"][1] == (truth > 0).sum()
    assert "val_diffusion_loss" not in metrics


def test_baselines_are_the_training_means():
    train, held_out = make_batch(3), make_batch(2, first_uid=10)
    metrics = validate(FakeNetwork(), held_out, STEP, statistics_of(train))
    constant = train["depth"][train["depth"] > 0].double().mean().item()
    truth = held_out["depth"].float()
    assert mean(metrics["val_depth_error_baseline"]) == pytest.approx(
        (truth[truth > 0] - constant).abs().mean().item(), rel=1e-4
    )
    poses = [make_targets(b, all_frames(b, TINY.clip.frames)).poses for b in (train, held_out)]
    error = (poses[1] - poses[0].mean(0)).abs()
    assert mean(metrics["val_camera_error_baseline"]) == pytest.approx(error.mean().item(), rel=1e-4)
    assert mean(metrics["val_path_error_baseline"]) == pytest.approx(error[..., :7].mean().item(), rel=1e-4)
    assert mean(metrics["val_fov_error_baseline"]) == pytest.approx(error[..., 7:].mean().item(), abs=1e-6)


def test_sums_over_two_batches_equal_those_of_one():
    batch = make_batch(2)
    statistics = statistics_of(batch)
    whole = validate(FakeNetwork(2), batch, STEP, statistics)
    parts = [validate(FakeNetwork(2), make_batch(1, first_uid=uid), STEP, statistics) for uid in (0, 1)]
    for name, (total, count) in whole.items():
        torch.testing.assert_close(total, parts[0][name][0] + parts[1][name][0], rtol=1e-5, atol=1e-4)
        assert count == parts[0][name][1] + parts[1][name][1]


def test_stage_two_measures_diffusion_at_four_sigmas_with_fixed_noise():
    network, batch = FakeNetwork(2), make_batch(2)
    first = validate(network, batch, dataclasses.replace(STEP, stage=2), statistics_of(batch))
    again = validate(network, batch, dataclasses.replace(STEP, stage=2, step=5), statistics_of(batch))
    assert len(network.calls) == 12
    assert len({call["timestep"][0].item() for call in network.calls[2:6]}) == 4
    assert first["val_diffusion_loss"][1] == 8
    assert torch.equal(first["val_diffusion_loss"][0], again["val_diffusion_loss"][0])


def test_statistics_of_another_clip_length_are_refused():
    batch = make_batch(1)
    statistics = statistics_of(batch)
    statistics["camera_sum"] = statistics["camera_sum"][:-4]
    with pytest.raises(ValueError, match=r"5 frames.* 9 of the held-out clips"):
        validate(FakeNetwork(), batch, STEP, statistics)


def test_preview_gives_one_picture_per_sample_and_withholds_the_camera():
    network, batch = FakeNetwork(), make_batch(2)
    pictures = preview(network, batch, STEP)
    assert list(pictures) == ["scene_0", "scene_1"]
    assert not network.calls[0]["camera_given"].any()
    for picture in pictures.values():
        assert picture.dtype == np.uint8
        assert picture.shape == (2 * (160 + 16), 4 * 240, 3)
        assert picture.std() > 10


def test_preview_survives_a_clip_without_depth_or_picture_and_broken_predictions():
    network, batch = FakeNetwork(), make_batch(1)
    del batch["frame"]
    batch["depth"][:] = 0
    network.scale.data.fill_(torch.nan)
    assert preview(network, batch, STEP)["scene_0"].shape[-1] == 3


def test_turbo_runs_from_blue_over_green_to_red():
    low, middle, high = turbo(np.array([0.1, 0.5, 0.9])).astype(int)
    assert low.argmax() == 2
    assert middle.argmax() == 1
    assert high.argmax() == 0
    assert turbo(np.array([-1.0, 2.0, np.nan])).shape == (3, 3)


def test_path_drawing_moves_up_for_a_camera_that_goes_forward():
    forward = np.stack([np.zeros(5), np.zeros(5), np.linspace(0, 1, 5)], 1)
    picture = draw_paths(forward, forward[:1].repeat(5, 0), 200, 100)
    green = (picture == (40, 160, 60)).all(-1)
    green[:26, :110] = False  # the legend
    rows = np.nonzero(green.any(1))[0]
    assert np.ptp(rows) > 40


def test_what_is_sampled_has_the_numbers_of_validation_and_the_registry_metrics_of_the_family():
    network, batch = FakeNetwork(), make_batch(2)
    pairs = sampled(network, batch, STEP)
    assert not network.calls[0]["camera_given"].any()
    assert [generated.name for generated, _ in pairs] == batch["key"]
    found = [measure(*pair, Models(), SAMPLED) for pair in pairs]
    assert all(set(values) == set(SAMPLED) for values in found)
    # The predicted cameras stand still, so that no similarity takes them to the true ones.
    missing = {name for values in found for name, value in values.items() if isinstance(value, Absent)}
    assert missing == {"ate", "rpe_translation", "rpe_rotation"}
    truth = batch["depth"].float()
    expected = [((1.5 - d[d > 0]).abs() / d[d > 0]).mean().item() for d in truth]
    assert [values["depth_abs_rel"][0] for values in found] == pytest.approx(expected, rel=1e-5)
    same = measure(pairs[0][1], pairs[0][1], Models(), ("rotation_error", "depth_abs_rel"))
    assert same == {"rotation_error": (pytest.approx(0, abs=1e-4), 1.0), "depth_abs_rel": (0.0, 1.0)}
