"""A tiny Wan that has learned to denoise rendered clips from prompts that do not say where the camera goes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor

from stagecoach.data.streaming.stream import collate
from stagecoach.models.fantasy_world.config import FantasyWorldConfig
from stagecoach.models.fantasy_world.family import FantasyWorldFamily
from stagecoach.models.fantasy_world.step import make_process
from tests.tiny_base import BATCH, new_model, train_base
from tests.tiny_world import TinyWorld

LEARNING_RATE = 2e-3


def train_tiny_wan(folder: Path, world: TinyWorld, config: FantasyWorldConfig, steps: int) -> float:
    """Saved in diffusers' layout. The mean loss of the last 50 steps."""
    schema = FantasyWorldFamily().schema(config)
    samples = world.samples(schema)
    whole = collate(schema, [samples.read(i) for i in range(len(samples))])
    clips, texts = whole["latent"].float(), whole["text"].float()
    texts = F.pad(texts, (0, 0, 0, config.backbone.text_length - texts.shape[1]))
    process = make_process(config.losses)
    model = new_model(WanTransformer3DModel, config.backbone.diffusers())

    def loss(chosen: list[int], generator: torch.Generator) -> Tensor:
        noise = torch.randn(clips[chosen].shape, generator=generator)
        noised = process.mix(clips[chosen], noise, process.level_at(1 - torch.rand(BATCH, generator=generator)))
        found = model(noised.x, noised.level, texts[chosen], return_dict=False)[0]
        return (found - noised.target).square().mean()

    reached = train_base(model, loss, len(samples), steps, LEARNING_RATE)
    model.save_pretrained(folder)
    return reached
