"""Which samples a rank gets at a step, that this survives any change of the machinery, and that no thread is left."""

import gc
import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagecoach.data.files import DamagedError
from stagecoach.data.format.schema import SchemaError
from stagecoach.data.local_files import UnreachableError
from stagecoach.data.streaming.mixture import DatasetMixture
from stagecoach.data.streaming.order import Order
from stagecoach.data.streaming.plan import ATTEMPTS, SamplePlan
from stagecoach.data.streaming.read_ahead import StalledError
from stagecoach.data.streaming.stream import Batching, Stream, fixed_batches

properties = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
micro_batches = st.integers(1, 13)
workers = st.integers(0, 4)
GLOBAL_BATCH = 12
WORLD_SIZES = [1, 2, 3, 4, 6, 12]


@pytest.fixture(scope="module")
def shards(build, tmp_path_factory):
    """17 samples: no batch size divides an epoch."""
    return build(tmp_path_factory.mktemp("stream"), samples=17)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert threads() == []


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stream")]


def stream(
    shards,
    start,
    stop,
    *,
    world_size=1,
    rank=0,
    micro_batch=4,
    seed=5,
    active_shards=0,
    global_batch=GLOBAL_BATCH,
    **options,
):
    mixture = DatasetMixture([shards])
    plan = SamplePlan(mixture.members()[0], global_batch=global_batch, seed=seed, active_shards=active_shards)
    return Stream(
        mixture,
        plan=plan,
        rank=rank,
        start_step=start,
        stop_step=stop,
        batching=Batching(global_batch, micro_batch, world_size),
        **options,
    )


def global_batches(shards, start, stop, world_size=1, **options):
    """Per step, what all ranks together read: ``(uid, key)`` in the order of the ranks."""
    steps = {step: [] for step in range(start, stop)}
    for rank in range(world_size):
        for step, _, batch in stream(shards, start, stop, world_size=world_size, rank=rank, **options):
            steps[step] += zip(batch["uid"].tolist(), batch["key"], strict=True)
    return list(steps.values())


# -- how a batch is spread --------------------------------------------------------------------------------------------


# -- the order --------------------------------------------------------------------------------------------------------


@properties
@given(
    world_size=st.sampled_from(WORLD_SIZES),
    micro_batch=micro_batches,
    workers=workers,
    prefetch=st.integers(1, 3),
    seed=st.integers(0, 99),
    active_shards=st.integers(0, 3),
    start=st.integers(0, 10**6),
)
def test_global_batches_depend_on_seed_and_step_only(
    shards, world_size, micro_batch, workers, prefetch, seed, active_shards, start
):
    order = Order(shards.shard_sizes, seed, active_shards)
    expected = [
        [(p, shards.name(order.locate(p)[1])[1]) for p in range(s * GLOBAL_BATCH, (s + 1) * GLOBAL_BATCH)]
        for s in range(start, start + 3)
    ]
    assert (
        global_batches(
            shards,
            start,
            start + 3,
            world_size,
            micro_batch=micro_batch,
            workers=workers,
            prefetch=prefetch,
            seed=seed,
            active_shards=active_shards,
        )
        == expected
    )


@properties
@given(data=st.data(), seed=st.integers(0, 99), active_shards=st.integers(0, 3))
def test_a_run_killed_and_resumed_at_other_world_sizes_sees_the_same_sequence(shards, data, seed, active_shards):
    steps = 9
    whole = [
        pair for batch in global_batches(shards, 0, steps, seed=seed, active_shards=active_shards) for pair in batch
    ]
    resumed, step = [], 0
    while step < steps:
        world_size = data.draw(st.sampled_from(WORLD_SIZES))
        options = {
            "world_size": world_size,
            "micro_batch": data.draw(micro_batches),
            "workers": data.draw(workers),
            "seed": seed,
            "active_shards": active_shards,
        }
        kill = data.draw(st.integers(step + 1, steps))
        resumed += [pair for batch in global_batches(shards, step, kill, **options) for pair in batch]
        # The kill comes inside step ``kill``, with later batches already read ahead; none of that counts.
        for rank in range(world_size):
            next(iter(stream(shards, kill, steps + 2, rank=rank, **options)))
        step = kill
    assert resumed == whole


@properties
@given(world_size=st.sampled_from(WORLD_SIZES), seed=st.integers(0, 99), active_shards=st.integers(0, 3))
def test_each_sample_comes_once_per_epoch_though_batches_straddle_epochs(shards, world_size, seed, active_shards):
    epochs = 4
    steps = -(-epochs * len(shards) // GLOBAL_BATCH)
    seen = [
        pair
        for batch in global_batches(shards, 0, steps, world_size, seed=seed, active_shards=active_shards)
        for pair in batch
    ]
    assert [uid for uid, _ in seen] == list(range(steps * GLOBAL_BATCH)), "positions are taken once and in order"
    keys = [key for _, key in seen]
    for epoch in range(epochs):
        assert len(set(keys[epoch * len(shards) : (epoch + 1) * len(shards)])) == len(shards)


def test_resume_far_along_costs_no_skipping(shards):
    begin = time.perf_counter()
    step, micro_index, batch = next(iter(stream(shards, 10**12, 10**12 + 1)))
    assert time.perf_counter() - begin < 5
    assert (step, micro_index) == (10**12, 0)
    assert batch["uid"].tolist() == [12 * 10**12 + i for i in range(4)]


def test_steps_and_micro_steps_are_counted(shards):
    found = [
        (step, micro_index, batch["uid"].tolist())
        for step, micro_index, batch in stream(shards, 1, 3, world_size=2, rank=1, micro_batch=4)
    ]
    assert found == [(1, 0, [18, 19, 20]), (1, 1, [21, 22, 23]), (2, 0, [30, 31, 32]), (2, 1, [33, 34, 35])]


def test_each_iteration_starts_over(shards):
    source = stream(shards, 0, 2)
    assert [b["key"] for _, _, b in source] == [b["key"] for _, _, b in source]


# -- what is in a batch -----------------------------------------------------------------------------------------------


def test_batch_holds_the_fields_of_its_samples(shards, make_arrays):
    _, _, batch = next(iter(stream(shards, 0, 1, micro_batch=12)))
    numbers = [int(key.removeprefix("clip")) for key in batch["key"]]
    assert set(batch) == {"latent", "text", "depth", "scale", "frame", "uid", "key"}
    assert batch["uid"].dtype == torch.int64
    assert batch["latent"].dtype == batch["text"].dtype == torch.bfloat16
    assert (batch["depth"].dtype, batch["scale"].dtype) == (torch.float16, torch.float32)
    assert (batch["frame"].dtype, batch["frame"].shape) == (torch.uint8, (12, 4, 6, 3))
    assert batch["scale"].tolist() == numbers
    for row, number in enumerate(numbers):
        arrays = make_arrays(number)
        bits = batch["latent"][row].view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(bits, arrays["latent"])
        np.testing.assert_array_equal(batch["depth"][row].numpy(), arrays["depth"])


def test_padded_field_ends_in_zeros_behind_its_own_length(shards, make_arrays):
    _, _, batch = next(iter(stream(shards, 0, 1, micro_batch=12)))
    assert batch["text"].shape == (12, 3, 4)
    for row, key in enumerate(batch["key"]):
        text = make_arrays(int(key.removeprefix("clip")))["text"]
        bits = batch["text"][row].view(torch.int16).numpy()
        np.testing.assert_array_equal(bits[: len(text)], text)
        assert not bits[len(text) :].any()


def test_fixed_batches_take_these_indices_in_this_order(shards):
    batches = list(fixed_batches(DatasetMixture([shards]), [5, 0, 16, 3, 4], 2))
    assert [b["uid"].tolist() for b in batches] == [[5, 0], [16, 3], [4]]
    assert [b["key"] for b in batches] == [["clip005", "clip000"], ["clip016", "clip003"], ["clip004"]]
    assert batches[0]["latent"].shape == (2, 2, 2, 3)


# -- threads ----------------------------------------------------------------------------------------------------------


class Watched:
    """Shards that count what is read, and may be slow or fail for some keys."""

    def __init__(self, shards, delay=lambda index: 0.0, error=lambda index: None):
        self.shards, self.delay, self.error = shards, delay, error
        self.reads, self.lock = 0, threading.Lock()

    def __getattr__(self, name):
        return getattr(self.shards, name)

    def __len__(self):
        return len(self.shards)

    def read(self, index):
        with self.lock:
            self.reads += 1
        time.sleep(self.delay(index))
        if self.error(index):
            raise self.error(index)
        return self.shards.read(index)


def test_batches_keep_their_order_when_reads_overtake_each_other(shards):
    slow = Watched(shards, delay=lambda index: 0.004 * (index % 3))
    uids = [uid for _, _, b in stream(slow, 0, 5, micro_batch=1, workers=4) for uid in b["uid"].tolist()]
    assert uids == list(range(60))


def test_workers_read_at_the_same_time(shards):
    together = threading.Barrier(4, timeout=60)  # breaks unless four threads are in a read at once
    watched = Watched(shards, delay=lambda index: together.wait() * 0.0)
    assert sum(1 for _ in stream(watched, 0, 2, micro_batch=1, workers=4)) == 24


def test_reading_ahead_is_bounded_but_happens_while_the_consumer_works(shards):
    watched = Watched(shards)
    batches = iter(stream(watched, 0, 100, micro_batch=3, workers=2, prefetch=2))
    for taken in range(1, 6):
        next(batches)
        ahead, deadline = 3 * (taken + 2 * 2), time.monotonic() + 60
        while watched.reads < ahead and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.03)
        assert watched.reads == ahead
    batches.close()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_reaches_the_consumer_after_the_batches_before_it(build, tmp_path, workers):
    shards = build(tmp_path, samples=12)
    bad = Order(shards.shard_sizes, 5).locate(7)[1]
    broken = Watched(shards, error=lambda index: UnreachableError("no network") if index == bad else None)
    batches = iter(stream(broken, 0, 1, micro_batch=3, workers=workers))
    assert [batch["uid"].tolist() for _, _, batch in islice(batches, 2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(UnreachableError, match="no network"):
        next(batches)
    assert threads() == []
    assert list(batches) == []


@properties
@given(
    world_size=st.sampled_from(WORLD_SIZES),
    micro_batch=micro_batches,
    workers=workers,
    damaged=st.sets(st.integers(0, 16), min_size=1, max_size=4),
)
def test_damaged_samples_are_replaced_alike_whoever_reads_them(shards, world_size, micro_batch, workers, damaged):
    broken = Watched(shards, error=lambda index: DamagedError(f"sample {index} is bad") if index in damaged else None)
    names = {shards.name(index)[1] for index in damaged}
    whole = [pair for batch in global_batches(shards, 0, 4) for pair in batch]
    alone = [pair for batch in global_batches(broken, 0, 4) for pair in batch]
    assert global_batches(broken, 0, 4, world_size, micro_batch=micro_batch, workers=workers) == [
        alone[first : first + GLOBAL_BATCH] for first in range(0, len(alone), GLOBAL_BATCH)
    ]
    for (uid, before), (same, after) in zip(whole, alone, strict=True):
        assert uid == same
        assert after == before if before not in names else after not in names


def test_replaced_samples_are_listed_when_their_batch_is_handed_out(shards):
    bad = Order(shards.shard_sizes, 5).locate(7)[1]
    broken = Watched(shards, error=lambda index: SchemaError("too short") if index == bad else None)
    source = stream(broken, 0, 1, micro_batch=3, workers=2, prefetch=4)
    batches = iter(source)
    next(batches), next(batches)
    assert source.bad == []
    next(batches)
    shard, key = shards.name(bad)
    assert [(b.uid, b.index, b.key, b.reason) for b in source.bad] == [(7, bad, key, "too short")]
    assert source.bad[0].shard.endswith(shard)
    batches.close()


def test_when_all_substitutes_are_bad_too_the_stream_stops(shards):
    broken = Watched(shards, error=lambda index: DamagedError(f"sample {index} is bad"))
    with pytest.raises(DamagedError, match="is bad") as caught:
        next(iter(stream(broken, 2, 3)))
    assert any(f"{ATTEMPTS} others" in note and "step 2, uid 24" in note for note in caught.value.__notes__)


def test_a_read_that_hangs_stops_the_stream_within_its_time(shards, monkeypatch):
    monkeypatch.setattr("stagecoach.data.streaming.read_ahead.GRACE", 0.2)
    hanging = threading.Event()
    stuck = Watched(shards, delay=lambda index: float(hanging.wait(30)) * 0.0)
    begin = time.monotonic()
    with pytest.raises(StalledError, match=r"no data for \(3, 0\) within 0.3 s"):
        next(iter(stream(stuck, 3, 9, timeout=0.3)))
    assert time.monotonic() - begin < 5
    hanging.set()
    while threads():
        time.sleep(0.01)


def test_an_unforeseen_error_carries_step_position_shard_and_key(shards):
    broken = Watched(shards, error=lambda index: ZeroDivisionError("division"))
    with pytest.raises(ZeroDivisionError) as caught:
        next(iter(stream(broken, 3, 4, micro_batch=1)))
    shard, key = shards.name(Order(shards.shard_sizes, 5).locate(36)[1])
    assert any("step 3, uid 36" in note and shard in note and key in note for note in caught.value.__notes__)


def test_closing_ends_the_threads_without_reading_the_rest(shards):
    slow = Watched(shards, delay=lambda index: 0.05)
    batches = iter(stream(slow, 0, 1000, micro_batch=12, workers=3))
    next(batches)
    assert len(threads()) == 3
    reads = slow.reads
    batches.close()
    assert threads() == []
    assert slow.reads <= reads + 3, "each worker stops after the sample it is at, not after its batch"


def test_a_break_or_an_error_in_the_loop_ends_the_threads(shards):
    for _ in stream(shards, 0, 1000):
        assert threads()
        break
    gc.collect()
    assert threads() == []

    def loop():
        for _ in stream(shards, 0, 1000):
            raise RuntimeError("the step failed")

    with pytest.raises(RuntimeError, match="the step failed") as caught:
        loop()
    del caught
    gc.collect()


def test_exhaustion_ends_the_threads(shards):
    assert len(list(stream(shards, 0, 2, micro_batch=12))) == 2
    assert threads() == []
    assert list(stream(shards, 2, 2)) == []


# -- misuse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [-1, 2])
def test_rank_outside_of_the_world_is_refused(shards, rank):
    with pytest.raises(ValueError, match=f"rank is {rank}, expected one of 2"):
        stream(shards, 0, 1, world_size=2, rank=rank)


def test_a_plan_for_another_batch_is_refused(shards):
    plan = SamplePlan(DatasetMixture([shards]).members()[0], global_batch=8, seed=0)
    with pytest.raises(ValueError, match="for global batches of 8, expected 1"):
        Stream(DatasetMixture([shards]), plan=plan, batching=Batching(1, 1, 1), rank=0, start_step=0, stop_step=1)
