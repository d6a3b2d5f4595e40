"""Sums over a split from which the trivial predictors follow that a trained network must beat."""

from __future__ import annotations

from typing import Any

import numpy as np

from stagecoach.data.building.jobs import EncodedSample, Statistics
from stagecoach.data.movie_post_production.schema import DEPTH_LABELS


class MovieStatistics(Statistics):
    """``sample.counted``: the latent as float32 [C, h, w] before it was rounded, and how many objects were dropped."""

    def __init__(self, channels: int, dino_dim: int) -> None:
        self._latent_sum, self._latent_squares = np.zeros(channels), np.zeros(channels)
        self._latent_count, self._samples, self._dropped = 0, 0, 0
        self._depth = np.zeros(len(DEPTH_LABELS), np.int64)
        self._area = 0.0
        self._dino = np.zeros(dino_dim)

    def add(self, sample: EncodedSample) -> None:
        latent, dropped = sample.counted
        values = latent.astype(np.float64)
        self._latent_sum += values.sum((1, 2))
        self._latent_squares += (values**2).sum((1, 2))
        self._latent_count += latent[0].size
        self._samples += 1
        self._dropped += dropped
        boxes = sample.arrays["boxes"].astype(np.float64)
        self._area += float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum())
        self._depth += np.bincount(sample.arrays["depth"], minlength=len(DEPTH_LABELS))
        self._dino += sample.arrays["dino"].astype(np.float64).sum(0)

    def as_dict(self) -> dict[str, Any]:
        """``latent_sum``, ``latent_square_sum`` by channel over ``latent_count`` places each; ``objects_by_depth`` as
        ``DEPTH_LABELS``; ``box_area_sum`` in parts of the pictures; ``dino_sum`` of the unit vectors, whose squared
        length over the squared number of objects is the mean cosine between two of them."""
        return {
            "samples": self._samples,
            "objects_by_depth": self._depth.tolist(),
            "dropped_objects": self._dropped,
            "box_area_sum": self._area,
            "latent_sum": self._latent_sum.tolist(),
            "latent_square_sum": self._latent_squares.tolist(),
            "latent_count": self._latent_count,
            "dino_sum": self._dino.tolist(),
        }
