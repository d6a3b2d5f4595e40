"""The recipe: everything that a run is made from, typed, checked in one place, and written down in full.

A recipe file overlays the defaults below, ``--set a.b=c`` overlays the file. ``model`` (and ``stages.N.model`` for one
stage) overlays the config of the family's size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from stagecoach.data.files import sha256_json
from stagecoach.data.paths import expand_path
from stagecoach.data.stores.storage import CacheOptions
from stagecoach.data.streaming.mixture import Source, check_weights
from stagecoach.models import get_family
from stagecoach.models.common.config import PathText, Section
from stagecoach.models.family import Family
from stagecoach.models.metrics.metric import SAMPLED, Metric
from stagecoach.models.metrics.registry import METRICS
from stagecoach.models.metrics.weights import WHAT
from stagecoach.trainer.ds_config import read_ds_config
from stagecoach.trainer.redact import redact_values
from stagecoach.trainer.settings import (
    RecipeError,
    check_keys,
    did_you_mean,
    dotted,
    explain,
    nest,
    overlay,
    parse_override,
    read_yaml,
)
from stagecoach.trainer.watch.recipe import WatchRecipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "launch" / "recipes"
DS_CONFIGS = ROOT / "ds_configs"


Fraction = Annotated[float, Field(ge=0, lt=1)]


class OptimizerRecipe(Section):
    """AdamW. ``torch_adam`` takes PyTorch's instead of DeepSpeed's FusedAdam (on a CPU only with it is a resumed run
    equal to the uninterrupted one to the last digit)."""

    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    torch_adam: bool = False


class CheckpointRecipe(Section):
    asynchronous: bool = False
    """Training goes on while a checkpoint is written; host memory holds a copy of it."""


class EmaRecipe(Section):
    """Moving average of the trainable weights: ``ema += (1 - decay) * (weights - ema)`` after each step."""

    decay: float = Field(gt=0, lt=1)


class LoggingRecipe(Section):
    """``every`` is in optimizer steps. W&B ``online`` without a key is ``offline``."""

    every: int = Field(10, ge=1)
    tensorboard: bool = True
    wandb: Literal["off", "offline", "online"] = "online"
    project: str = "stagecoach"


class ValidationRecipe(Section):
    """What is measured on held-out samples: ``metrics``, names of the family's own (``val_...``) and of those that what
    it samples has (``psnr``, logged as ``val_sampled_psnr``; docs/evaluation.md); None is all of its own.

    ``weights``: local files and folders of the networks that metrics look through (``lpips``, ``clip``, ...).
    """

    metrics: list[str] | None = None
    samples: int | None = Field(None, ge=0, description="held-out samples; None: validation_samples")
    every: int | None = Field(None, ge=1, description="optimizer steps; None: the stage's validate_every")
    weights: dict[str, PathText] = Field(default_factory=dict)


class DataSetRecipe(Section):
    """Shards by folder or URL. ``weight``: their share of the samples; without one, each sample of all sets comes once
    per epoch. ``unknown_encoders``: they may be mixed with others although they do not say what encoded them."""

    path: PathText = Field(min_length=1)
    weight: float | None = Field(None, gt=0)
    unknown_encoders: bool = False


class EncoderRecipe(Section):
    """What a manifest must say of an encoder; ``sha256`` may be its beginning."""

    name: str | None = None
    sha256: str | None = Field(None, pattern="^[0-9a-f]{8,64}$")
    dtype: str | None = None
    input: str | None = None


class CacheRecipe(Section):
    """Whole shards of remote data sets on a local disk, shared by the ranks of a node."""

    directory: PathText = Field(min_length=1)
    gigabytes: float = Field(100.0, gt=0)


class StreamRecipe(Section):
    """How the shards are read. ``drop_last`` and ``active_shards`` are part of the order, the rest is not."""

    drop_last: bool = Field(False, description="leave out samples that do not fill a batch at the end of an epoch")
    active_shards: int = Field(0, ge=0, description="shards that are read from at a time; 0 is all of them")
    bad_samples: float = Field(
        0.001, ge=0, lt=1, description="part of the data set that may be damaged, and is replaced"
    )
    cache: CacheRecipe | None = None
    workers: int = Field(2, ge=1, description="reading threads of a rank")
    prefetch: int = Field(2, ge=1, description="micro-batches that each of them reads ahead")
    timeout: float = Field(600.0, gt=0, description="seconds that a batch may take before the run gives up")


class StageRecipe(Section):
    """One stage. Steps are optimizer steps, ``global_batch`` is in samples, ``micro_batch`` is the most that one rank
    takes at once (accumulation follows from it)."""

    steps: int = Field(ge=1)
    global_batch: int = Field(ge=1)
    micro_batch: int = Field(1, ge=1)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_lr_fraction: float = Field(0.0, ge=0, le=1)
    gradient_clipping: float = Field(1.0, ge=0, description="largest global gradient norm; 0 is off")
    gradient_check_steps: int | None = Field(
        None,
        ge=1,
        description="steps within which each trainable tensor must have had a gradient; None: 5 % of the stage, from 3 "
        "to 50; a stage of less than 3 that is shorter is not checked",
    )
    loss_weights: dict[str, Annotated[float, Field(ge=0)]] = Field({}, description="instead of the family's, by name")
    model: dict[str, Any] = Field({}, description="overlay on the family's config in this stage")
    data: PathText | list[DataSetRecipe] = Field("", description="shards of this stage alone, instead of the recipe's")
    checkpoint_every: int = Field(1000, ge=1)
    validate_every: int = Field(500, ge=1)
    preview_every: int = Field(1000, ge=1)

    @model_validator(mode="after")
    def _warm_up_ends(self) -> StageRecipe:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, expected at most the stage's {self.steps} steps")
        return self

    @property
    def checked_steps(self) -> int:
        """``gradient_check_steps`` with its default filled in, never more than the stage has. 0 (no check) where the
        stage is too short for one: what lies behind a gate that starts at zero has no gradient in the first step."""
        wanted = self.gradient_check_steps or min(50, max(3, round(0.05 * self.steps)))
        return 0 if self.steps < min(wanted, 3) else min(wanted, self.steps)


class Recipe(Section):
    """A run. ``run`` is its folder; ``data`` the folder or URL of its shards, or a list of several, empty where none
    are read (the planner)."""

    family: str
    size: str
    profile: str | None = None
    model: dict[str, Any] = Field(default_factory=dict)
    data: PathText | list[DataSetRecipe] = ""
    encoders: dict[str, EncoderRecipe] = Field({}, description="the encoders that the shards must be made by, by role")
    stream: StreamRecipe = StreamRecipe()
    run: PathText
    seed: int = Field(0, ge=0)
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    attention: Literal["auto", "flash", "flash_3", "xformers", "sdpa"] = "auto"
    activation_checkpointing: Literal["none", "selective", "full"] = "selective"
    zero: Literal[1, 2, 3] = 3
    ds_config: PathText | None = Field(None, description="a DeepSpeed JSON file instead of ds_configs/zero<N>.json")
    frozen: Literal["replicate", "shard"] = "replicate"
    leaf_modules: bool = False
    export_weights: Literal["raw", "ema"] = "raw"
    optimizer: OptimizerRecipe = OptimizerRecipe()
    ema: EmaRecipe | None = None
    logging: LoggingRecipe = LoggingRecipe()
    watch: WatchRecipe = WatchRecipe()
    keep_checkpoints: int = Field(3, ge=1)
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    max_skipped: int = Field(5, ge=1)
    validation: ValidationRecipe = ValidationRecipe()
    validation_samples: int = Field(16, ge=0)
    preview_samples: int = Field(2, ge=0)
    stages: dict[Annotated[int, Field(strict=True)], StageRecipe] = Field(min_length=1)

    @model_validator(mode="after")
    def _parts_agree(self) -> Recipe:
        if self.frozen == "shard" and self.zero != 3:
            raise ValueError(f"frozen is 'shard' and zero is {self.zero}, expected zero: 3, which alone has shards")
        if self.leaf_modules and self.zero != 3:
            raise ValueError(f"leaf_modules is true and zero is {self.zero}, expected zero: 3, which alone has them")
        if self.export_weights == "ema" and self.ema is None:
            raise ValueError(
                "export_weights is 'ema' but no average is kept, expected ema: {decay: ...} or export_weights: raw"
            )
        for stage in self.stages:
            check_weights(self.stage_sources(stage), self.stream.drop_last)
        if self.attention in ("flash", "flash_3") and self.precision == "fp32":
            raise ValueError(
                f"attention is {self.attention!r} and precision is 'fp32', expected bf16 or fp16, "
                "which alone flash-attn computes; or attention: sdpa"
            )
        return self

    def stage_sources(self, stage: int) -> list[Source]:
        """The data sets of a stage: its own, else the recipe's."""
        data = self.stages[stage].data or self.data
        if isinstance(data, str):
            return [Source(data)]
        return [Source(part.path, part.weight, part.unknown_encoders) for part in data]

    @property
    def sampled_metrics(self) -> list[Metric]:
        """Of what is sampled in validation, under the names that are logged."""
        chosen = [METRICS[name] for name in self.validation.metrics or () if name in METRICS]
        return [replace(metric, name=f"{SAMPLED}{metric.name}", baseline=None) for metric in chosen]

    @property
    def cache(self) -> CacheOptions | None:
        cache = self.stream.cache
        return None if cache is None else CacheOptions(Path(cache.directory), int(cache.gigabytes * 1e9))

    def family_config(self, family: Family, stage: int) -> BaseModel:
        """The typed config of ``family`` in ``stage``: the size's, overlaid by ``model`` and the stage's ``model``."""
        if stage not in self.stages:
            raise RecipeError(f"stage {stage} has no section in the recipe{did_you_mean(stage, self.stages)}")
        if self.size not in family.sizes:
            raise RecipeError(
                f"size: {self.size!r} is unknown to family {self.family!r}{did_you_mean(self.size, family.sizes)}"
            )
        values = overlay(family.sizes[self.size].model_dump(), overlay(self.model, self.stages[stage].model))
        return family.config_type.model_validate(values)

    def deepspeed_file(self) -> Path:
        """The DeepSpeed JSON of this run. A relative ``ds_config`` that the working directory lacks is looked for in
        the repository."""
        if self.ds_config is None:
            return DS_CONFIGS / f"zero{self.zero}.json"
        path = Path(self.ds_config)
        return path if path.is_file() or path.is_absolute() else ROOT / path

    def digest(self, family: Family) -> str:
        """sha256 of what decides the numbers of the run, defaults filled in: all but folders, logging, watch, what is
        validated and how checkpoints are written."""
        left_out = {"data", "run", "profile", "logging", "watch", "model", "checkpoint", "validation"}
        values = self.model_dump(exclude=left_out)
        for stage in self.stages:
            values["stages"][stage]["model"] = self.family_config(family, stage).model_dump(mode="json")
        return sha256_json(values)

    def dump(self) -> str:
        """The recipe as YAML, each default written out and secrets in URLs left out; without such
        ``load_recipe(recipe=...)`` gives the same recipe again."""
        values = redact_values(self.model_dump())
        values["optimizer"]["betas"] = list(self.optimizer.betas)
        return yaml.safe_dump(values, sort_keys=False, width=100, allow_unicode=True)


def load_recipe(
    *,
    recipe: str | Path | None = None,
    family: str | None = None,
    size: str | None = None,
    profile: str | None = None,
    overrides: list[str] | tuple[str, ...] = (),
    data: str | Path | None = None,
    run: str | Path | None = None,
) -> Recipe:
    """The recipe in file ``recipe``, or that of a family's ``profile`` (``launch/recipes/<family>/<profile>.yaml``),
    overlaid by the arguments given and then by ``overrides`` (``a.b=c`` with YAML values).

    Raises ``RecipeError``: one sentence that names the file or ``--set``, the dotted key and the nearest name.
    """
    if recipe is None:
        family, profile = family or "fantasy_world", profile or "default"
        path = _profile_file(family, profile)
    else:
        path = Path(expand_path(str(recipe)))
    values = read_yaml(path)
    stated = values.setdefault("family", family or "fantasy_world")
    if family is not None and stated != family:
        raise RecipeError(f"{path}: family is {stated!r}, but {family!r} was asked for; leave out one of them")
    given = {
        "size": size,
        "profile": profile if recipe is None else values.get("profile"),
        "data": data and str(data),
        "run": run and str(run),
    }
    values |= {key: value for key, value in given.items() if value is not None}
    values.setdefault("run", f"runs/{stated}/{values.get('profile') or path.stem}")

    sources: list[tuple[tuple[str | int, ...], str]] = []
    layers: list[tuple[dict[Any, Any], str]] = [(values, str(path))]
    for text in overrides:
        where, value = parse_override(text)
        layers.append((nest(where, value), f"--set {text}"))
        sources.append((where, f"--set {text}"))

    def source(location: tuple[str | int, ...]) -> str:
        """Where the value at a location was written: the last override above or below it, or else the file."""
        if not location:
            return " with ".join([str(path), *(name for _, name in sources)])
        for where, name in reversed(sources):
            if where[: len(location)] == location or location[: len(where)] == where:
                return name
        return str(path)

    merged: dict[Any, Any] = {}
    for layer, _ in layers:
        merged = overlay(merged, layer)
    try:
        known = get_family(str(merged["family"]))
    except ValueError as error:
        raise RecipeError(f"{source(('family',))}: {error}") from error
    for layer, named in layers:
        check_keys(layer, Recipe, named, below=lambda here: _config_model(known, here))
    try:
        result = Recipe.model_validate(merged)
    except ValidationError as error:
        raise explain(error, source) from error
    _check(result, known, source)
    return result


def _check(recipe: Recipe, family: Family, source: Callable[[tuple[str | int, ...]], str]) -> None:
    """What a recipe must be besides well typed: known to its family, and in agreement with its DeepSpeed JSON."""
    for number, stage in recipe.stages.items():
        try:
            config = recipe.family_config(family, number)
        except ValidationError as error:
            inner: tuple[str | int, ...] = ("stages", number, "model")
            if not _has(recipe.model_dump(), (*inner, *error.errors()[0]["loc"])):
                inner = ("model",)
            raise explain(error, source, inner) from error
        except RecipeError as error:
            raise RecipeError(f"{source(('size',))}: {error}") from error
        specs = {spec.index: spec for spec in family.stages(config)}
        if number not in specs:
            raise RecipeError(
                f"{source(('stages', number))}: stages.{number} is unknown to family {recipe.family!r}"
                f"{did_you_mean(number, specs)}"
            )
        known = [term.name for term in specs[number].losses]
        for name in stage.loss_weights:
            if name not in known:
                here = ("stages", number, "loss_weights", name)
                raise RecipeError(f"{source(here)}: unknown key {dotted(here)}{did_you_mean(name, known)}")
    measured = family.measured
    for index, name in enumerate(recipe.validation.metrics or ()):
        if name not in measured:
            chosen = ("validation", "metrics", index)
            raise RecipeError(f"{source(chosen)}: {dotted(chosen)} is {name!r}{did_you_mean(name, measured)}")
    for name in recipe.validation.weights:
        if name not in WHAT:
            given = ("validation", "weights", name)
            raise RecipeError(f"{source(given)}: unknown key {dotted(given)}{did_you_mean(name, WHAT)}")
    try:
        read_ds_config(recipe)
    except RecipeError as error:
        raise RecipeError(f"{source(('ds_config',))}: {error}") from error


def _profile_file(family: str, profile: str) -> Path:
    path = RECIPES / family / f"{profile}.yaml"
    if not path.is_file():
        get_family(family)  # says so where the family itself is unknown
        there = [p.stem for p in (RECIPES / family).glob("*.yaml")]
        raise RecipeError(f"{path}: there is no profile {profile!r} of family {family!r}{did_you_mean(profile, there)}")
    return path


def _config_model(family: Family, path: tuple[str | int, ...]) -> type[BaseModel] | None:
    is_model = path == ("model",) or (len(path) == 3 and path[0] == "stages" and path[2] == "model")
    return family.config_type if is_model else None


def _has(values: Any, path: tuple[str | int, ...]) -> bool:
    return not path or (isinstance(values, dict) and path[0] in values and _has(values[path[0]], path[1:]))
