"""Several ranks write one checkpoint: what each holds comes to its place, and no rank waits for one that fails."""

import errno
import json
import os
import resource
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from stagecoach.data.files import check_directory
from stagecoach.trainer.checkpointing import peers as talk
from stagecoach.trainer.checkpointing import write
from stagecoach.trainer.checkpointing.failure import SaveError
from stagecoach.trainer.checkpointing.layout import AVERAGED, MODEL, MOMENTS, Layout
from stagecoach.trainer.checkpointing.restore import _load_parts
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.settings import FirstRankError, PeerLostError
from tests.trainer.checkpointing.layouts import CUTS, cut_each, cut_flat

KINDS = (MODEL, *MOMENTS, AVERAGED)
STATE = {"stage": 1, "step": 7}


@pytest.fixture(autouse=True)
def address(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)


def all_ranks(size, function):
    """Results, or failures, of ``function(peers)`` of threads that are ranks."""
    invitation, listener = talk.invite(size)

    def run(rank):
        peers = talk.meet(rank, size, invitation, listener if rank == 0 else None)
        try:
            return function(peers)
        except Exception as error:
            return error
        finally:
            peers.close()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def cut(cutter, sizes, ranks):
    found = cutter(sizes, [i % 2 for i in range(len(sizes))], ranks)
    return Layout(
        KINDS,
        {f"p{i}": (size,) for i, size in enumerate(sizes)},
        [flats for flats, _ in found],
        [own for _, own in found],
    )


def flats_of(layout, rank, whole):
    flats = [np.full(size, -1.0, np.float32) for size in layout.sizes[rank]]
    for name, (group, offset, start, numel) in layout.fragments[rank].items():
        flats[group][offset : offset + numel] = whole[name][start : start + numel]
    return flats


def save_on_all(folder, layout, held, needed=0):
    store = CheckpointStore(Path(folder), keep=2)
    return all_ranks(
        len(layout.sizes),
        lambda peers: write.write_checkpoint(
            store, STATE, {"config.yaml": "config"}, needed, layout, held[peers.rank].__getitem__, peers
        ),
    )


def content(sizes):
    return {kind: {f"p{i}": torch.randn(size) for i, size in enumerate(sizes)} for kind in KINDS}


def held_of(layout, values):
    return [
        {kind: flats_of(layout, rank, whole) for kind, whole in values.items()} for rank in range(len(layout.sizes))
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), CUTS, st.integers(1, 4), st.sampled_from([8, 64, 1 << 24]))
def test_what_each_rank_holds_comes_to_where_it_belongs(sizes, cutter, ranks, piece):
    layout, values = cut(cutter, sizes, ranks), content(sizes)
    held = held_of(layout, values)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "PIECE", piece)
        written = save_on_all(folder, layout, held)
        found = Path(folder, "checkpoint_7")
        assert written == [sum(p.stat().st_size for p in found.rglob("*") if p.is_file()), *[0] * (ranks - 1)]
        check_directory(found)
        for name, kind in (("model", MODEL), ("ema", AVERAGED)):
            save_file(values[kind], Path(folder, "expected"))
            assert (found / f"{name}.safetensors").read_bytes() == Path(folder, "expected").read_bytes()
        moments = {kind: [torch.zeros(sum(sizes))] for kind in MOMENTS}
        (fragments,) = cut_flat(sizes, [0] * len(sizes), 1)[0][1:]
        _load_parts(sorted((found / "optimizer").iterdir()), fragments, moments, found)
        assert all(moments[kind][0].equal(torch.cat(list(values[kind].values()))) for kind in MOMENTS)
        assert sorted(p.name for p in Path(folder).iterdir()) == ["checkpoint_7", "expected"]


@pytest.mark.parametrize("where", [0, 1])
def test_a_weight_that_is_not_finite_is_named_on_all_ranks(tmp_path, where):
    layout, values = cut(cut_each, [9, 30], 2), content([9, 30])
    values[MODEL]["p1"][3 if where == 0 else 28] = float("nan")
    outcome = save_on_all(tmp_path, layout, held_of(layout, values))
    assert isinstance(outcome[where], ValueError)
    assert isinstance(outcome[1 - where], FirstRankError)
    assert all("p1: holds non-finite values, so nothing is written" in str(error) for error in outcome)
    assert not list(tmp_path.iterdir())


def test_a_file_of_all_ranks_that_does_not_fit_is_said_by_all_and_the_next_one_is_written(tmp_path):
    """The others send all they have, also where rank 0 can write no more of it."""
    layout, values = cut(cut_flat, [9000, 40_000], 3), content([9000, 40_000])
    held = held_of(layout, values)
    store = CheckpointStore(tmp_path, keep=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = 4 * 49_000 - 5000  # moments of each rank fit
    failures = []

    def twice(peers):
        save = partial(write.write_checkpoint, store, STATE, {}, 0, layout, held[peers.rank].__getitem__, peers)
        peers.first(resource.setrlimit, resource.RLIMIT_FSIZE, (largest, before[1]))
        try:
            save()
        except (SaveError, FirstRankError) as error:
            failures.append(error)
        finally:
            peers.first(resource.setrlimit, resource.RLIMIT_FSIZE, before)
        assert peers.first(lambda: [str(p) for p in tmp_path.iterdir()]) == []
        return save()

    outcome = all_ranks(3, twice)
    assert outcome[0] > 0
    assert outcome[1:] == [0, 0]
    assert sorted(type(error).__name__ for error in failures) == ["FirstRankError", "FirstRankError", "SaveError"]
    assert all(f"cannot be written ({os.strerror(errno.EFBIG)})" in str(error) for error in failures)
    check_directory(store.path(7))


def test_a_rank_that_ends_is_named_by_all_others(tmp_path):
    def function(peers):
        if peers.rank == 1:
            return None
        peers.each(lambda: None)

    outcome = all_ranks(3, function)
    assert isinstance(outcome[0], PeerLostError)
    assert "rank 1, which writes its part of each checkpoint, is gone" in str(outcome[0])
    assert isinstance(outcome[2], PeerLostError)


def met(invitation, listener):
    """The connections of two ranks, by rank."""
    found = {}
    threads = [
        threading.Thread(target=lambda rank=rank, own=own: found.update({rank: talk.meet(rank, 2, invitation, own)}))
        for rank, own in ((0, listener), (1, None))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_whoever_does_not_know_the_token_is_not_let_in_and_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(talk, "GREETING_SECONDS", 0.5)
    invitation, listener = talk.invite(2)
    strangers = [socket.create_connection(("127.0.0.1", invitation.port)) for _ in range(4)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\n" * 5)
    strangers[1].sendall(b"      1:" + b"0" * 64)
    strangers[3].sendall(b"      1:" + b"\xc3\xa9" * 32)
    by_rank = met(invitation, listener)
    answers = []
    other = threading.Thread(target=lambda: answers.append(by_rank[1].share(None)))
    other.start()
    assert by_rank[0].share({"a": 1}) == {"a": 1}
    other.join(20)
    assert answers == [{"a": 1}]
    assert strangers[1].recv(1) == b""
    for one in (*strangers, *by_rank.values()):
        one.close()


def test_a_rank_that_gave_up_waiting_and_came_again_is_counted_once(monkeypatch):
    """Rank 0 started late: a greeting lies there whose sender is gone."""
    monkeypatch.setattr(talk, "GREETING_SECONDS", 2.0)
    invitation, listener = talk.invite(2)
    with socket.create_connection(("127.0.0.1", invitation.port)) as gone:
        gone.sendall(f"{1:>7}:{invitation.token}".encode())
    by_rank = met(invitation, listener)
    by_rank[1].links[0].sendall(b"here")
    assert by_rank[0].links[1].recv(4) == b"here"
    for peers in by_rank.values():
        peers.close()


def test_ranks_that_do_not_come_are_named(monkeypatch):
    monkeypatch.setattr(talk, "MEET_SECONDS", 0.5)
    invitation, listener = talk.invite(3)
    with pytest.raises(PeerLostError, match=r"rank 1, .*of 2 other ranks 0 came to \['127\.0\.0\.1'"):
        talk.meet(0, 3, invitation, listener)
    with pytest.raises(PeerLostError, match=r"cannot reach its port \d+ to write checkpoints \(.*refused"):
        talk.meet(1, 3, invitation, None)


def test_fragments_are_json(tmp_path):
    layout = cut(cut_each, [5, 3], 2)
    assert Layout.loads(json.loads(json.dumps(layout.__dict__))) == layout
