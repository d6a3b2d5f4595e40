"""A family that only declares itself, and a recipe for it: what recipe, command line, monitor and report see."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import yaml
from pydantic import Field

from stagecoach import models
from stagecoach.data.format.schema import SampleSchema
from stagecoach.models.common.config import Section
from stagecoach.models.family import ExitCriterion, Family, LossTerm, Schedule, StageSpec
from stagecoach.trainer.reporting.logs import RunLog, Terminal


class ClipConfig(Section):
    frames: int = Field(9, ge=1)


class DeclaredConfig(Section):
    clip: ClipConfig = ClipConfig()
    dropout: float = 0.1


class DeclaredFamily(Family):
    name = "declared"
    config_type = DeclaredConfig
    sizes: ClassVar = {"tiny": DeclaredConfig(), "large": DeclaredConfig(clip=ClipConfig(frames=81))}

    def stages(self, config):
        geometry = (LossTerm("depth", Schedule(1.0)), LossTerm("camera", Schedule(3.0)))
        return (
            StageSpec(1, "bridge", (), geometry, (ExitCriterion("depth_loss", 0.1),)),
            StageSpec(2, "unified", (), (*geometry, LossTerm("diffusion", Schedule(1.0)))),
        )

    def _unused(self, *arguments, **named):
        raise AssertionError("only the declaration is used here")

    def schema(self, config):
        return SampleSchema("declared", 1, ())

    build = open_base = load_base = check_base = recompute_units = example_sizes = validate = _unused


@pytest.fixture(autouse=True)
def no_log_handlers_stay() -> Iterator[None]:
    yield
    for handler in [one for one in logging.getLogger().handlers if isinstance(one, Terminal | RunLog)]:
        logging.getLogger().removeHandler(handler)
    logging.captureWarnings(False)


@pytest.fixture
def declared_family(monkeypatch: pytest.MonkeyPatch) -> type[Family]:
    module = ModuleType("declared_family")
    module.DeclaredFamily = DeclaredFamily
    monkeypatch.setitem(sys.modules, "declared_family", module)
    monkeypatch.setitem(models.FAMILIES, "declared", "declared_family:DeclaredFamily")
    return DeclaredFamily


@pytest.fixture
def recipe_values(declared_family) -> dict:
    stage = {"steps": 100, "global_batch": 4, "learning_rate": 1e-5}
    return {
        "family": "declared",
        "size": "tiny",
        "data": "shards",
        "run": "runs/here",
        "logging": {"wandb": "off", "tensorboard": False},
        "stages": {1: stage, 2: dict(stage)},
    }


@pytest.fixture
def recipe_file(recipe_values: dict, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    return path
