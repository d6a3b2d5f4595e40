"""Latents, text states and vectors that were computed elsewhere: read as they are, what does not fit is named."""

import numpy as np
import pytest
import torch

from stagecoach.data.building.jobs import RawError
from stagecoach.data.format.shards import read_manifest
from stagecoach.data.maintenance.check import built_schema
from stagecoach.data.movie_post_production import readers
from stagecoach.data.streaming.dataset import ShardSet

CPU = torch.device("cpu")
from tests.data.movie_post_production.built import PRECOMPUTED, floats, make, write_precomputed


@pytest.mark.parametrize("convention", ["flux", "raw", "scaled"])
def test_what_is_precomputed_is_read_as_it_is(raw, samples, encoders, options, tmp_path, convention):
    write_precomputed(raw, samples, encoders, convention)
    chosen = options(
        precomputed=PRECOMPUTED, latent_convention=convention, clip=None, dino=None, clip_dim=12, dino_dim=16
    )
    found = make(raw, tmp_path / "out", chosen)
    assert set(found) == set(samples)
    for key, sample in found.items():
        assert "object_text" not in sample.arrays
        np.testing.assert_array_equal(sample.arrays["t5"], samples[key].arrays["t5"])
        np.testing.assert_array_equal(sample.arrays["pooled"], samples[key].arrays["pooled"])
        latents = floats(sample.arrays["latent"]), floats(samples[key].arrays["latent"])
        torch.testing.assert_close(*latents, atol=2e-3, rtol=2**-7)
        for name in ("clip", "dino"):
            np.testing.assert_allclose(sample.arrays[name], samples[key].arrays[name], atol=2e-3)
    manifest = ShardSet.open(tmp_path / "out/train", built_schema(read_manifest(tmp_path / "out/train"))).manifest
    assert {role: entry["name"] for role, entry in manifest.encoders.items()} == dict.fromkeys(
        ("vae", "text_encoder", "text_encoder_2", "image_encoder", "dino"), "precomputed"
    )


SHIFT, SCALE = 0.1159, 0.3611


@pytest.mark.parametrize(
    ("spoil", "convention", "message"),
    [
        (
            lambda z: z * 0.5,
            "flux",
            r"by --latent-convention flux off the one of the picture by 0\.5.*; times 2 it would be",
        ),
        (lambda z: z.flip(-1), "flux", "it was made of another picture, from pixels in 0..1 or by another VAE"),
        (
            lambda z: z / SCALE + SHIFT,
            "flux",
            r"deviation 3\.38.* one by --latent-convention raw, off by 0\.00: give that",
        ),
        (lambda z: z / SCALE + SHIFT, "scaled", "it is one by --latent-convention raw"),
        (lambda z: z, "raw", r"by --latent-convention raw off .*; it is one by --latent-convention flux, off by 0\.00"),
        (
            lambda z: (z - SHIFT) * SCALE,
            "flux",
            r"deviation 0\.44.*the VAE's shift and scale 0\.3611 were applied twice",
        ),
        (
            lambda z: z * 70,
            "flux",
            r"deviation 85\.48.*; times 0\.0143 it would be: write it as --latent-convention says",
        ),
    ],
)
def test_latents_that_are_not_those_of_their_pictures_stop_the_build(
    raw, samples, encoders, options, tmp_path, spoil, convention, message
):
    """Regression D17: half the contrast is what pixels in 0..1 for -1..1 leave. Any scale is named with its cause."""
    write_precomputed(raw, samples, encoders, "flux")
    for path in (raw / readers.LATENTS).iterdir():
        torch.save(spoil(torch.load(path)), path)
    with pytest.raises(RawError, match=message):
        make(raw, tmp_path / "out", options(precomputed=("latents",), latent_convention=convention), skip_bad=True)


def test_one_latent_of_another_scale_among_good_ones_is_named(raw, samples, encoders, options, tmp_path):
    write_precomputed(raw, samples, encoders, "flux")
    path = raw / readers.LATENTS / "scene_00005.pt"
    torch.save(torch.load(path) / SCALE + SHIFT, path)
    with pytest.raises(RawError, match=r"scene_00005\.png: .* it is one by --latent-convention raw"):
        make(raw, tmp_path / "out", options(precomputed=("latents",)), holdout=0.0)


def test_text_states_under_the_guides_earlier_names_are_read(raw, samples, encoders, options, tmp_path):
    write_precomputed(raw, samples, encoders, "flux")
    for path in (raw / readers.TEXTS).iterdir():
        entry = torch.load(path)
        torch.save(
            {"text_embeddings": entry["t5_text_embeddings"], "pooled_embeddings": entry["clip_pooled_embeddings"]}, path
        )
    found = make(raw, tmp_path / "out", options(precomputed=("text",)))
    for key, sample in found.items():
        np.testing.assert_array_equal(sample.arrays["t5"], samples[key].arrays["t5"])
        np.testing.assert_array_equal(sample.arrays["pooled"], samples[key].arrays["pooled"])


def test_precomputed_files_are_found_however_a_mac_spells_them(raw, edit, samples, encoders, options, tmp_path):
    """And objects with texts as ids have vectors of these names."""
    write_precomputed(raw, samples, encoders, "flux")
    composed, apart = "caf\u00e9", "cafe\u0301"
    edit(raw, 1, lambda e: e["objects"][1].update(object_id="caf\u00e9"))
    for path in sorted(p for p in raw.rglob("scene_00001*")):
        name = path.name.replace("scene_00001", composed if path.suffix == ".json" else apart)
        path.rename(path.with_name(name.replace("_obj1.", f"_obj{apart}.")))
    for path in (raw / "captions").iterdir():
        path.write_text(path.read_text().replace("scene_00001", composed))
    given = options(precomputed=PRECOMPUTED, clip=None, dino=None, clip_dim=12, dino_dim=16)
    found = make(raw, tmp_path / "out", given)
    (sample,) = (s for s in found.values() if s.meta["image_id"] == composed)
    np.testing.assert_allclose(sample.arrays["clip"], samples["scene_00001"].arrays["clip"], atol=2e-3)
    assert sample.meta["objects"][1]["object_id"] == composed
