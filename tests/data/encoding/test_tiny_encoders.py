"""The tiny encoders are of the real ones' classes, and the VAE keeps what a picture shows."""

import numpy as np
import pytest
import torch

from stagecoach.data.dance_with_music.synthetic import render_dance
from stagecoach.data.encoding.image_encoders import ClipEncoder, PictureEmbedder
from stagecoach.data.encoding.latent_encoders import LatentEncoder
from stagecoach.data.encoding.tiny_encoders import write_sd_encoders
from stagecoach.data.encoding.tiny_vae import tiny_vae
from stagecoach.data.files import sha256_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def videos() -> np.ndarray:
    return np.stack([render_dance(0, k, 4, 64, 64).video for k in range(9)])


@pytest.fixture(scope="module")
def encoders(videos, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "encoders"
    write_sd_encoders(path, videos[0], np.random.default_rng(0).integers(0, 255, (3, 112, 112, 3)).astype(np.uint8), 0)
    return path


def pixels(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_the_vae_gives_held_out_pictures_back(videos):
    """Better than colours averaged over its 8 x 8 blocks; and its latents are near unit size."""
    vae = tiny_vae(pixels(videos[:8].reshape(-1, 64, 64, 3)), 0, "sd")
    held = pixels(videos[8])
    with torch.no_grad():
        latents = vae.encode(held).latent_dist.mode()
        error = (vae.decode(latents).sample - held).square().mean()
        drawn = vae.encode(held).latent_dist.sample()
    blocks = torch.nn.functional.avg_pool2d(held, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert error < 0.95 * (blocks - held).square().mean()
    assert 0.5 < float((latents * vae.config.scaling_factor).std()) < 1.5
    torch.testing.assert_close(drawn, latents, atol=1e-4, rtol=0)


def test_the_vae_is_linear_in_spite_of_norm_and_activation(videos):
    vae = tiny_vae(pixels(videos[:8].reshape(-1, 64, 64, 3)), 0, "sd")
    one, other = pixels(videos[8, :1]), pixels(videos[3, :1])
    with torch.no_grad():
        mixed, a, b = (vae.encode(x).latent_dist.mode() for x in (0.3 * one + 0.7 * other, one, other))
    torch.testing.assert_close(mixed, 0.3 * a + 0.7 * b, atol=5e-3, rtol=0)


def test_the_builders_encoders_load_them(encoders, videos):
    vae = LatentEncoder(encoders / "vae", CPU, shifted=False)
    assert torch.stack(vae.encode(videos[0])).shape == (4, 4, 8, 8)
    clip = PictureEmbedder(encoders / "image_encoder", CPU, "crop")
    assert clip.encode(list(videos[0])).shape == (4, ClipEncoder.sizes(encoders / "image_encoder")[1])


def test_a_seed_gives_the_same_files(tmp_path, videos):
    faces = np.random.default_rng(0).integers(0, 255, (3, 112, 112, 3)).astype(np.uint8)
    for name in ("one", "two"):
        write_sd_encoders(tmp_path / name, videos[0], faces, seed=1)
    for part in ("vae/diffusion_pytorch_model.safetensors", "image_encoder/model.safetensors", "arcface.onnx"):
        assert sha256_file(tmp_path / "one" / part) == sha256_file(tmp_path / "two" / part)


def test_real_encoders_are_never_replaced_by_tiny_ones(tmp_path, videos):
    (tmp_path / "vae").mkdir()
    with pytest.raises(ValueError, match=r"holds something else than tiny_encoders\.json"):
        write_sd_encoders(tmp_path, videos[0], np.zeros((1, 112, 112, 3), np.uint8), seed=0)
    with pytest.raises(ValueError, match="no face found to fit the tiny face encoder"):
        write_sd_encoders(tmp_path / "new", videos[0], np.zeros((0, 112, 112, 3), np.uint8), seed=0)
