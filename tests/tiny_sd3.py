"""Stable Diffusion 3 at the tiny size: rendered pictures with captions, a tiny pipeline, shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from stagecoach.data.building.build import build
from stagecoach.data.building.captioned import CaptionedOptions, SyntheticPictures
from stagecoach.data.building.options import BuildOptions
from stagecoach.data.encoding.pipeline_folder import PipelineFolder
from stagecoach.data.stable_diffusion_3.builder import FamilyBuilder
from stagecoach.models.stable_diffusion_3.config import SIZES

FAMILY = "stable_diffusion_3"


@dataclass(frozen=True)
class TinySd3:
    """``shards`` with the splits train and val, and the ``base`` that they were built with, transformer included."""

    shards: Path
    base: Path

    @property
    def model(self) -> dict[str, Any]:
        """Where a recipe's ``model`` finds the frozen parts."""
        return {"base": str(self.base / "transformer"), "vae": str(self.base / "vae")}

    def pipeline(self) -> StableDiffusion3Pipeline:
        """The pipeline of diffusers with all of its parts."""
        encoders = PipelineFolder(self.base).load_text_pipeline(torch.device("cpu"))
        parts = {name: part for name, part in encoders.components.items() if part is not None}
        parts["transformer"] = SD3Transformer2DModel.from_pretrained(self.base / "transformer")
        parts["vae"] = AutoencoderKL.from_pretrained(self.base / "vae")
        return StableDiffusion3Pipeline(**parts, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))


def make_tiny_sd3(folder: Path, pictures: int = 12, side: int = 64, seed: int = 3) -> TinySd3:
    """Pictures of ``side`` x ``side`` pixels, rendered, encoded and stored, and a random transformer."""
    builder, base = FamilyBuilder(), folder / "base"
    builder.write_raw(folder / "raw", pictures, seed, SyntheticPictures(side, side), iter)
    builder.write_encoders(folder / "raw", base, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SD3Transformer2DModel(**SIZES["tiny"].backbone.model_dump()).save_pretrained(base / "transformer")
    job = builder.make_job(folder / "raw", CaptionedOptions(base, ((side, side),), preview=side))
    build(job, folder / "shards", BuildOptions(holdout=0.2))
    return TinySd3(folder / "shards", base)
