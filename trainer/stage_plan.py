"""A stage of a recipe, resolved once: its family, the family's typed config and declaration, and the batching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import BaseModel
from torch import nn

from stagecoach.data.format.schema import SampleSchema
from stagecoach.data.streaming.stream import Batching
from stagecoach.data.streaming.windows import Window
from stagecoach.models import get_family
from stagecoach.models.family import Family, Progress, StageSpec
from stagecoach.trainer.recipe import Recipe, StageRecipe

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class StagePlan:
    """What the trainer asks of a recipe in one stage."""

    recipe: Recipe
    stage: StageRecipe
    family: Family
    config: BaseModel
    specs: tuple[StageSpec, ...]
    """The stages of the family at this config, in order."""
    spec: StageSpec
    index: int
    schema: SampleSchema
    dtype: torch.dtype
    """Of the frozen weights, and of the trained ones in use."""
    batching: Batching

    @classmethod
    def resolve(cls, recipe: Recipe, index: int, world_size: int | None = None) -> StagePlan:
        """The plan of stage ``index`` on ``world_size`` ranks (None: as many as take one micro-batch each).

        Raises ``ValueError`` where the recipe or its family has no such stage, or the ranks do not divide the batch.
        """
        family = get_family(recipe.family)
        config, stage = recipe.family_config(family, index), recipe.stages[index]
        specs = family.stages(config)
        spec = next((spec for spec in specs if spec.index == index), None)
        if spec is None:
            known = [spec.index for spec in specs]
            raise ValueError(
                f"family {recipe.family} at size {recipe.size} has no stage {index}, expected one of {known}"
            )
        ranks = world_size or max(1, stage.global_batch // stage.micro_batch)
        try:
            batching = Batching(stage.global_batch, stage.micro_batch, ranks)
        except ValueError as error:
            raise ValueError(f"stage {index}: {error}") from error
        return cls(
            recipe=recipe,
            stage=stage,
            family=family,
            config=config,
            specs=specs,
            spec=spec,
            index=index,
            schema=family.schema(config),
            dtype=DTYPES[recipe.precision],
            batching=batching,
        )

    def helpers(self, device: torch.device | str) -> dict[str, nn.Module]:
        """The frozen models outside of the network, on ``device``."""
        return self.family.helpers(self.config, self.index, device, self.dtype)

    def progress(self, step: int, helpers: Mapping[str, nn.Module], training: bool = True) -> Progress:
        return Progress(step, self.stage.steps, self.index, self.recipe.seed, training, helpers)

    def window(self, step: int, samples: int) -> Window | None:
        """The window of optimizer step ``step`` in a training set of so many ``samples``."""
        epoch = step * self.stage.global_batch // samples
        return self.family.window(self.config, self.index, step, self.stage.steps, epoch)
