"""Writing a checkpoint: every rank its part, under a temporary name until all of it is there."""

import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from stagecoach.data.files import (
    TEMPORARY,
    commit_directory,
    describe_files,
    list_files,
    seal_directory,
    temporary_name,
    write_json,
)
from stagecoach.data.tensors import save_tensors
from stagecoach.trainer.checkpointing.failure import check_space, explained
from stagecoach.trainer.checkpointing.partition import (
    MOMENTS,
    adam_states,
    adam_steps,
    assemble,
    find_fragments,
    loss_scaler_state,
)
from stagecoach.trainer.checkpointing.state import AVERAGE, OPTIMIZER, STATE, WEIGHTS, TrainingState
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.distributed import World, attempt, on_first, together
from stagecoach.trainer.ema import Ema
from stagecoach.trainer.engine import master_partitions
from stagecoach.trainer.freeze import parameter_count, parameter_shape
from stagecoach.trainer.job_state import note_progress
from stagecoach.trainer.waiting import waiting
from stagecoach.trainer.watch.heartbeat import UNCOUNTED

log = logging.getLogger(__name__)

PIECE = 2**26
"""Elements in one message to rank 0."""
HEADERS = 2**20
"""Bytes that a checkpoint takes besides its tensors, generously."""


class Saver:
    """Writes the checkpoints of one stage, each rank what it holds; rank 0 gathers the weights and the average.

    ``asynchronous``: training waits only until each rank has copied what it holds to (page-locked) host memory, which
    takes as much of it as the checkpoint has bytes per rank; a thread writes it while training goes on. The thread
    computes nothing, and what takes it time (copies, files, hashes, messages) leaves the interpreter to training. One
    checkpoint is written at a time. Its failure is raised on all ranks by the next ``save`` or by ``wait``.
    """

    def __init__(
        self,
        store: CheckpointStore,
        engine: deepspeed.DeepSpeedEngine,
        parameters: dict[str, nn.Parameter],
        ema: Ema | None,
        world: World,
        asynchronous: bool = False,
    ) -> None:
        self.store, self.engine, self.parameters, self.ema = store, engine, parameters, ema
        self.world, self.asynchronous = world, asynchronous
        self.ranks: list[tuple[list[int], dict]] = []
        """Sizes of the flat partitions and the fragments in them of each rank, once they are known."""
        self.buffers: dict[str, list[Tensor]] = {}
        self.thread: threading.Thread | None = None
        self.failure: Exception | None = None
        self.stalled = 0.0
        """Seconds that training stood still for the last checkpoint."""

    def save(self, state: TrainingState, config: str) -> Path:
        """Write a checkpoint and drop the oldest beyond ``store.keep``. Every rank calls it.

        Returns:
            Its folder, which is there once ``wait`` has returned.

        Raises:
            SaveError, FirstRankError: a file cannot be written, now or of the checkpoint before; nothing stays of it.
            ValueError: a weight is not finite.
        """
        self.wait()
        started = time.monotonic()
        if not self.ranks:
            self.meet()
        state = replace(state, adam_steps=adam_steps(self.engine), loss_scale=loss_scaler_state(self.engine))
        flats = self._flats()
        if self.asynchronous:
            if self.buffers.keys() != flats.keys():
                together(self.world, attempt(self._make_buffers, flats))
            flats = self._copied(flats)
            self.stalled = time.monotonic() - started
            self.thread = threading.Thread(
                target=self._write_behind, args=(flats, state, config, started), name="checkpoint", daemon=True
            )
            self.thread.start()
        else:
            self._write(flats, state, config, started)
        return self.store.path(state.step)

    def wait(self) -> None:
        """Wait for the checkpoint that is being written, if any. Every rank calls it; raises what ``save`` does."""
        if self.thread is not None:
            with waiting("the checkpoint before to be written"):
                self.thread.join()
            self.thread = None
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End of the stage, also by an error: what is being written is finished, and its failure said where it is not
        raised."""
        try:
            self.wait()
        except Exception as error:
            log.warning("the last checkpoint was not written: %s", error)
        if self.world.group is not None:
            dist.destroy_process_group(self.world.group)
            self.world = replace(self.world, group=None)
        self.ranks, self.buffers = [], {}

    def meet(self) -> None:
        """Make a process group of its own (gloo, since files are written from host memory), so that its messages never
        mix with those of training, and learn what each rank holds. Every rank calls it, before the first step: a
        network on which gloo cannot meet is found there and not at the first save, hours later."""
        if self.world.size > 1:
            group = dist.new_group(backend="gloo", timeout=timedelta(hours=2), group_desc=UNCOUNTED)
            self.world = replace(self.world, group=group)
        own = [flat.numel() for flat in master_partitions(self.engine)], find_fragments(self.engine, self.parameters)
        ranks: list[Any] = [None] * self.world.size
        dist.all_gather_object(ranks, own, group=self.world.group)
        for name, parameter in self.parameters.items():
            held = sum(fragments[name].numel for _, fragments in ranks if name in fragments)
            if held != parameter_count(parameter):
                raise ValueError(
                    f"{name}: the ranks hold {held} elements, expected {parameter_count(parameter)}; the engine does "
                    f"not own this parameter"
                )
        self.ranks = ranks

    def _flats(self) -> dict[str, list[Tensor]]:
        """All that this rank holds, as it is."""
        states = adam_states(self.engine)
        flats = {"model": [flat.detach() for flat in master_partitions(self.engine)]}
        flats |= {name: [state[name] for state in states] for name in MOMENTS}
        if self.ema is not None:
            flats["ema"] = self.ema.shadows
        return flats

    def _check_finite(self, flats: list[Tensor]) -> None:
        if all(bool(torch.isfinite(flat).all()) for flat in flats):
            return
        for name, (group, offset, _, numel) in self.ranks[self.world.rank][1].items():
            if not torch.isfinite(flats[group][offset : offset + numel]).all():
                raise ValueError(f"{name}: holds non-finite values, so nothing is written; resume an older checkpoint")

    def _make_buffers(self, flats: dict[str, list[Tensor]]) -> None:
        """Host memory for copies, which is kept for all checkpoints: page-locked memory is slow to get."""
        self.buffers = {
            key: [torch.empty(flat.shape, dtype=flat.dtype, pin_memory=flat.is_cuda) for flat in part]
            for key, part in flats.items()
        }

    def _copied(self, flats: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """A copy in host memory."""
        for key, part in flats.items():
            for target, flat in zip(self.buffers[key], part, strict=True):
                target.copy_(flat, non_blocking=True)
        if any(flat.is_cuda for part in flats.values() for flat in part):
            torch.cuda.synchronize()
        return self.buffers

    def _write_behind(self, *args: Any) -> None:
        try:
            self._write(*args)
        except Exception as error:
            self.failure = error

    def _write(self, flats: dict[str, list[Tensor]], state: TrainingState, config: str, started: float) -> None:
        world, final = self.world, self.store.path(state.step)
        needed = HEADERS + 4 * len(flats) * sum(sum(sizes) for sizes, _ in self.ranks)

        def explain(function: Callable) -> Callable:
            return explained(function, final, needed, self.store)

        together(world, attempt(self._check_finite, flats["model"]))
        temporary = Path(on_first(world, explain(_prepare), final, needed))
        try:
            together(world, attempt(explain(self._save_moments), temporary, flats))
            for file, part in ((WEIGHTS, flats["model"]), (AVERAGE, flats.get("ema"))):
                if part is not None:
                    whole = self._gather(part)
                    together(world, attempt(explain(save_tensors), whole, temporary / file) if world.is_first else None)
                    del whole
            on_first(world, explain(_describe), temporary, state, config)
            seal_together(temporary, world, explain)
            on_first(world, explain(_commit), self.store, temporary, final)
        except BaseException:
            if world.is_first:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if world.is_first:
            note_progress(f"stage {state.stage}, step {state.step}")
            size = sum(p.stat().st_size for p in final.rglob("*") if p.is_file())
            stood = f", training stood still for {self.stalled:.2f} s of them" if self.asynchronous else ""
            log.info(f"checkpoint {final} ({size / 1e6:,.1f} MB, {time.monotonic() - started:.1f} s{stood})")

    def _save_moments(self, temporary: Path, flats: dict[str, list[Tensor]]) -> None:
        tensors = {f"{name}.{i}": flat.cpu() for name in MOMENTS for i, flat in enumerate(flats[name])}
        fragments = json.dumps(self.ranks[self.world.rank][1], sort_keys=True)
        file = temporary / OPTIMIZER / f"rank_{self.world.rank:05d}.safetensors"
        save_tensors(tensors, file, {"fragments": fragments})

    def _gather(self, flats: list[Tensor]) -> dict[str, Tensor]:
        """Whole fp32 tensors on rank 0; nothing elsewhere."""
        shapes = {name: parameter_shape(parameter) for name, parameter in self.parameters.items()}
        whole: dict[str, Tensor] = {}

        def allocate() -> None:
            whole.update({name: torch.empty(math.prod(shape)) for name, shape in shapes.items()})

        together(self.world, attempt(allocate) if self.world.is_first else None)
        if not self.world.is_first:
            for flat in flats:
                for piece in flat.cpu().split(PIECE):
                    dist.send(piece, 0, group=self.world.group)
            return {}
        for rank, (sizes, fragments) in enumerate(self.ranks):
            received = flats if rank == 0 else [torch.empty(size) for size in sizes]
            for flat in received if rank else []:
                for piece in flat.split(PIECE):
                    dist.recv(piece, rank, group=self.world.group)
            assemble(received, fragments, whole)
        return {name: tensor.view(shapes[name]) for name, tensor in whole.items()}


def _prepare(final: Path, needed: int) -> str:
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


def _describe(temporary: Path, state: TrainingState, config: str) -> None:
    write_json(temporary / STATE, asdict(state))
    (temporary / "config.yaml").write_text(config)


def _commit(store: CheckpointStore, temporary: Path, final: Path) -> None:
    commit_directory(temporary, final)
    store.retire()


def seal_together(directory: Path, world: World, explain: Callable[[Callable], Callable]) -> None:
    """Seal a directory that all ranks see; each hashes its part of the files, since optimizer shards are large."""
    names = on_first(world, explain(list_files), directory)
    own: dict[str, dict] = {}

    def describe() -> None:
        own.update(describe_files(directory, names[world.rank :: world.size]))

    together(world, attempt(explain(describe)))
    parts: list[dict] = [{} for _ in range(world.size)]
    dist.all_gather_object(parts, own, group=world.group)
    on_first(world, explain(seal_directory), directory, {k: v for part in parts for k, v in part.items()})
