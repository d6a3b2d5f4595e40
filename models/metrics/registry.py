"""All metrics of this package by name."""

from stagecoach.models.metrics import cameras, dance, depth, distribution, pictures, points, reprojection, temporal
from stagecoach.models.metrics.metric import Metric

_MODULES = (cameras, depth, points, reprojection, pictures, distribution, dance, temporal)
METRICS: dict[str, Metric] = {metric.name: metric for module in _MODULES for metric in module.METRICS}
