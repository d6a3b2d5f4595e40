"""The DeepSpeed JSON that a recipe names: what it may hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from stagecoach.data.reading import read_regular
from stagecoach.trainer.settings import RecipeError

if TYPE_CHECKING:
    from stagecoach.trainer.recipe import Recipe

OWNED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
    "optimizer",
    "scheduler",
    "gradient_clipping",
)
"""Keys of a DeepSpeed config that the recipe decides; in the JSON file they would be a second truth."""


def read_ds_config(recipe: Recipe) -> dict[str, Any]:
    """The DeepSpeed JSON of a recipe. Raises ``RecipeError`` where it is unreadable, decides what the recipe decides,
    is of another ZeRO stage, or offloads the optimizer where checkpoints do not find it."""
    path = recipe.deepspeed_file()
    try:
        config = json.loads(read_regular(path))
        zero = config.get("zero_optimization", {})
        found, offload = zero.get("stage"), zero.get("offload_optimizer", {})
        ratio, device = offload.get("ratio", 1.0), offload.get("device", "none")
    except (ValueError, AttributeError, RecursionError) as error:
        raise RecipeError(
            f"{path}: not a DeepSpeed config ({error}), expected a JSON object like those in ds_configs/"
        ) from error
    owned = [key for key in OWNED if key in config]
    if owned:
        raise RecipeError(f"{path}: holds {', '.join(owned)}, which the recipe decides; expected none of them there")
    if found != recipe.zero:
        raise RecipeError(
            f"{path}: zero_optimization.stage is {found}, expected {recipe.zero} as the recipe's `zero` "
            "says; make them agree"
        )
    if ratio != 1.0 or device == "nvme":
        raise RecipeError(
            f"{path}: offload_optimizer has device {device} and ratio {ratio}, expected cpu and 1.0; a checkpoint "
            "cannot hold an optimizer that is split or on a disk"
        )
    return config
