"""The VAEs' decoders as frozen helpers: equal to diffusers' decode, one sentence where one is missing."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

from stagecoach.models.dance_with_music.config import SIZES
from stagecoach.models.dance_with_music.helpers import AT_ONCE, check_helpers, make_helpers
from stagecoach.models.dance_with_music.identity.arcface import ArcFace

TINY = SIZES["tiny"]
FOUR = {
    "block_out_channels": (32,) * 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 1,
    "scaling_factor": 0.3,
}


def with_weights(random=False, **paths):
    weights = TINY.weights.model_copy(update={name: str(path) for name, path in paths.items()})
    return TINY.model_copy(update={"weights": weights, "allow_random_init": random})


@pytest.fixture(scope="module", params=["image", "video"])
def saved(request, tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param == "image":
            vae = AutoencoderKL(**FOUR, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4)
        else:
            vae = AutoencoderKLTemporalDecoder(**FOUR)
    folder = tmp_path_factory.mktemp(request.param)
    vae.save_pretrained(folder)
    return vae.eval(), folder


def test_frames_are_decoded_as_diffusers_decodes_each(saved):
    vae, folder = saved
    latents = torch.randn(AT_ONCE + 1, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    more = {} if isinstance(vae, AutoencoderKL) else {"num_frames": 1}
    with torch.no_grad():
        expected = torch.cat([vae.decode(z[None] / 0.3, **more).sample for z in latents])
        pixels = make_helpers(with_weights(vae=folder), "cpu", torch.float32)["vae"](latents)
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=1e-4)
    assert pixels.shape == (AT_ONCE + 1, 3, 16, 24)


def test_gradients_pass_to_the_latents_and_not_to_the_weights(saved):
    decoder = make_helpers(with_weights(vae=saved[1]), "cpu", torch.float32)["vae"]
    latents = torch.randn(1, 4, 2, 2).requires_grad_()
    decoder(latents).square().mean().backward()
    assert latents.grad.abs().max() > 0
    assert not any(p.requires_grad for p in decoder.parameters())


def test_a_vae_of_other_latents_is_refused(tmp_path):
    AutoencoderKL(**FOUR, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"16 channels and stride 8 found, .* expected 4 channels"):
        make_helpers(with_weights(vae=tmp_path), "cpu", torch.float32)


def test_a_folder_of_something_else_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ValueError, match=r"config\.json: _class_name is 'UNet2DConditionModel', expected Auto"):
        check_helpers(with_weights(vae=tmp_path))


def test_missing_helpers_are_named_unless_random_ones_are_allowed():
    with pytest.raises(ValueError, match=r"weights\.vae is not set"):
        make_helpers(with_weights(), "cpu", torch.float32)
    assert set(make_helpers(TINY, "cpu", torch.float32)) == {"vae"}
    arcface = TINY.model_copy(update={"losses": TINY.losses.model_copy(update={"id_kind": "arcface"})})
    assert isinstance(make_helpers(arcface, "cpu", torch.float32)["arcface"], ArcFace)
    assert check_helpers(TINY) == "vae not given, arcface not given"


def test_on_the_meta_device_no_file_is_read_and_sizes_are_the_published_ones():
    config = with_weights(vae="nowhere", arcface="nowhere.pth")
    helpers = make_helpers(config, "meta", torch.bfloat16)
    assert sum(p.numel() for p in helpers["arcface"].parameters()) == 65_156_160
    assert all(p.is_meta for helper in helpers.values() for p in helper.parameters())
    assert helpers["vae"](torch.empty(5, 4, 2, 3, device="meta")).shape == (5, 3, 16, 24)
