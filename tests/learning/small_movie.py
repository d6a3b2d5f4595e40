"""A small MoviePostProduction that has learned to put what a reference shows into a box, for tests and figures.

The pictures hold one or two plain objects near the camera, and their captions do not say what these look like: that is
the references' to tell. The base learns to paint such pictures, which takes a minute; stage 2 learns from no adapter,
layout and modulation at once, without the identity loss (a random tiny DINOv2 is pleased by what is no picture).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stagecoach import MoviePostPipeline
from stagecoach.data.figures import COLOURS, Identity, Variety
from stagecoach.models.common.keyed import request_generators
from stagecoach.models.movie_post_production.config import SIZES, MoviePostConfig
from tests.learning.scripts import train
from tests.tiny_flux import train_tiny_flux
from tests.tiny_movie import FAMILY, make_tiny_movie

SIDE = 64
PICTURES, BASE_STEPS, STEPS = 500, 500, 250
VARIETY = Variety(least=1, most=2, far=4.4, patterns=("plain",), described=False)
PROMPT = "a thing in front, on stone before a grey wall"
"""As the captions of the pictures are."""
LEFT, RIGHT = (0.0, 0.375, 0.5, 0.875), (0.5, 0.375, 1.0, 0.875)
"""Boxes."""
SETTINGS = {
    "zero": 1,
    "ds_config": "null",
    "precision": "fp32",
    "activation_checkpointing": "none",
    "logging.wandb": "off",
    "logging.every": 50,
    "validation_samples": 4,
    "preview_samples": 0,
    "model.backbone.heads": 4,
    "model.layout.double_blocks": "[0,1,2,3]",
    "model.layout.single_blocks": "[0,1]",
    "model.lora.rank": 16,
    "model.lora.alpha": 16,
    "model.instance.reference_dropout": 0,
    "model.instance.layout_dropout": 0,
    "model.instance.text_dropout": 0.5,
    "model.losses.identity_weight": 0,
    "model.losses.identity.crops": 1,
    "stages.2.learning_rate": 5e-3,
    "stages.2.micro_batch": 8,
    **{f"stages.2.{name}": STEPS for name in ("steps", "checkpoint_every", "validate_every", "preview_every")},
}


@dataclass(frozen=True)
class SmallMovie:
    adapter: Path
    base: Path
    encoders: Path

    def pipeline(self) -> MoviePostPipeline:
        vision = {name: self.encoders / name for name in ("image_encoder", "dino")}
        pipeline = MoviePostPipeline.from_adapter(self.adapter, base=self.base, flux=self.encoders, **vision)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def painter(self, samples: int, steps: int = 12) -> Callable[..., np.ndarray]:
        """``paint(*objects)``: pictures [samples, H, W, 3] in 0..1, of the same noise each time."""
        pipeline = self.pipeline()

        def paint(*objects: dict) -> np.ndarray:
            return pipeline(
                PROMPT,
                objects=list(objects) or None,
                num_inference_steps=steps,
                guidance_scale=1.0,
                max_sequence_length=32,
                num_images_per_prompt=samples,
                generator=request_generators(0, "boxes", range(samples)),
                output_type="np",
            ).images

        return paint


def train_small_movie(folder: Path) -> SmallMovie:
    movie = make_tiny_movie(folder / "data", PICTURES, SIDE, holdout=0.05, variety=VARIETY)
    values = SIZES["tiny"].model_dump()
    values["backbone"]["heads"] = SETTINGS["model.backbone.heads"]
    train_tiny_flux(folder / "flux", movie, MoviePostConfig.model_validate(values), BASE_STEPS)
    settings = SETTINGS | {"model.base": folder / "flux", **{f"model.{k}": v for k, v in _helpers(movie).items()}}
    where = ("--family", FAMILY, "--profile", "demo", "--data", movie.shards, "--init", "base")
    train("stage2.py", folder / "run", settings, *where)
    return SmallMovie(folder / "run" / "stage2" / "adapter", folder / "flux", movie.encoders)


def _helpers(movie) -> dict[str, Path]:
    return {"vae.base": movie.encoders / "vae", "dino.base": movie.encoders / "dino"}


def photo(colour: str, shape: str = "ball", side: int = SIDE) -> np.ndarray:
    """A reference: a plain object that fills the picture, uint8 [side, side, 3]."""
    y, x = np.mgrid[:side, :side] + 0.5
    a, b = 2 * x / side - 1, 1 - 2 * y / side
    thing = Identity(shape, "plain", (colour, colour))
    picture, mask = np.full((side, side, 3), 0.7), thing.mask(a, b)
    picture[mask] = thing.colour(a[mask], b[mask])
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def placed(colour: str, box: tuple[float, ...]) -> dict:
    """An object of a request."""
    words = {"category_name": "thing", "caption": "a thing", "depth_label": "foreground"}
    return {"bbox": list(box), "reference": photo(colour), **words}


def colour_of(name: str) -> np.ndarray:
    return np.array(COLOURS[name])
