"""The paths that a training command names, looked at before torch is imported."""

import os
from pathlib import Path
from typing import Any

from stagecoach.data.paths import expand_path
from stagecoach.trainer.cli import RecipeFlags
from stagecoach.trainer.settings import RecipeError, nest, overlay, parse_override, read_yaml

RECIPES = Path(__file__).parent / "recipes"


def check_paths(flags: RecipeFlags, init: Path | None, resume: str) -> None:
    """Raise ``ValueError`` where recipe, data, adapter or checkpoint are not there or the run cannot be written.

    What is wrong with a recipe itself is left to ``load_recipe``, which knows its keys.
    """
    values = _values(flags)
    data = values.get("data")
    if not data:
        raise RecipeError("data: no shards named, expected --data SHARDS, a folder that `shards build` wrote")
    for source in [data] if isinstance(data, str) else [part.get("path") for part in _mappings(data)]:
        if isinstance(source, str) and "://" not in source and not _path(source).is_dir():
            raise RecipeError(f"data: {source} is not there, expected a folder of shards that this host sees")
    if init is not None and str(init) != "base" and not _path(init).exists():
        raise ValueError(
            f"--init {init}: there is nothing, expected an adapter such as RUN/stage1/adapter, an exported file, a "
            "checkpoint, or base"
        )
    if resume not in ("auto", "never") and not _path(resume).exists():
        raise ValueError(f"--resume {resume}: there is no such folder, expected auto, never or a checkpoint's path")
    if isinstance(values.get("run"), str):
        _check_run(_path(values["run"]))


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


def _path(text: str | Path) -> Path:
    return Path(expand_path(str(text)))


def _check_run(run: Path) -> None:
    there = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise ValueError(f"{there}: is a file, expected a folder that the run {run} can be written to")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(13, "cannot be written by this user, expected a folder for the run", str(there))
