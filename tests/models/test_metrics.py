"""What the families declare of their metrics."""

import pytest

from stagecoach.models import FAMILIES, get_family


@pytest.mark.parametrize("name", FAMILIES)
def test_metrics_are_declared_once_and_criteria_name_them(name):
    family = get_family(name)
    names = [metric.name for metric in family.metrics]
    assert len(names) == len(set(names))
    assert not {metric.baseline for metric in family.metrics} & set(names)
    for config in family.sizes.values():
        for spec in family.stages(config):
            assert {criterion.metric for criterion in spec.exits} <= set(names)
