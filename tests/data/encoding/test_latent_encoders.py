"""The encoders of single pictures give what diffusers' pipelines would use."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import StableVideoDiffusionPipeline
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stagecoach.data.encoding.encoders import EncoderError
from stagecoach.data.encoding.image_encoders import PictureEmbedder
from stagecoach.data.encoding.latent_encoders import LatentEncoder

CPU = torch.device("cpu")
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3)).astype(np.uint8)


def sd_vae(**changes) -> AutoencoderKL:
    config = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    return AutoencoderKL(**{**config, **changes})


@pytest.fixture(scope="module")
def svd_vae() -> AutoencoderKLTemporalDecoder:
    torch.manual_seed(1)
    return AutoencoderKLTemporalDecoder(
        block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=1
    )


@pytest.mark.parametrize("kind", ["sd", "svd"])
def test_latents_are_the_scaled_means_of_the_posterior(tmp_path, svd_vae, kind):
    torch.manual_seed(0)
    vae = (sd_vae() if kind == "sd" else svd_vae).eval()
    vae.save_pretrained(tmp_path / "vae")
    encoder = LatentEncoder(tmp_path / "vae", CPU, shifted=False)
    pixels = VaeImageProcessor().preprocess([Image.fromarray(p) for p in PICTURES])
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mean * 0.18215
    found = torch.stack(encoder.encode(PICTURES))
    assert found.shape == (3, 4, 4, 6)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (encoder.scale, encoder.shift) == (0.18215, 0)
    assert type(encoder._vae) is type(vae)


def test_noise_is_added_to_the_pixels_and_not_to_the_latents(tmp_path, svd_vae):
    """As Stable Video Diffusion's pipeline: image + noise in -1..1, then the VAE."""
    svd_vae.eval().save_pretrained(tmp_path / "vae")
    noise = 0.5 * torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(3))
    pixels = VaeImageProcessor().preprocess([Image.fromarray(p) for p in PICTURES]) + noise
    with torch.no_grad():
        expected = svd_vae.encode(pixels).latent_dist.mode() * 0.18215
    encoder = LatentEncoder(tmp_path / "vae", CPU, shifted=False)
    torch.testing.assert_close(torch.stack(encoder.encode(PICTURES, noise)), expected, atol=1e-5, rtol=1e-4)
    mixed = [PICTURES[0], PICTURES[1][:, :32], PICTURES[2]]  # of several sizes, each with its own
    found = encoder.encode(mixed, [noise[0], noise[1][..., :32], noise[2]])
    torch.testing.assert_close(found[2], expected[2], atol=1e-5, rtol=1e-4)


def test_a_vae_of_another_family_is_refused(tmp_path):
    sd_vae(latent_channels=16, shift_factor=0.1).save_pretrained(tmp_path / "flux")
    with pytest.raises(
        EncoderError, match=r"flux: a VAE of 16 channels, stride 8, scale 0\.18215 and shift 0\.1 found"
    ):
        LatentEncoder(tmp_path / "flux", CPU, shifted=False)
    (tmp_path / "wan").mkdir()
    (tmp_path / "wan/config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"}))
    with pytest.raises(
        EncoderError, match=r"wan/config\.json: _class_name is 'AutoencoderKLWan', expected AutoencoderKL or"
    ):
        LatentEncoder(tmp_path / "wan", CPU, shifted=False)
    with pytest.raises(EncoderError, match="none: no such folder"):
        LatentEncoder(tmp_path / "none", CPU)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip") / "image_encoder"
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=24,
    )
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path, model


def test_a_cropped_picture_goes_through_clips_own_processor(clip):
    path, model = clip
    pixels = CLIPImageProcessorPil.from_pretrained(path)(
        images=[Image.fromarray(p) for p in PICTURES], return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        expected = model(pixels).image_embeds
    torch.testing.assert_close(PictureEmbedder(path, CPU, "crop").encode(list(PICTURES)), expected)


def test_a_squashed_picture_is_seen_as_stable_video_diffusion_sees_it(tmp_path):
    """`_encode_image` of its pipeline, which is fixed to 224 pixels."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        patch_size=32,
        projection_dim=16,
    )
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path / "clip")
    CLIPImageProcessorPil().save_pretrained(tmp_path / "clip")
    picture = np.random.default_rng(1).integers(0, 256, (300, 420, 3)).astype(np.uint8)
    pipeline = StableVideoDiffusionPipeline.__new__(StableVideoDiffusionPipeline)
    pipeline.__dict__.update(
        image_encoder=model,
        feature_extractor=CLIPImageProcessorPil(),
        video_processor=VaeImageProcessor(),
        _internal_dict={},
    )
    with torch.no_grad():
        expected = pipeline._encode_image(Image.fromarray(picture), CPU, 1, False)[:, 0]
    found = PictureEmbedder(tmp_path / "clip", CPU, "squash").encode([picture])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_image_encoder_without_its_processor_is_named(clip, tmp_path):
    clip[1].save_pretrained(tmp_path / "alone")
    with pytest.raises(EncoderError, match=r"alone: no preprocessor_config\.json found"):
        PictureEmbedder(tmp_path / "alone", CPU, "crop")
