"""LoRA of an adapter for ``diffusers.FluxPipeline.load_lora_weights``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stagecoach.models.movie_post_production.config import MoviePostConfig
from stagecoach.models.movie_post_production.lora import lora_state
from stagecoach.models.movie_post_production.network import build_network


def diffusers_lora(config: MoviePostConfig, stage: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA among an adapter's ``tensors``, fp32, its scale in B.

    With ``lora.scope: global`` a pipeline that loads it paints what the trained network paints without references. That
    of scope ``layout_branch`` was trained inside the boxes alone; a pipeline, which knows no boxes, runs the same
    layers with it on the whole picture. Raises ``ValueError`` where the tensors are not all that ``config`` describes.
    """
    network = build_network(config, stage, "meta", torch.float32)
    network.load_state_dict(dict(tensors), strict=False, assign=True)
    state = lora_state(network)
    missing = sorted(name for name, tensor in state.items() if tensor.is_meta)
    if missing:
        raise ValueError(
            f"the adapter lacks {len(missing)} LoRA tensors ({missing[0]}, ...), expected all that its "
            "config describes; was it exported from another size?"
        )
    return state
