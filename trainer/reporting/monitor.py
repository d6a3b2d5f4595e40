"""What a run shows and keeps: progress, metrics, pictures and ``run.json``, on rank 0.

It is given floats and arrays and never touches the device.
"""

import importlib.metadata
import json
import logging
import math
import os
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from stagecoach import __version__
from stagecoach.data.files import atomic_file, write_json
from stagecoach.data.outputs.moving import Video, encode_gif
from stagecoach.trainer.recipe import ROOT, Recipe
from stagecoach.trainer.redact import redact_values
from stagecoach.trainer.reporting.run_record import RUN_RECORD, read_run_record
from stagecoach.trainer.reporting.sinks import MetricsFile, Pictures, Sink, TensorBoard, WeightsAndBiases, new_run_id
from stagecoach.trainer.watch.view import ClusterView

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
VERSIONS = ("torch", "deepspeed", "diffusers", "transformers", "peft", "numpy")


class Monitor:
    """What a stage tells of itself. This one shows and keeps nothing: for ranks other than the first, and dry runs."""

    def start(self, total_steps: int, start_step: int) -> None:
        """Begin to count."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take the values of a step; it says how many optimizer steps are done."""

    def cluster(self, step: int, view: ClusterView) -> None:
        """Take what all ranks' numbers were reduced to."""

    def images(self, step: int, pictures: Pictures) -> None:
        """Take pictures and videos."""

    def facts(self, values: dict[str, Any]) -> None:
        """Take facts about the run (JSON values), instead of those of the same name."""

    def close(self) -> None:
        """End the stage."""


class RunMonitor(Monitor):
    """One stage's reporting into its run folder, and on the terminal.

    ``resume_step`` is the step of the checkpoint that the run goes on from; what an earlier attempt wrote after it is
    taken out, so that no step of a stage is there twice. At 0 the stage starts over. ``node`` is this host's name where
    there are others, whose system metrics join the W&B run (``shared_run``).
    """

    def __init__(self, recipe: Recipe, run: Path, stage: int, resume_step: int, node: str | None = None) -> None:
        self.stage, self.run = stage, Path(run)
        self.sinks: list[Sink] = []
        self.bar: Progress | None = None
        self.run.mkdir(parents=True, exist_ok=True)
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.record = read_run_record(self.run)
        self.record.setdefault("starts", []).append(_start_facts(stage, resume_step))
        # A stage that starts over is another W&B run; one that goes on is the same.
        ids = self.record.setdefault("wandb", {})
        if resume_step == 0 or str(stage) not in ids:
            ids[str(stage)] = new_run_id()
        self._write_record()
        self.sinks.append(MetricsFile(self.run / METRICS, stage, resume_step))
        if recipe.logging.tensorboard:
            self.sinks.append(TensorBoard(self.run / "tb" / f"stage{stage}", resume_step))
        self.shared_run: str | None = None
        """Id of the W&B run that other nodes may join."""
        if recipe.logging.wandb != "off":
            tracker = _tracker(recipe, self.run, stage, ids[str(stage)], node)
            self.sinks.append(tracker)
            self.shared_run = ids[str(stage)] if tracker.is_shared else None

    def start(self, total_steps: int, start_step: int) -> None:
        """Begin to count: show the bar where the standard error is a terminal."""
        self.total, self.first, self.began = total_steps, start_step, time.monotonic()
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[shown]}"),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task(f"stage {self.stage}", total=total_steps, completed=start_step, shown="")
        if start_step:
            log.info(f"stage {self.stage} goes on from step {start_step} of {total_steps}")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step everywhere; not finite ones too (``null`` in the metrics file)."""
        for sink in self.sinks:
            sink.log(step, values)
        shown = " | ".join(f"{name} {value:.4g}" for name, value in values.items())
        line = f"stage {self.stage} step {step}/{self.total} | {shown}"
        # Where the bar shows it, the line is for train.log alone.
        log.log(logging.INFO if self.bar is None else logging.DEBUG, f"{line}{self._remaining(step)}")
        if self.bar is not None and "loss" in values:
            self.bar.update(self.task, completed=step, shown=self._summary(step, values))

    def cluster(self, step: int, view: ClusterView) -> None:
        """Write the reduced numbers everywhere and those by rank into the metrics file; name who is slow."""
        for sink in self.sinks:
            sink.cluster(step, view.values, view.ranks)
        many = len(view.ranks["step_seconds"]) > 1
        log.log(logging.INFO if many and self.bar is None else logging.DEBUG, f"cluster at step {step}: {view.line}")
        for warning in view.warnings:
            log.warning(f"step {step}: {warning}")

    def images(self, step: int, pictures: Pictures) -> None:
        """Save pictures as ``previews/stage<N>/step_<step>/<name>.png``, videos as ``.gif``, and show them in the
        trackers."""
        if not pictures:
            return
        folder = self.run / "previews" / f"stage{self.stage}" / f"step_{step}"
        for name, picture in pictures.items():
            path = folder / name.replace("/", "_")
            if isinstance(picture, Video):
                with atomic_file(path.with_name(f"{path.name}.gif")) as handle:
                    handle.write(encode_gif(picture))
            else:
                with atomic_file(path.with_name(f"{path.name}.png")) as handle:
                    Image.fromarray(np.ascontiguousarray(picture)).save(handle, format="PNG")
        for sink in self.sinks:
            sink.images(step, pictures)

    def facts(self, values: dict[str, Any]) -> None:
        """Put facts about the run (JSON values) into ``run.json``, instead of those of the same name."""
        self.record |= values
        self._write_record()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        for sink in self.sinks:
            sink.close()

    def _summary(self, step: int, values: dict[str, float]) -> str:
        parts = [f"loss {values['loss']:.4g}"]
        if values.get("step_seconds"):
            parts.append(f"{1 / values['step_seconds']:.3g} it/s")
        if "samples_per_second" in values:
            parts.append(f"{values['samples_per_second']:.3g} samples/s")
        if "memory_gib" in values:
            parts.append(f"{values['memory_gib']:.1f} GiB")
        return " | ".join(parts) + self._remaining(step)

    def _remaining(self, step: int) -> str:
        """Time to the end of the stage at the pace so far, validation and checkpoints included."""
        done = step - self.first
        if done <= 0 or step >= self.total:
            return ""
        seconds = (time.monotonic() - self.began) / done * (self.total - step)
        return f" | ETA {timedelta(seconds=math.ceil(seconds))}"

    def _write_record(self) -> None:
        write_json(self.run / RUN_RECORD, redact_values(self.record))


class NodeMonitor(Monitor):
    """For the first rank of a further node: its system metrics join the W&B run of rank 0, and nothing else."""

    def __init__(self, recipe: Recipe, run: Path, stage: int, shared_run: str, node: str) -> None:
        self.tracker = _tracker(recipe, Path(run), stage, shared_run, node, primary=False)

    def close(self) -> None:
        self.tracker.close()


def _tracker(
    recipe: Recipe, run: Path, stage: int, run_id: str, node: str | None, primary: bool = True
) -> WeightsAndBiases:
    mode = recipe.logging.wandb
    return WeightsAndBiases(
        "disabled" if mode == "off" else mode,
        directory=run,
        project=recipe.logging.project,
        stage=stage,
        run_id=run_id,
        config=redact_values(json.loads(json.dumps(recipe.model_dump()))),
        node=node,
        primary=primary,
    )


def _start_facts(stage: int, step: int) -> dict[str, Any]:
    versions = {}
    for package in VERSIONS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "stage": stage,
        "step": step,
        "host": socket.gethostname(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "argv": sys.argv,
        "version": __version__,
        "python": sys.version.split()[0],
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of this source tree, with a ``+`` where files differ from it; None for an installed package, around
    which there may be another's repository."""
    if not (ROOT / ".git").exists():
        return None
    try:
        run = [
            subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.TimeoutExpired):
        return None
    if any(result.returncode for result in run):
        return None
    return run[0].stdout.strip() + ("+" if run[1].stdout.strip() else "")
