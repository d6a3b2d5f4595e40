"""A tiny FLUX that has learned to denoise rendered pictures from their captions."""

from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from stagecoach.data.streaming.stream import collate
from stagecoach.models.common.noise import FlowMatching
from stagecoach.models.movie_post_production.config import MoviePostConfig
from stagecoach.models.movie_post_production.family import MoviePostProductionFamily
from stagecoach.models.movie_post_production.network import pack
from tests.tiny_base import BATCH, new_model, train_base
from tests.tiny_movie import TinyMovie

LEARNING_RATE = 3e-3


def train_tiny_flux(folder: Path, movie: TinyMovie, config: MoviePostConfig, steps: int) -> float:
    """Saved in diffusers' layout. The mean loss of the last 50 steps."""
    schema = MoviePostProductionFamily().schema(config)
    samples = movie.samples(schema)
    model = new_model(FluxTransformer2DModel, config.backbone.diffusers())

    def loss(chosen: list[int], generator: torch.Generator) -> Tensor:
        batch = collate(schema, [samples.read(i) for i in chosen])
        t = torch.rand(BATCH, generator=generator)
        noise = torch.randn(batch["latent"].shape, generator=generator)
        return _loss(model, batch, t, noise)

    reached = train_base(model, loss, len(samples), steps, LEARNING_RATE)
    model.save_pretrained(folder)
    return reached


def _loss(model: FluxTransformer2DModel, batch: dict, t: Tensor, noise: Tensor) -> Tensor:
    latent = batch["latent"].float()
    noised = FlowMatching().mix(latent, noise, t)
    h, w = (side // 2 for side in latent.shape[-2:])
    found = model(
        hidden_states=pack(noised.x),
        encoder_hidden_states=batch["t5"].float(),
        pooled_projections=batch["pooled"].float(),
        timestep=t,
        guidance=torch.ones_like(t),
        img_ids=FluxPipeline._prepare_latent_image_ids(1, h, w, "cpu", torch.float32),
        txt_ids=torch.zeros(batch["t5"].shape[1], 3),
        return_dict=False,
    )[0]
    return (found - pack(noised.target)).square().mean()
