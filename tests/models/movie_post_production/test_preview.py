"""Previews: ground truth next to a sample from fixed noise, with boxes coloured by alpha."""

import numpy as np
import pytest
import torch

from stagecoach.data.movie_post_production.painted import BLUE, CROP, RED, draw_boxes
from stagecoach.models.metrics.measuring import measure
from stagecoach.models.metrics.pictures import psnr
from stagecoach.models.metrics.weights import Models
from stagecoach.models.movie_post_production.config import MoviePostConfig
from stagecoach.models.movie_post_production.preview import PANEL_HEIGHT, SAMPLED, draw, preview, sampled


@pytest.mark.parametrize("stage", [1, 2])
def test_ground_truth_and_sample_stand_side_by_side_and_do_not_change_by_themselves(
    make_network, make_batch, progress, stage
):
    network = make_network(stage)
    found = preview(network, make_batch([0], stage), progress(stage, 0, False))
    again = preview(network, make_batch([0], stage), progress(stage, 90, False))
    ((key, picture),) = found.items()
    assert key == make_batch([0])["key"][0]
    assert picture.dtype == np.uint8
    assert picture.shape[1] >= 2 * PANEL_HEIGHT
    assert picture.shape[0] >= PANEL_HEIGHT + (2 * CROP if stage == 2 else 0)
    assert np.array_equal(picture, again[key])


def test_boxes_are_red_from_one_half_on_and_blue_below():
    grey = np.full((64, 64, 3), 128, np.uint8)
    picture = draw_boxes(grey, [[0.1, 0.1, 0.4, 0.4], [0.6, 0.6, 0.9, 0.9]], [0.5, 0.49], PANEL_HEIGHT)
    for corner, colour in ((0.1, RED), (0.6, BLUE)):
        at = int(corner * PANEL_HEIGHT)
        assert tuple(picture[at, at + 100]) == colour


def test_references_may_be_shown_in_the_first_steps_only(make_network, make_batch, config, progress):
    samples = {}
    for part in (0.25, 1.0):
        values = config.model_dump()
        values["sampling"]["layout_fraction"] = part
        network = make_network(1, moved=True, changed=MoviePostConfig.model_validate(values))
        found = draw(network, make_batch([0]), progress(1, training=False))
        samples[part] = found.latents
        assert found.alpha.shape == make_batch([0])["boxes"].shape[:2]
    assert not np.allclose(samples[0.25], samples[1.0])


def test_what_is_sampled_is_the_picture_of_the_preview(make_network, make_batch, progress):
    network, batch, done = make_network(2), make_batch([0, 1], 2), progress(2, 0, False)
    pairs = sampled(network, batch, done)
    assert [generated.name for generated, _ in pairs] == batch["key"]
    painted, truth = (done.helpers["vae"](x) for x in (draw(network, batch, done).latents, batch["latent"].float()))
    for b, (generated, true) in enumerate(pairs):
        torch.testing.assert_close(generated.frames[0], ((painted[b] + 1) / 2).float().clamp(0, 1))
        found = measure(generated, true, Models(), SAMPLED)
        total, count = psnr(painted[b][None, None], truth[b][None, None], -1, 1)
        assert found["psnr"] == (pytest.approx(total.item(), rel=1e-4), count.item())
        assert found["lpips"].reason.startswith("torchvision's")
