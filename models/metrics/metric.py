"""What a metric is, and what stands in its place where it cannot be measured."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from stagecoach.data.files import MissingPackageError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Metric:
    """What a name of the metrics file means. ``higher_is_better`` is None for a quantity that is neither good nor bad;
    ``baseline`` is the name of the metric that holds what the best trivial predictor reaches on the same numbers;
    ``needs`` says what must be given besides samples and truth (weights, a detector's boxes)."""

    name: str
    unit: str = ""
    higher_is_better: bool | None = False
    baseline: str | None = None
    needs: str = ""

    @property
    def better(self) -> str:
        """``higher``, ``lower`` or ``neither``."""
        return "neither" if self.higher_is_better is None else "higher" if self.higher_is_better else "lower"

    def held_out(self, baseline: bool = False) -> "Metric":
        """The same metric as validation logs it, ``val_`` before its name, with a baseline of its own if asked for."""
        name = f"val_{self.name}"
        return replace(self, name=name, baseline=f"{name}_baseline" if baseline else None)


SAMPLED = "val_sampled_"
"""Before the name of a metric that validation measures on what the network samples."""


class Unavailable(ValueError):
    """A metric cannot be measured here: its weights or its truth are missing, or there are too few samples."""


@dataclass(frozen=True)
class Absent:
    """What stands in the place of a number that could not be measured."""

    reason: str


def measured(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Absent:
    """What ``function`` gives, or why it cannot be measured. Any other error is one."""
    try:
        return function(*args, **kwargs)
    except (Unavailable, MissingPackageError) as error:
        return Absent(str(error))
