"""Samples of unknown origin are counted by every family from their arrays alone."""

from __future__ import annotations

import numpy as np
import pytest

from stagecoach.data.builders import BUILDERS, Builder, builder
from stagecoach.data.format.schema import DTYPES
from stagecoach.data.maintenance.indexing import family_schema
from stagecoach.data.maintenance.recompute_statistics import Counted, RecomputedStatistics, merge

BF16_ONE = 0x3F80


def arrays_of(schema, value: dict) -> dict[str, np.ndarray]:
    """Zeros in the sizes of the schema, named dimensions being 3, but for ``value`` by field."""
    found = {}
    for spec in schema.fields:
        shape = tuple(3 if isinstance(dim, str) else dim for dim in spec.shape)
        found[spec.name] = np.full(shape, value.get(spec.name, 0), DTYPES.get(spec.dtype, np.uint8))
    return found


def numbers(value) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(entry, np.float64)) for entry in value.values()])


COUNTING = [family for family in sorted(BUILDERS) if type(builder(family)).count is not Builder.count]


@pytest.mark.parametrize("family", sorted(set(BUILDERS) - set(COUNTING)))
def test_a_family_without_statistics_has_none_after_any_sample(family):
    recomputed = RecomputedStatistics(family, frozenset())
    recomputed.take("s0", arrays_of(family_schema(family), {}), {})
    assert (recomputed.result().values, recomputed.result().problem) == (None, "")


@pytest.mark.parametrize("family", COUNTING)
def test_parts_add_up_to_the_whole(family):
    schema = family_schema(family)
    ones = {"intrinsics": 1, "extrinsics": 1}
    samples = [(f"s{number}", arrays_of(schema, {**ones, "depth": 1 if number else 0}), {}) for number in range(3)]

    def counted(chosen, without=frozenset()):
        recomputed = RecomputedStatistics(family, without)
        for sample in chosen:
            recomputed.take(*sample)
        return recomputed.result()

    whole = counted(samples)
    assert whole.problem == ""
    assert np.isfinite(numbers(whole.values)).all()
    assert merge([counted(samples[:1]), counted(samples[1:])]) == whole
    assert counted(samples, frozenset({"s0"})) == counted(samples[1:])


def test_bits_of_bf16_are_counted_as_numbers():
    recomputed = RecomputedStatistics("movie_post_production", frozenset())
    recomputed.take("s", arrays_of(family_schema("movie_post_production"), {"latent": BF16_ONE}), {})
    found = recomputed.result().values
    assert found["latent_sum"] == [found["latent_count"]] * 16


def test_parts_of_other_sizes_make_no_whole():
    assert merge([Counted({"a": [1]}, ""), Counted({"a": [1, 2]}, "")]).values is None
    assert merge([Counted({"a": 1}, ""), Counted(None, "why")]) == Counted(None, "why")
    assert merge([Counted(None, "")]) == Counted(None, "")
    assert RecomputedStatistics("nobody", frozenset()).result().problem == "no family 'nobody' is known here"
