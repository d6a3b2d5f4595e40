"""A run of the toy family as a finished stage leaves it, without training it."""

from pathlib import Path

import torch
import yaml

from stagecoach.models.trainable import trainable_names
from stagecoach.models.weights import AdapterCard
from stagecoach.trainer.adapter import write_adapter
from stagecoach.trainer.recipe import Recipe, load_recipe
from tests.toy import ToyConfig, ToyFamily


def toy_recipe_file(path: Path, run: Path, data: Path | str = "unused", **changes) -> Path:
    stage = {"steps": 100, "global_batch": 8, "micro_batch": 2, "learning_rate": 1e-2}
    values = {
        "family": "toy",
        "size": "tiny",
        "run": str(run),
        "data": str(data),
        "precision": "fp32",
        "attention": "sdpa",
        "stages": {1: stage, 2: stage},
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def finish_stage_one(run: Path, recipe: Recipe | None = None) -> tuple[Path, dict[str, torch.Tensor]]:
    """Write ``recipe.yaml`` and the adapter of stage 1 as its first weights; the adapter and its tensors."""
    recipe = recipe or load_recipe(recipe=toy_recipe_file(run.parent / "toy.yaml", run))
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.yaml").write_text(recipe.dump())
    family, config = ToyFamily(), ToyConfig()
    network = family.build(config, 1, "cpu", torch.float32)
    names = trainable_names(network, family.stages(config)[0])
    tensors = {name: p.detach().clone() for name, p in network.named_parameters() if name in names}
    card = AdapterCard(
        "toy", "tiny", 1, "one", 100, recipe.digest(family), "toy-base", None, "raw", config.model_dump(mode="json")
    )
    write_adapter(run / "stage1" / "adapter", tensors, card)
    return run / "stage1" / "adapter", tensors


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
