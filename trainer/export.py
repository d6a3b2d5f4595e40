"""An adapter as one safetensors file that says by itself what it is, or its LoRA as diffusers' pipelines load it."""

import json
from pathlib import Path

import torch

from stagecoach.data.files import atomic_file
from stagecoach.data.tensors import save_tensors
from stagecoach.models import get_family
from stagecoach.trainer.adapter import read_card, read_tensors

EXPORT_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def export_adapter(adapter: Path, output: Path, dtype: str = "bf16", layout: str = "adapter") -> dict[str, str]:
    """Write the tensors of ``adapter`` in ``dtype`` to ``output`` and return the file's metadata: family, size, stage,
    ``config`` (the family's typed config as JSON), and the sha256 of adapter, predecessor, base weights and recipe.
    ``layout`` ``diffusers``: its LoRA alone, under the names that diffusers' pipelines load.

    Raises ``DamagedError`` for an adapter that is not intact, ``ValueError`` where a family has no LoRA.
    """
    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: expected a name that ends in .safetensors")
    card = read_card(adapter)
    metadata = {
        "format": "pt",
        "family": card.family,
        "size": card.size,
        "stage": str(card.stage),
        "stage_name": card.stage_name,
        "steps": str(card.steps),
        "dtype": dtype,
        "layout": layout,
        "config": json.dumps(card.config, sort_keys=True),
        "adapter_sha256": card.sha256,
        "predecessor_sha256": card.predecessor or "",
        "base_sha256": card.base,
        "recipe_sha256": card.recipe,
    }
    found = read_tensors(adapter)
    if layout == "diffusers":
        family = get_family(card.family)
        found = family.diffusers_lora(family.config_type.model_validate(card.config), card.stage, found)
    tensors = {name: tensor.to(EXPORT_DTYPES[dtype]).contiguous() for name, tensor in found.items()}
    with atomic_file(output) as handle:
        # By name, since safetensors writes tensor by tensor into a file but only whole into a handle.
        save_tensors(tensors, handle.name, metadata)
    return metadata
