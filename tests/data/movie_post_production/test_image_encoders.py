"""Latents are what FLUX's pipelines work with, vectors what CLIP and DINOv2 give; the tiny ones tell objects apart."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux_img2img import FluxImg2ImgPipeline
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stagecoach.data.encoding.encoders import EncoderError
from stagecoach.data.encoding.image_encoders import ClipEncoder, DinoEncoder
from stagecoach.data.encoding.latent_encoders import PIXELS_AT_ONCE, LatentEncoder
from stagecoach.data.encoding.tiny_vae import tiny_vae
from stagecoach.data.figures import render

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [render(3, i, 64, 64 if i < 4 else 96).image for i in range(6)]


@pytest.fixture(scope="module")
def vae(encoders) -> LatentEncoder:
    return LatentEncoder(encoders / "vae", CPU)


def test_latents_are_those_of_the_flux_pipeline(vae, encoders, pictures):
    """Regression D17: pixels in -1..1, and the shift taken off before the scale. The pipeline draws from the posterior,
    whose deviation the tiny VAE keeps small."""
    model = AutoencoderKL.from_pretrained(encoders / "vae")
    pixels = VaeImageProcessor(vae_scale_factor=16).preprocess(Image.fromarray(pictures[0]))
    pipeline = FluxImg2ImgPipeline.__new__(FluxImg2ImgPipeline)
    object.__setattr__(pipeline, "vae", model)
    with torch.no_grad():
        expected = pipeline._encode_vae_image(pixels, torch.Generator().manual_seed(0))[0]
    found = vae.encode([pictures[0]])[0]
    assert found.shape == (16, 8, 8)
    torch.testing.assert_close(found, expected, atol=0.006, rtol=0)
    with torch.no_grad():
        squeezed = model.encode(pixels / 2 + 0.5).latent_dist.mode()[0] * model.config.scaling_factor
    assert (found - squeezed).square().mean() > 0.4**2 * found.square().mean(), "as the guide's code made them"


def test_pictures_of_several_sizes_come_back_in_order(vae, pictures):
    found = vae.encode([pictures[4], *pictures[:3], pictures[5]])
    assert [tuple(f.shape[1:]) for f in found] == [(8, 12), (8, 8), (8, 8), (8, 8), (8, 12)]
    for latent, picture in zip(found, [pictures[4], *pictures[:3], pictures[5]], strict=True):
        torch.testing.assert_close(latent, vae.encode([picture])[0], atol=1e-4, rtol=0)


def test_large_pictures_are_encoded_one_by_one(vae, monkeypatch):
    seen = []
    encode = vae._vae.encode
    monkeypatch.setattr(vae._vae, "encode", lambda batch: seen.append(len(batch)) or encode(batch[..., :8, :8]))
    side = int(PIXELS_AT_ONCE**0.5) // 2
    vae.encode([np.zeros((side, side, 3), np.uint8)] * 5)
    assert seen == [4, 1]


def test_the_tiny_vae_gives_held_out_pictures_back(encoders, vae):
    """Better than colours averaged over its 8 x 8 blocks; its latents have mean 0 and deviation 1, as FLUX's nearly."""
    held_out = np.stack([render(9, i, 64, 64).image for i in range(6)])
    pixels = torch.from_numpy(held_out).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = torch.stack(vae.encode(list(held_out)))
    with torch.no_grad():
        error = (vae._vae.decode(latents / vae.scale + vae.shift).sample - pixels).abs().mean()
    blocks = torch.nn.functional.avg_pool2d(pixels, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert error < (blocks - pixels).abs().mean()
    assert latents.mean().abs() < 0.15
    assert 0.7 < latents.std() < 1.3


def test_gradients_reach_the_latent_through_the_tiny_decoder_and_dino(encoders):
    """What the identity loss needs."""
    model = AutoencoderKL.from_pretrained(encoders / "vae").requires_grad_(False)
    dino = Dinov2Model.from_pretrained(encoders / "dino").eval().requires_grad_(False)
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    picture = model.decode(latent / model.config.scaling_factor + model.config.shift_factor).sample
    crop = torch.nn.functional.interpolate(picture[..., :32, :32], (28, 28), mode="bicubic", antialias=True)
    dino(crop).last_hidden_state[:, 0, 0].sum().backward()
    assert latent.grad[..., :4, :4].abs().min() > 0
    assert latent.grad[..., 6:, 6:].abs().max() < 1e-5 * latent.grad.abs().max(), "norms see the whole picture, barely"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift_factor": None}, "shift None found, expected stride 8, a scale and a shift as FLUX's"),
        ({"block_out_channels": (2, 2, 34)}, "stride 4, .* found, expected stride 8"),
    ],
)
def test_a_vae_of_another_kind_is_refused(tmp_path, changes, message):
    given = {"block_out_channels": (2, 2, 2, 2), "norm_num_groups": 1, "shift_factor": 0.1, **changes}
    levels = len(given["block_out_channels"])
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, **given
    ).save_pretrained(tmp_path / "vae")
    with pytest.raises(EncoderError, match=message):
        LatentEncoder(tmp_path / "vae", CPU)


@pytest.mark.parametrize(("encoder", "name"), [(ClipEncoder, "image_encoder"), (DinoEncoder, "dino")])
def test_vectors_are_those_of_the_library(encoders, crops, encoder, name):
    """Pixels standardised as the library's processors do, the projected embedding or the class token, length 1."""
    found = torch.stack(encoder(encoders / name, CPU).encode(list(crops)))
    images = [Image.fromarray(crop) for crop in crops]
    with torch.no_grad():
        if encoder is ClipEncoder:
            pixels = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)(images, return_tensors="pt")
            expected = CLIPVisionModelWithProjection.from_pretrained(encoders / name).eval()(**pixels).image_embeds
        else:
            pixels = BitImageProcessorPil(
                size={"shortest_edge": 28},
                crop_size=28,
                do_convert_rgb=True,
                image_mean=[0.485, 0.456, 0.406],
                image_std=[0.229, 0.224, 0.225],
            )(images, return_tensors="pt")
            expected = Dinov2Model.from_pretrained(encoders / name).eval()(**pixels).pooler_output
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(crops)))


def test_sizes_are_known_without_loading(encoders, tmp_path):
    assert ClipEncoder.sizes(encoders / "image_encoder") == (28, 12)
    assert DinoEncoder.sizes(encoders / "dino") == (28, 16)
    Dinov2Config(hidden_size=1024, image_size=518).save_pretrained(tmp_path / "large")
    assert DinoEncoder.sizes(tmp_path / "large") == (224, 1024), "518 is what the weights name"
    CLIPVisionConfig(image_size=336, patch_size=14, projection_dim=768).save_pretrained(tmp_path / "clip")
    assert ClipEncoder.sizes(tmp_path / "clip") == (336, 768), "CLIP takes its own size only"
    with pytest.raises(EncoderError, match="gone: no such folder"):
        DinoEncoder.sizes(tmp_path / "gone")


def test_dino_interpolates_its_positions_to_smaller_crops(tmp_path):
    Dinov2Model(
        Dinov2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=518, patch_size=14
        )
    ).save_pretrained(tmp_path / "dino")
    encoder = DinoEncoder(tmp_path / "dino", CPU)
    assert encoder.encode([np.zeros((encoder.size, encoder.size, 3), np.uint8)])[0].shape == (16,)


def test_the_folder_of_a_whole_clip_serves(tmp_path, crops):
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 10,
    }
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 20,
        "projection_dim": 10,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)).save_pretrained(tmp_path / "clip")
    encoder = ClipEncoder(tmp_path / "clip", CPU)
    assert (encoder.size, encoder.dim) == (28, 10)
    assert encoder.encode(list(crops[:2]))[0].shape == (10,)


def test_weights_without_a_projection_are_refused(encoders, tmp_path):
    """The library would make one up at random."""
    shutil.copytree(encoders / "image_encoder", tmp_path / "clip")
    CLIPVisionModel.from_pretrained(encoders / "image_encoder").save_pretrained(tmp_path / "clip")
    with pytest.raises(EncoderError, match=r"clip: no weights found for \['visual_projection"):
        ClipEncoder(tmp_path / "clip", CPU)


@pytest.mark.parametrize(("encoder", "name"), [(ClipEncoder, "image_encoder"), (DinoEncoder, "dino")])
def test_tiny_vectors_tell_one_object_from_another(encoders, crops, encoder, name):
    """Crops 2k and 2k + 1 show the same object at two places."""
    vectors = torch.stack(encoder(encoders / name, CPU).encode(list(crops)))
    cosines = vectors @ vectors.T
    same = cosines[torch.arange(0, 8, 2), torch.arange(1, 8, 2)].mean()
    other = cosines[::2, 1::2][~torch.eye(4, dtype=torch.bool)].mean()
    assert same > other + 0.3


def test_a_seed_gives_the_same_tiny_vae(pictures):
    pixels = torch.from_numpy(np.stack(pictures[:3])).permute(0, 3, 1, 2).float() / 127.5 - 1
    one, two = (tiny_vae(pixels, 1, "flux").state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
