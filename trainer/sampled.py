"""Metrics of what the network samples from held-out conditions, measured in validation as ``launch/evaluate.py`` does
it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagecoach.data.outputs.moving import Video
from stagecoach.data.paths import expand_path
from stagecoach.data.pictures import depth_colours, depth_limits, resized, titled
from stagecoach.models.metrics.measuring import measure
from stagecoach.models.metrics.metric import SAMPLED, Absent
from stagecoach.models.metrics.record import Record
from stagecoach.models.metrics.registry import METRICS
from stagecoach.models.metrics.weights import Models, WeightPaths
from stagecoach.trainer.meter import Meter
from stagecoach.trainer.recipe import Recipe

log = logging.getLogger(__name__)
PANEL = 240
"""Pixels of the height of a picture or frame that is shown."""


class SampledMetrics:
    """Measures what a rank has sampled. Raises ``ValueError`` for weights that are not there."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.names = tuple(name for name in recipe.validation.metrics or () if name in METRICS)
        paths: dict[str, Any] = {name: Path(expand_path(path)) for name, path in recipe.validation.weights.items()}
        for name, path in paths.items():
            if not path.exists():
                raise ValueError(f"validation.weights.{name}: {path} is not there, expected a file or folder")
        self.models = Models(WeightPaths(**paths), device)
        self._told: set[str] = set()

    def add(self, meter: Meter, pairs: Sequence[tuple[Record, Record]], counted: bool) -> None:
        """Take sums and counts of generated and true samples; of a metric that they do not have 0, so that all ranks
        have the same names."""
        for generated, true in pairs:
            for name, value in measure(generated, true, self.models, self.names).items():
                if isinstance(value, Absent):
                    self._tell(name, value.reason)
                total, count = (0.0, 0.0) if isinstance(value, Absent) or not counted else value
                meter.add(f"{SAMPLED}{name}", torch.tensor(total, device=meter.world.device), count)

    def _tell(self, name: str, reason: str) -> None:
        if name not in self._told:
            self._told.add(name)
            log.warning(f"{SAMPLED}{name} is not measured of every sample: {reason}")


def shown(generated: Record, true: Record) -> np.ndarray | Video | None:
    """The truth next to what was generated, a picture or a video: of frames, else of depth (in the colours of the
    truth's range)."""
    if generated.frames is not None:
        sides = {"truth": true.frames, "sampled": generated.frames}
        pixels = {
            title: (x.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
            for title, x in sides.items()
            if x is not None
        }
    elif generated.depth is not None:
        maps = {"true depth": true.depth, "depth": generated.depth}
        known = {title: x.float().cpu().numpy() for title, x in maps.items() if x is not None}
        limits = depth_limits(next(iter(known.values())))
        pixels = {title: np.stack([depth_colours(frame, limits) for frame in x]) for title, x in known.items()}
    else:
        return None
    rows = [
        np.concatenate([titled(resized(x[k], height=PANEL), title) for title, x in pixels.items()], 1)
        for k in range(min(map(len, pixels.values())))
    ]
    return rows[0] if len(rows) == 1 else Video(np.stack(rows), generated.rate or true.rate or 16.0)
