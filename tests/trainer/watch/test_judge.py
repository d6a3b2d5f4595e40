"""Who is blamed, from what all ranks say."""

from dataclasses import replace

import pytest

from stagecoach.trainer.watch.judge import Bounds, RankState, judge

BOUNDS = Bounds(still=45.0, slow=1800.0, data=660.0)
CODE = 76


def ranks(count: int, **values) -> list[RankState]:
    """Ranks, eight to a node, that wait in step 1204 for 50 s."""
    common = {"stage": 1, "step": 1204, "micro": 0, "phase": "step", "median": 3.0, "code": 0, "collectives": 9000}
    common |= {"silent": 50.0, "frozen": 0.4, "process": "S"} | values
    return [RankState(rank=r, host=f"node{r // 8:02d}", pid=4000 + r, **common) for r in range(count)]


def with_rank(states, rank, **values):
    states[rank] = replace(states[rank], **values)
    return states


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"phase": "boundary", "step": 1204, "silent": 48.0}, "still"),
        ({"step": 1203, "silent": 49.0}, "still"),
        ({"collectives": 8999}, "still"),
        ({"micro": -1, "silent": 46.0}, "still"),
        ({"process": "T", "frozen": 46.0}, "stopped"),
        ({"process": "T", "frozen": 20.0, "step": 1203, "silent": 49.0}, "stopped"),
        ({"process": "X", "silent": 1.0}, "died"),
        ({"process": "Z", "phase": "data"}, "died"),
    ],
)
def test_who_is_waited_for_is_named_and_not_those_who_wait(changed, kind):
    finding = judge(with_rank(ranks(112), 37, **changed), BOUNDS, CODE)
    assert finding is not None
    assert (finding.kind, finding.ranks, finding.final, finding.code) == (kind, (37,), True, CODE)
    assert "rank 37 (node04, pid 4037) in phase" in finding.text
    assert "of the others 111 in step" in finding.text


def test_a_slow_step_is_no_hang():
    assert judge(ranks(112, median=60.0, silent=590.0), BOUNDS, CODE) is None
    finding = judge(ranks(112, median=60.0, silent=601.0), BOUNDS, CODE)
    assert finding is not None
    assert "no rank is behind another" in finding.text


def test_a_stopped_or_dead_rank_is_named_within_a_minute_however_long_a_step_takes():
    for changed in ({"process": "T", "frozen": 46.0}, {"process": "X"}):
        finding = judge(with_rank(ranks(112, median=60.0), 5, **changed), BOUNDS, CODE)
        assert finding is not None
        assert finding.final
        assert finding.ranks == (5,)


@pytest.mark.parametrize("phase", ["start", "build", "wait", "validation", "preview", "save", "compile"])
def test_a_long_phase_is_no_hang_also_while_others_wait_for_it(phase):
    states = with_rank(ranks(112, silent=1700.0), 0, phase=phase, step=1203)
    assert judge(states, BOUNDS, CODE) is None
    finding = judge(with_rank(states, 0, silent=1801.0), BOUNDS, CODE)
    assert finding is not None
    assert finding.ranks == (0,)


def test_waiting_for_a_batch_is_named_at_once_and_ends_the_job_when_reading_should_have_given_up():
    states = with_rank(ranks(16), 3, phase="data", silent=46.0)
    finding = judge(states, BOUNDS, CODE)
    assert finding is not None
    assert (finding.ranks, finding.final) == ((3,), False)
    finding = judge(with_rank(states, 3, silent=661.0), BOUNDS, CODE)
    assert finding is not None
    assert finding.final


def test_a_silent_node_is_named_only_when_the_others_wait_for_it():
    states = [replace(s, node_silent=50.0) if s.host == "node01" else s for s in ranks(24)]
    finding = judge(states, BOUNDS, CODE)
    assert finding is not None
    assert (finding.kind, finding.ranks) == ("silent", tuple(range(8, 16)))
    assert "ranks 8-15 (node01)" in finding.text
    assert judge([s if s.node_silent else replace(s, silent=2.0) for s in states], BOUNDS, CODE) is None
    slow = judge([replace(s, median=60.0) for s in states], BOUNDS, CODE)
    assert slow is not None
    assert not slow.final


def test_ranks_that_have_left_by_themselves_are_no_loss_and_an_error_is_not_repeated():
    states = ranks(4, silent=10.0)
    assert judge(with_rank(states, 1, phase="end", process="X"), BOUNDS, CODE) is None
    finding = judge(with_rank(ranks(4), 1, phase="end", process="X", code=1), BOUNDS, CODE)
    assert finding is not None
    assert (finding.kind, finding.ranks, finding.code) == ("left", (1,), 1)
    assert judge([replace(s, phase="end", process="X") for s in states], BOUNDS, CODE) is None
    # It will not come, in any phase of the others: with NCCL they would wait for half an hour.
    finding = judge(with_rank(ranks(4, phase="build"), 1, phase="end", process="X", code=1), BOUNDS, CODE)
    assert finding is not None
    assert (finding.kind, finding.final) == ("left", True)
    # At the end of a run rank 0 may be busy for a while when all others have left, also after an error.
    last = [s if s.rank == 0 else replace(s, phase="end", process="X", code=1) for s in ranks(4, phase="save")]
    assert judge(last, BOUNDS, CODE) is None
    last = [s if s.rank == 0 else replace(s, phase="end", process="X") for s in ranks(4, phase="save")]
    assert judge(last, BOUNDS, CODE) is None


def test_an_interpreter_that_native_code_holds_is_told():
    finding = judge(with_rank(ranks(4), 2, step=1203, frozen=30.0), BOUNDS, CODE)
    assert finding is not None
    assert "its interpreter does not run" in finding.text
