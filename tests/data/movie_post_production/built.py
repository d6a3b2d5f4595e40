"""Data sets that the tests build, and what they hold."""

import numpy as np
import torch

from stagecoach.data.building.build import build
from stagecoach.data.building.options import BuildOptions as GenericOptions
from stagecoach.data.encoding.latent_encoders import LatentEncoder
from stagecoach.data.format.shards import read_manifest
from stagecoach.data.maintenance.check import built_schema, find_sets
from stagecoach.data.movie_post_production import readers
from stagecoach.data.movie_post_production.job import MovieJob
from stagecoach.data.streaming.dataset import ShardSet

PRECOMPUTED = ("latents", "text", "clip", "dino")


def make(raw, output, options, **generic) -> dict:
    """Samples by key."""
    build(MovieJob(raw, options), output, GenericOptions(**{"holdout": 0.3, **generic}))
    return read_all(output)


def read_all(output) -> dict:
    sets = [ShardSet.open(path, built_schema(read_manifest(path))) for path in find_sets(output).values()]
    return {s.key: s for shards in sets for s in (shards.read(i) for i in range(len(shards)))}


def floats(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).view(torch.bfloat16).float()


def write_precomputed(raw, samples, encoders, convention: str) -> None:
    """The guide's folders, from samples that were computed."""
    vae = LatentEncoder(encoders / "vae", torch.device("cpu"))
    for folder in (readers.LATENTS, readers.TEXTS, readers.CLIP_VECTORS, readers.DINO_VECTORS):
        (raw / folder).mkdir(parents=True)
    for sample in samples.values():
        name, latent = sample.meta["image_id"], floats(sample.arrays["latent"])
        latent = {"flux": latent, "raw": latent / vae.scale + vae.shift, "scaled": latent + vae.shift * vae.scale}[
            convention
        ]
        torch.save(latent[None], raw / readers.LATENTS / f"{name}.pt")
        torch.save(
            {
                "t5_text_embeddings": floats(sample.arrays["t5"])[None],
                "global_caption": sample.meta["caption"],
                "clip_pooled_embeddings": floats(sample.arrays["pooled"])[None],
            },
            raw / readers.TEXTS / f"{name}.pt",
        )
        for folder, field in ((readers.CLIP_VECTORS, "clip"), (readers.DINO_VECTORS, "dino")):
            for entry, vector in zip(sample.meta["objects"], sample.arrays[field].astype(np.float32), strict=True):
                owner = entry.get("ref_image_id", name), entry.get("ref_object_id", entry["object_id"])
                np.save(raw / folder / f"{owner[0]}_obj{owner[1]}.npy", (vector / np.linalg.norm(vector)).astype("f2"))
