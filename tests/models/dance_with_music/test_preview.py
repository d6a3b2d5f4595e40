"""Previews: true poses over predicted ones, then drawn frames next to the true ones and the reference, with beats."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stagecoach.data.dance_with_music.dancer import Looks, dancer_points, pose_angles
from stagecoach.data.dance_with_music.picture import BEAT
from stagecoach.data.dance_with_music.song import Song
from stagecoach.models.common.keyed import rng_keys
from stagecoach.models.common.pictures import TITLE
from stagecoach.models.dance_with_music.base import fill_base
from stagecoach.models.dance_with_music.config import SIZES, DanceConfig
from stagecoach.models.dance_with_music.network import build_network
from stagecoach.models.dance_with_music.preview import PANEL, PREDICTED, SAMPLED, TRUE, preview, sampled
from stagecoach.models.dance_with_music.stages import window_frames
from stagecoach.models.family import Progress
from stagecoach.models.metrics.measuring import measure
from stagecoach.models.metrics.metric import Absent
from stagecoach.models.metrics.weights import Models

GUIDANCE = SIZES["tiny"].model_copy(update={"plan": "guidance"})
CASES = {
    "m2p": (SIZES["tiny"], 1),
    "image": (SIZES["tiny"], 2),
    "motion": (SIZES["tiny"], 3),
    "guidance": (GUIDANCE, 1),
    "image-svd": (SIZES["tiny-svd"], 2),
    "motion-svd": (SIZES["tiny-svd"], 3),
}


class Colours:
    """A decoder that shows three of the latent's channels, and remembers what it was given."""

    def __init__(self):
        self.decoded = []

    def __call__(self, latents):
        self.decoded.append(latents.clone())
        return F.interpolate(latents[:, :3].float().tanh(), scale_factor=8.0)


def _network(config: DanceConfig, stage: int):
    network = build_network(config, stage)
    fill_base(network, config, "cpu")
    return network.eval()


def _batch(config: DanceConfig, stage: int, count: int = 2) -> dict:
    """Dancers of the synthetic data set, their points as they are stored."""
    frames = window_frames(config.frames, config.schedules.grown, config.phase(stage), 0, 10, 0)
    g = torch.Generator().manual_seed(1)
    points, beats = [], torch.zeros(count, frames, dtype=torch.uint8)
    for n in range(count):
        song, looks = Song.of(7, n), Looks.of(7, n)
        points.append([dancer_points(pose_angles(song, k / 30), looks, 1.0) for k in range(frames)])
        at = np.rint(song.beat_times(frames / 30) * 30).astype(int)
        beats[n, at[at < frames]] = 1
    h, w = config.picture.latent
    face = F.normalize(torch.randn(count, 2, 512, generator=g), dim=-1)
    return {
        "key": [f"dance_{n}" for n in range(count)],
        "uid": torch.arange(count),
        "rng_key": rng_keys(0, stage, range(count)),
        "window_start": torch.zeros(count, dtype=torch.int64),
        "latents": torch.randn(count, frames, 4, h, w, generator=g).half(),
        "ref_latents": torch.randn(count, 2, 4, h, w, generator=g).half(),
        "ref_frame": torch.tensor([[-1, 0]]).expand(count, 2),
        "ref_clip": torch.randn(count, 2, config.unet.cross_dim, generator=g).half(),
        "ref_arcface": face,
        "ref_arcface_norm": torch.full((count, 2), 20.0),
        "ref_face_valid": torch.ones(count, 2, dtype=torch.uint8),
        "pose_xy": torch.from_numpy(np.array(points) * 65535).round().to(torch.int32),
        "pose_conf": torch.full((count, frames, 134), 242, dtype=torch.uint8),
        "face_box": torch.tensor([0.4, 0.2, 0.6, 0.4]).expand(count, frames, 4).half(),
        "face_valid": torch.ones(count, frames, dtype=torch.uint8),
        "music": torch.randn(count, frames, config.m2p.music_dim, generator=g).half(),
        "beat": beats,
        "onset": torch.rand(count, frames, generator=g).half(),
    }


def _progress(stage: int, step: int = 0, total: int = 10, **helpers) -> Progress:
    return Progress(step, total, stage, 0, training=True, helpers={"vae": Colours(), **helpers})


@pytest.mark.parametrize("case", CASES)
def test_each_sample_has_a_picture_that_does_not_change_by_itself(case):
    config, stage = CASES[case]
    network, batch = _network(config, stage), _batch(config, stage)
    found, again = (preview(network, batch, _progress(stage)) for _ in range(2))
    assert list(found) == batch["key"]
    rows = {"m2p": 2, "guidance": 3}.get(case, 4)
    for key, picture in found.items():
        assert picture.dtype == np.uint8
        assert picture.shape[0] > rows * (PANEL + TITLE)
        assert np.array_equal(picture, again[key])
        # A short window may have no slowest moment.
        assert (picture[-12:-6] == TRUE).all(-1).any() or case != "m2p"
        below = picture[rows * (PANEL + TITLE) :]
        assert (below == BEAT).all(-1).any() == bool(batch["beat"][batch["key"].index(key)].any())


def test_poses_are_drawn_true_over_predicted():
    config = SIZES["tiny"]
    network, batch = _network(config, 1), _batch(config, 1, 1)
    (picture,) = preview(network, batch, _progress(1)).values()
    first = slice(0, PANEL + TITLE)
    with torch.no_grad():
        for parameter in network.m2p.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    (moved,) = preview(network, batch, _progress(1)).values()
    assert np.array_equal(picture[first], moved[first])
    assert not np.array_equal(picture[PANEL + TITLE : 2 * (PANEL + TITLE)], moved[PANEL + TITLE : 2 * (PANEL + TITLE)])
    assert PREDICTED != TRUE


def test_the_drawn_frames_stand_beside_the_reference_that_they_come_from():
    config = SIZES["tiny"]
    network, batch = _network(config, 2), _batch(config, 2, 1)
    batch["ref_frame"] = torch.tensor([[-1, 0]])  # the second is a frame of the window and so is left
    progress = _progress(2)
    decoded = progress.helpers["vae"].decoded
    preview(network, batch, progress)
    true, drawn, reference = decoded
    shown = config.sampling.shown
    assert true.shape == drawn.shape == (shown, 4, 8, 8)
    window = batch["latents"][0].float()
    assert torch.equal(true[0], window[0])
    assert torch.equal(true[-1], window[-1])
    assert torch.equal(reference, batch["ref_latents"][:, 0].float())
    assert not torch.equal(drawn[0], true[0])
    decoded.clear()
    other = batch | {"ref_latents": batch["ref_latents"].flip(-1)}
    preview(network, other, progress)
    assert not torch.allclose(decoded[1], drawn)


def test_every_rank_calls_the_denoiser_as_often_whatever_its_samples_hold():
    config = SIZES["tiny"]
    network, batch = _network(config, 3), _batch(config, 3)
    calls = []
    handle = network.denoising_unet.register_forward_hook(lambda *_: calls.append(1))
    preview(network, batch, _progress(3))
    full = len(calls)
    empty = batch | {
        "ref_face_valid": torch.zeros(2, 2, dtype=torch.uint8),
        "face_valid": torch.zeros_like(batch["face_valid"]),
        "pose_conf": torch.zeros_like(batch["pose_conf"]),
        "beat": torch.zeros_like(batch["beat"]),
    }
    preview(network, empty, _progress(3))
    handle.remove()
    assert full == config.sampling.steps
    assert len(calls) == 2 * full


def test_a_clip_longer_than_the_context_is_sampled_in_several():
    config = SIZES["tiny"].model_copy(
        update={"sampling": SIZES["tiny"].sampling.model_copy(update={"context_length": 4})}
    )
    network, batch = _network(config, 3), _batch(config, 3, 1)
    lengths = []
    handle = network.denoising_unet.register_forward_hook(lambda module, given, out: lengths.append(given[0].shape[1]))
    preview(network, batch, _progress(3))
    handle.remove()
    windows = (2, 3, 2, 3)  # frames 0-3 and 2-5 of 6, and 1-4 where they have moved by one
    assert lengths == [4] * sum(windows)


def test_with_an_arcface_the_faces_are_compared_with_the_reference():
    class Constant(torch.nn.Module):
        def forward(self, faces):
            return torch.ones(len(faces), 512)

    config = SIZES["tiny"]
    batch = _batch(config, 2, 1)
    (silent,) = preview(_network(config, 2), batch, _progress(2)).values()
    (given,) = preview(_network(config, 2), batch, _progress(2, arcface=Constant())).values()
    row = slice(3 * (PANEL + TITLE), 3 * (PANEL + TITLE) + TITLE)
    assert not np.array_equal(silent[row], given[row])
    assert np.array_equal(silent[row.stop :], given[row.stop :])


@pytest.mark.parametrize("case", CASES)
def test_what_is_sampled_are_the_frames_and_poses_that_are_shown(case):
    config, stage = CASES[case]
    network, batch, progress = _network(config, stage), _batch(config, stage), _progress(stage)
    preview(network, batch, progress)
    decoded = progress.helpers["vae"].decoded
    pairs = sampled(network, batch, _progress(stage))
    found = [measure(*pair, Models(), SAMPLED) for pair in pairs]
    known = {name for values in found for name, value in values.items() if not isinstance(value, Absent)}
    poses, frames, motion = {"pose_error_px"}, {"psnr", "ssim"}, {"motion_error", "motion_amount", "motion_amount_true"}
    expected = {"m2p": poses, "guidance": frames | motion, "image": poses | frames}.get(case, poses | frames | motion)
    assert known - {"beat_alignment"} == expected
    assert [true.name for _, true in pairs if true.pose is not None] == batch["key"]
    if case == "motion":
        # The preview decodes some of the frames of all samples, true ones first.
        shown = (Colours()(decoded[1]) + 1) / 2
        count = len(shown) // len(pairs)
        first = torch.stack([shown[0], shown[count - 1]])
        torch.testing.assert_close(pairs[0][0].frames[[0, -1]], first.clamp(0, 1))
