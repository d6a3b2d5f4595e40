"""Latents of tars that others wrote are of the size that networks take, or are refused with the likely cause."""

import io
import tarfile

import numpy as np
import pytest

from stagecoach.data.files import DamagedError
from stagecoach.data.format.shards import read_manifest
from stagecoach.data.maintenance.indexing import index_folder
from stagecoach.data.maintenance.latent_scale import SCALES, LatentSums, check_latent_scale
from stagecoach.data.stable_diffusion_3.schema import stable_diffusion_3_schema

SHIFT, SCALE = 0.1159, 0.3611


def sums(values) -> LatentSums:
    found = LatentSums()
    found.take({"latent": np.asarray(values, np.float32)})
    return found


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (
            "movie_post_production",
            lambda z: z / SCALE + SHIFT,
            r"deviation 2\.77 .*likely the VAE's scale 0\.3611 was not",
        ),
        ("movie_post_production", lambda z: (z - SHIFT) * SCALE, r"0\.361 .*likely the VAE's scale 0\.3611 was twice"),
        ("movie_post_production", lambda z: 70 * z, "deviation 70 .*likely another unit"),
        ("dance_with_music", lambda z: z / 0.18215, r"5\.49 .*likely the VAE's scale 0\.18215 was not applied"),
        (
            "fantasy_world",
            lambda z: 2.5 * z,
            r"deviation 2\.5 .*likely another unit: write the tars again, or give --any-",
        ),
    ],
)
def test_another_size_is_refused_with_its_cause(family, change, message):
    schema = stable_diffusion_3_schema()
    latents = np.random.default_rng(0).normal(size=100_000)
    latents /= latents.std()
    named = type(schema)(family, 1, schema.fields)
    check_latent_scale([sums(latents[:50_000]), sums(latents[50_000:])], named, "here")
    with pytest.raises(DamagedError, match=f"here: latents of standard .*{message}"):
        check_latent_scale([sums(change(latents[:50_000])), sums(change(latents[50_000:]))], named, "here")
    check_latent_scale([sums(change(latents))], type(schema)("of_theirs", 1, schema.fields), "here")


def test_every_family_has_a_scale():
    from stagecoach.data.builders import BUILDERS

    assert set(SCALES) == set(BUILDERS)


def test_indexing_measures_latents_and_takes_others_on_demand(tmp_path):
    """bf16 as its bits; the manifest is not written where the set is refused."""
    random = np.random.default_rng(0)
    latents = (70 * random.normal(size=(16, 8, 8))).astype(np.float32).view(np.uint32) >> 16
    arrays = {
        "latent": latents.astype(np.uint16),
        "prompt_embeds": np.zeros((4, 6), np.uint16),
        "pooled": np.zeros(6, np.uint16),
    }
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            info = tarfile.TarInfo(f"a.{name}.npy")
            info.size = buffer.tell()
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    schema = stable_diffusion_3_schema(6, 6)
    with pytest.raises(DamagedError, match=r"latents of standard deviation [67]\d[.\d]* found, expected 0\.5 to 2"):
        index_folder(tmp_path, schema)
    assert not (tmp_path / "manifest.json").exists()
    index_folder(tmp_path, schema, any_latent_scale=True)
    assert read_manifest(tmp_path).shards[0]["samples"] == 1
