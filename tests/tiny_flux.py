"""A tiny FLUX that has learned to denoise: what a frozen backbone is, and what random weights are not.

With a random backbone the adapters' best move is to shift what stands in boxes, no matter what the references show;
only with one that already denoises does an error in boxes tell what references add.
"""

import math
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from stagecoach.data.streaming.stream import collate
from stagecoach.models.common.noise import FlowMatching
from stagecoach.models.movie_post_production.config import MoviePostConfig
from stagecoach.models.movie_post_production.family import MoviePostProductionFamily
from stagecoach.models.movie_post_production.network import pack
from tests.tiny_movie import TinyMovie

BATCH, LEARNING_RATE, WARMUP = 16, 3e-3, 30


def train_tiny_flux(folder: Path, movie: TinyMovie, config: MoviePostConfig, steps: int) -> float:
    """Plain flow matching of captions, all weights, saved in diffusers' layout. The mean loss of the last 50 steps."""
    schema = MoviePostProductionFamily().schema(config)
    samples = movie.samples(schema)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FluxTransformer2DModel(**config.backbone.diffusers())
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    losses = []
    for step in range(steps):
        chosen = torch.randint(0, len(samples), (BATCH,), generator=generator).tolist()
        batch = collate(schema, [samples.read(i) for i in chosen])
        t = torch.rand(BATCH, generator=generator)
        noise = torch.randn(batch["latent"].shape, generator=generator)
        loss = _loss(model, batch, t, noise)
        rate = min((step + 1) / WARMUP, 1.0) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.save_pretrained(folder)
    return sum(losses[-50:]) / len(losses[-50:])


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
