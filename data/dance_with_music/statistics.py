"""Sums over a split: what music is normalised by, and the trivial predictors that a trained network must beat."""

from __future__ import annotations

from typing import Any

import numpy as np

from stagecoach.data.building.jobs import EncodedSample, Statistics
from stagecoach.data.dance_with_music.schema import KEYPOINTS, LATENT_CHANNELS
from stagecoach.data.dance_with_music.segment import CONFIDENCE_STEPS, POSE_STEPS
from stagecoach.data.dance_with_music.skeleton import CONFIDENT


class DanceStatistics(Statistics):
    def __init__(self, music_dim: int) -> None:
        self._sums = {
            "frame_count": 0,
            "music_sum": np.zeros(music_dim),
            "music_square_sum": np.zeros(music_dim),
            "pose_count": np.zeros(KEYPOINTS),
            "pose_sum": np.zeros((KEYPOINTS, 2)),
            "pose_square_sum": np.zeros((KEYPOINTS, 2)),
            "latent_count": 0,
            "latent_sum": np.zeros(LATENT_CHANNELS),
            "latent_square_sum": np.zeros(LATENT_CHANNELS),
            "beat_count": 0,
            "face_count": 0,
            "reference_count": 0,
            "reference_face_count": 0,
        }

    def add(self, sample: EncodedSample) -> None:
        arrays = sample.arrays
        music, latents = arrays["music"].astype(np.float64), arrays["latents"].astype(np.float64)
        sure = arrays["pose_conf"] >= CONFIDENT * CONFIDENCE_STEPS
        xy = arrays["pose_xy"].astype(np.float64) / POSE_STEPS * sure[..., None]
        counted = {
            "frame_count": len(music),
            "music_sum": music.sum(0),
            "music_square_sum": (music**2).sum(0),
            "pose_count": sure.sum(0),
            "pose_sum": xy.sum(0),
            "pose_square_sum": (xy**2).sum(0),
            "latent_count": latents[:, 0].size,
            "latent_sum": latents.sum((0, 2, 3)),
            "latent_square_sum": (latents**2).sum((0, 2, 3)),
            "beat_count": int(arrays["beat"].sum()),
            "face_count": int(arrays["face_valid"].sum()),
            "reference_count": len(arrays["ref_frame"]),
            "reference_face_count": int(arrays["ref_face_valid"].sum()),
        }
        for name, value in counted.items():
            self._sums[name] = self._sums[name] + value

    def as_dict(self) -> dict[str, Any]:
        """``frame_count`` frames; ``music_*`` [Dm]; ``pose_*`` [134] and [134][2], over points found, divided by width
        and height; ``latent_*`` [4] with ``latent_count`` places each; how many frames have a beat, how many a face,
        and how many references there are and have a face."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in self._sums.items()}
