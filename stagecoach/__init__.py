"""Stagecoach: a DeepSpeed trainer for diffusion adapters, in stages."""

import logging
from importlib import import_module
from typing import Any

__version__ = "0.2.0"
_PIPELINES = {
    "DanceWithMusicPipeline": "stagecoach.models.dance_with_music.pipeline",
    "FantasyWorldPipeline": "stagecoach.models.fantasy_world.pipeline",
    "MoviePostPipeline": "stagecoach.models.movie_post_production.pipeline",
}

# Where torchao is installed, diffusers, peft and transformers import it, which warns of kernels for other cards.
for _name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Pipelines are imported when they are asked for: they need diffusers and torch."""
    if name in _PIPELINES:
        return getattr(import_module(_PIPELINES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
