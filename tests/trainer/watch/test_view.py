"""What rank 0 makes of the numbers of all ranks."""

import math

import pytest

from stagecoach.trainer.watch.record import SENSORS
from stagecoach.trainer.watch.view import COLUMNS, ClusterReducer, own_seconds

HOSTS = [f"node{rank // 8:02d}" for rank in range(112)]


def table(collective, step=3.0, **columns):
    """Rows of 112 ranks; ``columns`` are values by rank for some of them, missing where nothing is said."""
    rows = []
    for rank, waits in enumerate(collective):
        row = dict.fromkeys(COLUMNS, math.nan)
        row |= {"step_seconds": step, "collective_seconds": waits, "data_wait": 0.0, "memory_gib": 60.0}
        row |= {name: values[rank] for name, values in columns.items() if rank in values}
        rows.append([row[name] for name in COLUMNS])
    return rows


def test_the_own_time_of_a_rank_is_the_step_without_its_waiting_for_others():
    assert own_seconds([3.0, 3.0, 3.0], [1.2, 0.2, 1.2]) == pytest.approx([2.0, 3.0, 2.0])
    assert own_seconds([3.0, 3.1], [math.nan, math.nan]) == [3.0, 3.1]


def test_a_rank_that_is_slow_in_three_of_five_windows_is_named_once_and_again_when_it_is_not():
    reducer = ClusterReducer(HOSTS)
    even = [1.0] * 112
    late = [1.0 if rank != 37 else 0.2 for rank in range(112)]
    said = [reducer.reduce(table(waits)).warnings for waits in (late, even, late, even, late, late)]
    assert [len(words) for words in said] == [0, 0, 0, 0, 1, 0]
    assert said[4][0].startswith("straggler: rank 37 (node04) takes 3 s a step, 1.36 times the median of 2.2 s")
    said = [reducer.reduce(table(even)).warnings for _ in range(6)]
    assert [word for words in said for word in words] == ["rank 37 (node04) is no straggler any more"]


def test_a_straggler_among_ranks_whose_own_time_is_nothing_is_named():
    reducer = ClusterReducer(HOSTS)
    late = [3.0 if rank != 37 else 0.0 for rank in range(112)]
    said = [reducer.reduce(table(late)).warnings for _ in range(3)]
    assert said[2][0].startswith("straggler: rank 37 (node04) takes 3 s a step, more than the median of 0 s")


def test_fourteen_per_cent_is_no_straggler():
    reducer = ClusterReducer(HOSTS)
    late = [1.0 if rank != 37 else 0.64 for rank in range(112)]
    assert not any(reducer.reduce(table(late)).warnings for _ in range(10))


def test_the_line_and_the_values_name_extremes_and_their_ranks():
    view = ClusterReducer(HOSTS).reduce(
        table(
            [1.0 if rank != 37 else 0.2 for rank in range(112)],
            data_wait={12: 0.4},
            memory_gib={100: 71.0},
            network_sent_mb_per_second=dict.fromkeys(range(112), 10.0),
            gpu_temperature_c={rank: 60.0 + rank / 10 for rank in range(112)},
            gpu_throttle_bits={rank: 0x40 if rank == 5 else 0 for rank in range(112)},
        )
    )
    assert view.line == (
        "slowest rank 37 (node04) 3 s a step, median 2.2 s; data wait up to 40% (rank 12 (node01)); "
        "memory up to 71.0 GiB (rank 100 (node12))"
    )
    values = view.values
    assert (values["cluster/slowest_rank"], values["cluster/memory_gib_max"]) == (37.0, 71.0)
    assert values["cluster/network_sent_mb_per_second"] == 140.0  # of 14 nodes, not of 112 ranks
    assert values["cluster/gpu_temperature_c_max"] == pytest.approx(71.1)
    assert values["cluster/gpus_throttled"] == 1.0
    assert "cluster/gpu_power_watts" not in values  # nobody has one
    assert view.ranks["step_seconds"][37] == 3.0
    assert len(view.ranks["step_seconds"]) == 112


def test_an_xid_and_memory_errors_are_told_once_with_rank_and_host():
    reducer = ClusterReducer(HOSTS)
    rows = table([1.0] * 112, gpu_xid={8: 79.0}, gpu_ecc_errors={9: 2.0})
    assert reducer.reduce(rows).warnings == [
        "the GPU of rank 8 (node01) reports XID 79",
        "the GPU of rank 9 (node01) reports 2 uncorrected ECC errors",
    ]
    assert reducer.reduce(rows).warnings == []


def test_all_sensors_have_a_column():
    assert set(SENSORS) < set(COLUMNS)
