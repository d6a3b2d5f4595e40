"""All metrics of this package by name."""

from stagecoach.models.metrics import (
    cameras,
    dance,
    depth,
    distribution,
    identity,
    layout,
    pictures,
    points,
    reprojection,
    similarity,
    speed,
    temporal,
)
from stagecoach.models.metrics.metric import Metric

_MODULES = (
    cameras,
    depth,
    points,
    reprojection,
    pictures,
    distribution,
    similarity,
    temporal,
    layout,
    identity,
    dance,
    speed,
)
METRICS: dict[str, Metric] = {metric.name: metric for module in _MODULES for metric in module.METRICS}
