"""Decoded estimates against the true frames."""

import pytest
import torch
import torch.nn.functional as F

from stagecoach.models.dance_with_music.clip import read_clip, read_references
from stagecoach.models.dance_with_music.config import SIZES
from stagecoach.models.dance_with_music.identity.faces import crop_faces
from stagecoach.models.dance_with_music.metrics import MOST_FRAMES, decoded_metrics
from tests.models.dance_with_music.test_preview import Colours, _batch


class _SmallPicture(torch.nn.Module):
    """A face's vector is its picture, made small."""

    def forward(self, faces):
        return F.interpolate(faces, (13, 13), mode="area").flatten(1)


def _content():
    config = SIZES["tiny"]
    batch = _batch(config, 2)
    return read_clip(batch), read_references(batch, config)


def test_the_true_latents_reach_what_can_be_reached_and_noise_does_not():
    clip, references = _content()
    perfect = decoded_metrics({"vae": Colours()}, clip.latents, clip, references)
    noisy = decoded_metrics({"vae": Colours()}, torch.randn_like(clip.latents), clip, references)
    assert perfect["val_psnr"][0] / perfect["val_psnr"][1] == pytest.approx(100)
    assert noisy["val_psnr"][0] / noisy["val_psnr"][1] < 20
    assert perfect["val_psnr"][1] == 2 * MOST_FRAMES
    assert perfect["val_motion_error"][0] == 0
    still = decoded_metrics({"vae": Colours()}, clip.latents[:, :1].expand_as(clip.latents), clip, references)
    assert still["val_motion_amount"][0] == 0
    assert still["val_motion_amount_true"][0] > 0
    assert "val_identity_cosine" not in perfect


def test_identity_is_that_of_the_references_face():
    clip, references = _content()
    helpers = {"vae": Colours(), "arcface": _SmallPicture()}
    pictures = helpers["vae"](clip.latents[:, 0])
    faces = crop_faces(pictures[:, None], clip.face_box[:, :1], clip.xy[:, :1], clip.conf[:, :1])[:, 0]
    own = type(references)(
        references.latents, references.embedding, _SmallPicture()(faces), references.length, references.has_face
    )
    one = clip.at(torch.zeros(2, 1, dtype=torch.int64))
    found = decoded_metrics(helpers, one.latents, one, own)
    assert found["val_identity_cosine"][0] / found["val_identity_cosine"][1] == pytest.approx(1, abs=1e-4)
    swapped = decoded_metrics(helpers, one.latents.flip(0), one, own)
    assert swapped["val_identity_cosine"][0] < found["val_identity_cosine"][0] - 0.5
    assert swapped["val_identity_cosine_true"][0] == found["val_identity_cosine_true"][0]
    assert "val_motion_error" not in found
