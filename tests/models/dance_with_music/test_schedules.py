"""The guide's schedules at their boundary steps."""

import pytest

from stagecoach.models.dance_with_music.config import SIZES, DanceConfig, FramesConfig, ScheduleConfig
from stagecoach.models.dance_with_music.family import DanceWithMusicFamily
from stagecoach.models.dance_with_music.stages import (
    condition_scale,
    identity_scale,
    m2p_open,
    motion_frames,
    sampling_ratio,
    window_frames,
)
from tests.tiny_dance import progress_at

TOTAL = 10_000
OWN = ScheduleConfig()


def changed(**values) -> DanceConfig:
    return DanceConfig.model_validate(SIZES["champ-sd15"].model_dump() | values)


@pytest.mark.parametrize(("step", "expected"), [(0, 0), (3000, 0), (8000, 0), (8001, 0.0005), (9000, 0.5), (10_000, 1)])
def test_stage_b_goes_from_the_true_to_the_predicted_pose_over_its_last_fifth(step, expected):
    assert sampling_ratio(OWN, "image", progress_at(step, TOTAL)) == pytest.approx(expected)


@pytest.mark.parametrize("phase", ["motion", "joint"])
def test_later_stages_stay_where_the_sampling_of_stage_b_ends(phase):
    assert sampling_ratio(OWN, phase, progress_at(0, TOTAL)) == 1
    never = ScheduleConfig(sampling=(1.0, 1.0))
    assert (
        sampling_ratio(never, phase, progress_at(0, TOTAL))
        == sampling_ratio(never, "image", progress_at(TOTAL, TOTAL))
        == 0
    )


def test_guidance_training_sees_true_poses_only():
    assert sampling_ratio(OWN, "guidance", progress_at(TOTAL, TOTAL)) == 0


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.5), (1500, 1.0), (3000, 1.5), (3001, 1.5), (8000, 1.5), (10_000, 1.5)]
)
def test_the_guidance_grows_over_three_tenths_of_stage_b(step, expected):
    assert condition_scale(OWN, "image", progress_at(step, TOTAL)) == pytest.approx(expected)
    assert condition_scale(OWN, "motion", progress_at(step, TOTAL)) == 1.5
    assert condition_scale(OWN, "joint", progress_at(step, TOTAL)) == 1.5
    assert condition_scale(OWN, "guidance", progress_at(step, TOTAL)) == 1.0


def test_music_to_pose_opens_at_eight_tenths_of_stage_b():
    config = changed()
    assert [m2p_open(config, "image", progress_at(step, TOTAL)) for step in (0, 7999, 8000, 10_000)] == [
        False,
        False,
        True,
        True,
    ]
    assert m2p_open(config, "m2p", progress_at(0, TOTAL))
    assert not m2p_open(config, "motion", progress_at(TOTAL, TOTAL))
    assert m2p_open(changed(m2p_in_motion=0.01), "motion", progress_at(0, TOTAL))


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 24), (126, 24), (127, 24), (254, 26), (8000, 87 - 1), (15_999, 148), (16_000, 150), (20_000, 150)],
)
def test_windows_of_stage_c_grow_by_step_in_even_numbers(step, expected):
    assert motion_frames(FramesConfig(), 0.8, step, 20_000, 0) == expected


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 24), (9, 24), (10, 25), (100, 34), (1259, 149), (1260, 150), (5000, 150)]
)
def test_the_guides_windows_grow_by_one_in_ten_epochs(epoch, expected):
    assert motion_frames(FramesConfig(growth="epoch"), 0.8, 0, 20_000, epoch) == expected


def test_each_phase_has_its_window():
    frames = FramesConfig()
    assert [
        window_frames(frames, 0.8, phase, 0, 100, 0) for phase in ("m2p", "image", "motion", "joint", "guidance")
    ] == [150, 24, 24, 150, 16]
    family, config = DanceWithMusicFamily(), changed(frames={"stride": 2, "motion": (24, 48)})
    first, last = (family.window(config, 3, step, 1000, 0) for step in (0, 999))
    assert (first.frames, last.frames, first.stride) == (24, 48, 2)


def test_identity_fades_in_where_its_adapters_start_as_copies():
    config = changed(schedules={"identity": 0.1})
    assert [identity_scale(config, "image", progress_at(step, TOTAL)) for step in (0, 500, 1000, 10_000)] == [
        0,
        0.5,
        1,
        1,
    ]
    assert identity_scale(config, "motion", progress_at(0, TOTAL)) == 1
    brought = changed(weights={"identity_adapter": "unet.pth"})
    assert identity_scale(brought, "image", progress_at(0, TOTAL)) == 1
