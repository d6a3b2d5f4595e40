"""The paths that a training command names, looked at before torch is imported."""

import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from stagecoach.data.paths import expand_path
from stagecoach.trainer.cli import RecipeFlags
from stagecoach.trainer.environment import NodeError, first_rank_answers
from stagecoach.trainer.reporting.logs import process_rank
from stagecoach.trainer.settings import RecipeError, nest, overlay, parse_override, read_yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPES = Path(__file__).parent / "recipes"
MODEL_PATHS = (
    "base",
    "vggt",
    "vae",
    "vae.base",
    "dino.base",
    "weights.denoising_unet",
    "weights.reference_unet",
    "weights.motion",
    "weights.m2p",
    "weights.guidance.*",
    "weights.face_tokens",
    "weights.identity_adapter",
    "weights.vae",
    "weights.arcface",
)
"""The keys of all families' configs that name files: their ``PathText`` fields. The configs themselves import torch."""
WEIGHTS = (
    *tuple(f"{place}.{name}" for place in ("model", "stages.*.model") for name in MODEL_PATHS),
    "validation.weights.*",
)


T = TypeVar("T")


def on_each_node(look: Callable[[], T]) -> T:
    """What ``look`` finds, for rank 0 to use. What only another rank does not see it names after they have met; what
    none sees ends all of them."""
    try:
        return look()
    except (ValueError, OSError) as error:
        if process_rank() == 0:
            raise
        if not first_rank_answers(20.0):
            raise NodeError(str(error)) from error
        return None  # type: ignore[return-value]


def check_paths(flags: RecipeFlags, init: Path | None, resume: str) -> None:
    """Raise ``ValueError`` where recipe, data, weights, DeepSpeed's JSON, adapter or checkpoint are not there, or where
    the run or the cache cannot be written.

    What is wrong with a recipe itself is left to ``load_recipe``, which knows its keys.
    """
    values = _values(flags)
    data = values.get("data")
    if not data:
        raise RecipeError("data: no shards named, expected --data SHARDS, a folder that `shards build` wrote")
    named = [("data", data), *((f"stages.{k}.data", stage.get("data")) for k, stage in _items(values.get("stages")))]
    for key, sources in named:
        for source in [sources] if isinstance(sources, str) else [part.get("path") for part in _mappings(sources)]:
            if isinstance(source, str) and "://" not in source and not _path(source).is_dir():
                raise RecipeError(f"{key}: {source} is not there, expected a folder of shards that this host sees")
    if init is not None and str(init) != "base" and not _path(init).exists():
        raise ValueError(
            f"--init {init}: there is nothing, expected an adapter such as RUN/stage1/adapter, an exported file, a "
            "checkpoint, or base"
        )
    if resume not in ("auto", "never") and not _path(resume).exists():
        raise ValueError(f"--resume {resume}: there is no such folder, expected auto, never or a checkpoint's path")
    texts = dict(_texts(values))
    config = texts.get("ds_config")
    if config and not any((folder / _path(config)).is_file() for folder in (Path(), ROOT)):
        raise RecipeError(f"ds_config: {config} is not there, expected a DeepSpeed JSON file or null")
    for key in ("run", "stream.cache.directory"):
        if text := texts.get(key):
            check_writable(_path(text))
    for key, text in texts.items():
        if any(fnmatch(key, name) for name in WEIGHTS) and not _path(text).exists():
            raise RecipeError(f"{key}: {text} is not there, expected a file or folder of weights that this host sees")


def _values(flags: RecipeFlags) -> dict[str, Any]:
    path = (
        _path(flags.recipe)
        if flags.recipe
        else RECIPES / (flags.family or "fantasy_world") / f"{flags.profile or 'default'}.yaml"
    )
    values = read_yaml(path) if flags.recipe or path.is_file() else {}
    values |= {key: value for key, value in (("data", flags.data), ("run", flags.run)) if value}
    for text in flags.overrides or ():
        values = overlay(values, nest(*parse_override(text)))
    return values


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def _items(value: Any) -> list[tuple[Any, dict[str, Any]]]:
    return [(key, part) for key, part in value.items() if isinstance(part, dict)] if isinstance(value, dict) else []


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The texts in mappings of mappings, by dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, below in value.items():
            yield from _texts(below, f"{key}.{name}" if key else str(name))


def _path(text: str | Path) -> Path:
    return Path(expand_path(str(text)))


def check_writable(folder: Path) -> None:
    """Raise ``ValueError`` or ``PermissionError`` where ``folder``, of a run, a cache or answers, cannot be made."""
    there = next(above for above in (folder, *folder.absolute().parents) if above.exists())
    if not there.is_dir():
        raise ValueError(f"{there}: is a file, expected a folder that {folder} can be written to")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(13, f"cannot be written by this user, expected a folder for {folder}", str(there))
