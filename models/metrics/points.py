"""Point clouds against true ones."""

import numpy as np

from stagecoach.data.files import import_extra
from stagecoach.models.metrics.metric import Metric, Unavailable

METRICS = tuple(Metric(name, "scene units") for name in ("points_accuracy", "points_completeness", "chamfer"))
MOST_POINTS = 100_000


def cloud_errors(points: np.ndarray, truth: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Of clouds ``[N, 3]`` and ``[M, 3]``, of each at most ``MOST_POINTS`` drawn by ``seed``: ``points_accuracy``, the
    mean distance of a point to the nearest true one; ``points_completeness``, that of a true point to the nearest one
    found; ``chamfer``, the mean of both. Raises ``Unavailable`` for a cloud without points."""
    tree = import_extra("scipy.spatial", "distances of point clouds", "evaluate").cKDTree
    random = np.random.default_rng(seed)
    first, second = (_some(np.asarray(cloud, np.float64), random) for cloud in (points, truth))
    accuracy, completeness = (float(tree(b).query(a)[0].mean()) for a, b in ((first, second), (second, first)))
    return {"points_accuracy": accuracy, "points_completeness": completeness, "chamfer": (accuracy + completeness) / 2}


def _some(cloud: np.ndarray, random: np.random.Generator) -> np.ndarray:
    cloud = cloud.reshape(-1, 3)
    cloud = cloud[np.isfinite(cloud).all(1)]
    if not len(cloud):
        raise Unavailable("a cloud without points")
    return cloud if len(cloud) <= MOST_POINTS else cloud[random.choice(len(cloud), MOST_POINTS, replace=False)]
