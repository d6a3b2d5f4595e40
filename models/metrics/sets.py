"""Metrics of a set of samples against a set of true ones: features of each sample, kept until all have come."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stagecoach.models.metrics import dance, distribution
from stagecoach.models.metrics.metric import Absent, Unavailable, measured
from stagecoach.models.metrics.record import Record
from stagecoach.models.metrics.weights import Models

Features = Callable[[Record, Models], Tensor]
Distance = Callable[[Tensor, Tensor], float]


def _inception(record: Record, models: Models) -> Tensor:
    return distribution.picture_features(models("inception"), list(record.need("frames", "to look at")))


def _i3d(record: Record, models: Models) -> Tensor:
    return distribution.clip_features(models("i3d"), [record.need("frames", "to look at")])


def _kinetic(record: Record, models: Models) -> Tensor:
    xy, conf = record.need("pose", "of the dance")
    if len(xy) < 3:
        raise Unavailable(f"a dance of {len(xy)} frames found, expected at least three")
    rate = record.rate or dance.FRAME_RATE
    return dance.kinetic_features(xy[None], conf[None], *record.picture, rate)


@dataclass
class SetMetrics:
    """The metrics among ``names``; ``force`` takes Fréchet distances of too few samples as well."""

    names: Iterable[str]
    models: Models
    force: bool = False
    _features: dict[str, tuple[list[Tensor], list[Tensor]]] = field(default_factory=dict)
    _missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def frechet(a: Tensor, b: Tensor) -> float:
            return distribution.frechet_distance(a, b, self.force)

        def kinetic(a: Tensor, b: Tensor) -> float:
            return dance.kinetic_distance(a, b, self.force)

        known: dict[str, tuple[Features, Distance]] = {
            "fid": (_inception, frechet),
            "kid": (_inception, distribution.kernel_distance),
            "fvd": (_i3d, frechet),
            "fid_k_2d": (_kinetic, kinetic),
            "diversity_2d": (_kinetic, dance.diversity),
        }
        self._known = {name: known[name] for name in known if name in set(self.names)}
        self._sources = {features.__name__: features for features, _ in self._known.values()}

    def add(self, generated: Record, truth: Record) -> None:
        """Take the features of one sample and of its truth."""
        for key, features in self._sources.items():
            pair = measured(self._pair, features, generated, truth)
            if isinstance(pair, Absent):
                self._missing.setdefault(key, pair.reason)
            else:
                both = self._features.setdefault(key, ([], []))
                both[0].append(pair[0])
                both[1].append(pair[1])

    def _pair(self, features: Features, generated: Record, truth: Record) -> tuple[Tensor, Tensor]:
        return features(generated, self.models), features(truth, self.models)

    def result(self) -> dict[str, tuple[float, int, list[float]] | Absent]:
        """Of each metric the number, of how many samples, and of Fréchet distances those of random halves; or why there
        is none."""
        found: dict[str, tuple[float, int, list[float]] | Absent] = {}
        for name, (features, distance) in self._known.items():
            key = features.__name__
            if key not in self._features:
                found[name] = Absent(self._missing.get(key, "no sample with a truth"))
                continue
            a, b = (torch.cat(side) for side in self._features[key])
            value = measured(distance, a, b)
            if isinstance(value, Absent):
                found[name] = value
                continue
            parts = measured(distribution.halves, a, b, force=self.force) if name in ("fid", "fvd") else []
            found[name] = (value, len(self._features[key][0]), [] if isinstance(parts, Absent) else parts)
        return found
