"""Writing a checkpoint: every rank its part, under a temporary name until all of it is there. Needs no torch.

The ranks do this themselves, or the processes behind them from a copy (``process.py``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.files import (
    TEMPORARY,
    commit_directory,
    describe_files,
    list_files,
    seal_directory,
    temporary_name,
    write_json,
)
from stagecoach.data.tensor_file import PIECE, TensorFile
from stagecoach.data.weight_files import AVERAGE, STATE, WEIGHTS
from stagecoach.trainer.checkpointing.failure import check_space, explained
from stagecoach.trainer.checkpointing.layout import AVERAGED, MODEL, MOMENTS, Layout
from stagecoach.trainer.checkpointing.peers import Peers
from stagecoach.trainer.checkpointing.state import OPTIMIZER
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.job_state import note_progress

HEADERS = 2**20
"""Bytes that a checkpoint takes besides its tensors, generously."""
CHECKED = 2**18
"""Elements that are looked at together."""

Held = Callable[[str], list[np.ndarray]]
"""Gives this rank's flat fp32 partitions of a kind."""


def write_checkpoint(
    store: CheckpointStore,
    state: dict[str, Any],
    texts: dict[str, str],
    needed: int,
    layout: Layout,
    held: Held,
    peers: Peers,
) -> int:
    """Write a checkpoint and drop the oldest beyond ``store.keep``. All ranks call it.

    Args:
        state: the fields of a ``TrainingState``.
        texts: what else is written, by the names of files.
        needed: bytes that must be free.

    Returns:
        Its bytes.

    Raises:
        SaveError, FirstRankError: a file cannot be written; nothing stays of it.
        LostFolderError: another run has taken the folder.
        ValueError: a weight is not finite.
        PeerLostError: another rank is gone.
    """
    final, rank = store.path(state["step"]), peers.rank

    def explain(function: Callable) -> Callable:
        return explained(function, final, needed, store)

    peers.each(check_finite, layout, held, rank)
    temporary = Path(peers.first(explain(_prepare), store, final, needed))
    try:
        peers.each(explain(_write_moments), temporary, layout, held, rank)
        for name, kind in ((WEIGHTS, MODEL), (AVERAGE, AVERAGED)):
            if kind in layout.kinds:
                flats: list[np.ndarray] = []
                peers.each(_fill, flats, held, kind)
                peers.each(explain(_write_whole), temporary / name, layout, flats, peers)
        peers.first(explain(_describe), temporary, state, texts)
        _seal(temporary, peers, explain)
        peers.first(explain(_commit), store, temporary, final)
    except BaseException:
        if peers.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if not peers.is_first:
        return 0
    note_progress(f"stage {state['stage']}, step {state['step']}")
    return sum(p.stat().st_size for p in final.rglob("*") if p.is_file())


def check_finite(layout: Layout, held: Held, rank: int) -> None:
    flats = held(MODEL)
    for name, (group, offset, _, numel) in layout.in_order(rank):
        for at in range(offset, offset + numel, CHECKED):
            if not np.isfinite(flats[group][at : min(at + CHECKED, offset + numel)]).all():
                raise ValueError(f"{name}: holds non-finite values, so nothing is written; resume an older checkpoint")


def _write_moments(temporary: Path, layout: Layout, held: Held, rank: int) -> None:
    shapes = {f"{kind}.{i}": (size,) for kind in MOMENTS for i, size in enumerate(layout.sizes[rank])}
    fragments = json.dumps(layout.fragments[rank], sort_keys=True)
    file = TensorFile(temporary / OPTIMIZER / f"rank_{rank:05d}.safetensors", shapes, {"fragments": fragments})
    try:
        for kind in MOMENTS:
            for i, flat in enumerate(held(kind)):
                file.write(f"{kind}.{i}", 0, _bytes(flat))
        file.sync()
    finally:
        file.close()


def _fill(flats: list[np.ndarray], held: Held, kind: str) -> None:
    """In an agreement of its own: a rank that cannot read what it holds must not be waited for."""
    flats.extend(held(kind))


def _write_whole(path: Path, layout: Layout, flats: list[np.ndarray], peers: Peers) -> None:
    """Rank 0 writes what each rank holds to where in the file it belongs; the others send it."""
    if not peers.is_first:
        for _, (group, offset, _, numel) in layout.in_order(peers.rank):
            peers.send(_bytes(flats[group][offset : offset + numel]))
        return
    file, failure, piece = None, None, memoryview(bytearray(PIECE if peers.size > 1 else 0))
    try:
        file = TensorFile(path, layout.shapes)
        for name, (group, offset, start, numel) in layout.in_order(0):
            file.write(name, start, _bytes(flats[group][offset : offset + numel]))
    except OSError as error:
        failure = error
    try:
        for rank in range(1, peers.size):
            for name, fragment in layout.in_order(rank):
                for at in range(0, 4 * fragment.numel, PIECE):
                    part = piece[: min(PIECE, 4 * fragment.numel - at)]
                    # Also where nothing can be written any more: the others send all of it.
                    peers.receive(rank, part)
                    if file is not None and failure is None:
                        try:
                            file.write(name, fragment.start + at // 4, part)
                        except OSError as error:
                            failure = error
        if file is not None and failure is None:
            file.sync()
    finally:
        if file is not None:
            file.close()
    if failure is not None:
        raise failure


def _bytes(flat: np.ndarray) -> memoryview:
    return flat.view(np.uint8).data


def _prepare(store: CheckpointStore, final: Path, needed: int) -> str:
    if store.claim is not None:
        store.claim.check()
    directory = final.parent
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(f"{TEMPORARY}*"):
        # Only one run owns this directory, so what an earlier, killed one left half-written is nobody's.
        shutil.rmtree(leftover, ignore_errors=True)
    check_space(directory, needed)
    temporary = temporary_name(final)
    temporary.mkdir()
    try:
        (temporary / OPTIMIZER).mkdir()
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return str(temporary)


def _describe(temporary: Path, state: dict[str, Any], texts: dict[str, str]) -> None:
    write_json(temporary / STATE, state)
    for name, text in texts.items():
        (temporary / name).write_text(text)


def _commit(store: CheckpointStore, temporary: Path, final: Path) -> None:
    if store.claim is not None:
        store.claim.check()
    commit_directory(temporary, final)
    store.retire(final)


def _seal(directory: Path, peers: Peers, explain: Callable[[Callable], Callable]) -> None:
    """Seal a directory that all ranks see; each hashes its part of the files, since optimizer shards are large."""
    names = peers.first(explain(list_files), directory)
    own: dict[str, dict] = {}

    def describe() -> None:
        own.update(describe_files(directory, names[peers.rank :: peers.size]))

    peers.each(explain(describe))
    parts = peers.gather(own)
    peers.first(explain(seal_directory), directory, {k: v for part in parts for k, v in part.items()})
