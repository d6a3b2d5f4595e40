from collections.abc import Iterable

from stagecoach.models.family import Family


def undeclared(family: Family, names: Iterable[str]) -> set[str]:
    """Those of ``names`` that are neither a declared metric nor its baseline."""
    return set(names) - {name for metric in family.metrics for name in (metric.name, metric.baseline)}
