"""Files that are missing, damaged or of another kind are named in one sentence; nothing takes their place (D22)."""

import numpy as np
import pytest
import torch
from PIL import Image

from stagecoach.data.building.jobs import RawError
from stagecoach.data.movie_post_production.captions import read_captions
from stagecoach.data.movie_post_production.readers import (
    latent_path,
    read_finite,
    read_latent,
    read_size,
    read_text,
    read_vector,
)
from stagecoach.data.pictures import read_picture

UNIT = np.eye(12, dtype=np.float32)[3]


def save(path, value):
    if path.suffix == ".npy":
        np.save(path, value)
    else:
        torch.save(value, path)
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_vector_comes_in_single_precision(tmp_path, dtype):
    np.testing.assert_array_equal(read_vector(save(tmp_path / "a.npy", UNIT.astype(dtype)), 12), UNIT)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones(12, np.float32), r"a\.npy: a vector of length 3\.464 found, expected a finite one of length 1"),
        (np.zeros(12, np.float32), "a vector of length 0 found"),
        (UNIT * np.nan, "float32 with numbers that are not finite"),
        (UNIT[:8], r"shape \(8,\) found, expected \(12,\); give its width by --clip-dim"),
        (UNIT[None], r"shape \(1, 12\) found"),
        (UNIT.astype(complex), "complex128 with numbers that are not finite or not real"),
        (np.array(["a"]), "not a .npy file of numbers"),
    ],
)
def test_a_vector_of_another_kind_is_named(tmp_path, value, message):
    with pytest.raises(RawError, match=message):
        read_vector(save(tmp_path / "a.npy", value), 12)


def test_an_array_that_is_cut_or_missing_is_named(tmp_path):
    path = save(tmp_path / "a.npy", np.arange(60.0).reshape(3, 20).T)
    np.testing.assert_array_equal(read_finite(path, "rows"), np.arange(60.0).reshape(3, 20).T)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RawError, match=r"a\.npy: not a \.npy file of numbers"):
        read_finite(path, "rows")
    with pytest.raises(RawError, match=r"b\.npy: not readable \(No such file"):
        read_finite(tmp_path / "b.npy", "rows")


@pytest.mark.parametrize("name", ["a.pt", "a.npy"])
@pytest.mark.parametrize("shape", [(1, 16, 4, 6), (16, 4, 6)])
def test_a_latent_is_read_from_either_kind_of_file(tmp_path, name, shape):
    value = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    folder = tmp_path / "latents/vae_full_images"
    folder.mkdir(parents=True)
    save(folder / name, torch.from_numpy(value) if name == "a.pt" else value)
    found = read_latent(latent_path(tmp_path, "a"), 16)
    np.testing.assert_array_equal(found.numpy(), value.reshape(16, 4, 6).astype(np.float32))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1, 4, 8, 8), r"shape \(1, 4, 8, 8\) found, expected \[1, 16, h, w\]"),
        (torch.zeros(1, 16, 7, 8), "with even h and w"),
        (torch.zeros(2, 16, 8, 8), r"shape \(2, 16, 8, 8\)"),
        (torch.full((16, 8, 8), torch.inf), "'latent' has numbers that are not finite"),
        ({"latent": torch.zeros(16, 8, 8)}, "holds dict, expected one tensor"),
        (Image.new("RGB", (4, 4)), r"not readable by torch\.load with weights_only .* write plain tensors"),
    ],
)
def test_a_latent_of_another_kind_is_named(tmp_path, value, message):
    with pytest.raises(RawError, match=message):
        read_latent(save(tmp_path / "a.pt", value), 16)


def test_a_damaged_latent_is_named(tmp_path):
    path = save(tmp_path / "a.pt", torch.zeros(16, 8, 8))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(RawError, match=r"a\.pt: not readable by torch\.load"):
        read_latent(path, 16)


def text(**changes):
    return {
        "t5_text_embeddings": torch.ones(1, 6, 24, dtype=torch.float16),
        "global_caption": "a ball",
        "clip_pooled_embeddings": torch.ones(1, 20),
        **changes,
    }


def test_text_states_are_those_two_that_flux_takes(tmp_path):
    path = save(tmp_path / "a.pt", text(t5_pooled_embeddings=torch.zeros(1, 24), text_embeddings=torch.zeros(1)))
    t5, pooled = read_text(path, "a ball", 6, 24, 20)
    assert (t5.shape, pooled.shape, t5.dtype) == ((6, 24), (20,), torch.float32)
    assert t5.eq(1).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            text(t5_text_embeddings=torch.ones(1, 4, 24)),
            r"has shape \[1, 4, 24\], expected \[1, 6, 24\]; FLUX takes all",
        ),
        (text(clip_pooled_embeddings=torch.ones(20, 1)), r"'clip_pooled_embeddings' has shape \[20, 1\]"),
        (text(clip_pooled_embeddings=None), "'clip_pooled_embeddings' is NoneType, expected a tensor; found keys"),
        (text(global_caption="a cone"), "made for the caption 'a cone', expected 'a ball'"),
        (text(t5_text_embeddings=torch.full((1, 6, 24), torch.nan)), "'t5_text_embeddings' has numbers that are not"),
        (torch.zeros(3), "holds Tensor, expected t5_text_embeddings"),
    ],
)
def test_text_states_of_another_kind_are_named(tmp_path, value, message):
    with pytest.raises(RawError, match=message):
        read_text(save(tmp_path / "a.pt", value), "a ball", 6, 24, 20)


def test_a_picture_of_another_shape_than_its_boxes_were_drawn_on_is_named(raw, edit):
    edit(raw, 0, lambda e: e.update(width=128, height=128))
    edit(raw, 1, lambda e: e.update(width=128, height=64))
    first, second, *_ = read_captions(raw)[0]
    assert read_size(first) == (64, 64)
    with pytest.raises(RawError, match=r"scene_00001\.png: 64 x 64 pixels found, expected the shape of the 128 x 64"):
        read_size(second)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_damaged_picture_is_named(raw, content):
    path = raw / "images/scene_00000.png"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(RawError, match=r"scene_00000\.png: not readable as a picture"):
        read_picture(path)
