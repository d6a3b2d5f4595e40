"""Saving: in the step, or behind the steps that follow."""

import json
import logging
import socket
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch.distributed as dist
from torch import Tensor, nn

from stagecoach.data.weight_files import CARD, CONFIG
from stagecoach.models.trainable import parameter_shape
from stagecoach.models.weights.card import AdapterCard
from stagecoach.trainer.adapter import signed
from stagecoach.trainer.checkpointing.host_copy import HostCopy
from stagecoach.trainer.checkpointing.host_memory import check_memory
from stagecoach.trainer.checkpointing.layout import AVERAGED, MODEL, MOMENTS, Layout
from stagecoach.trainer.checkpointing.partition import adam_states, adam_steps, find_fragments, loss_scaler_state
from stagecoach.trainer.checkpointing.peers import Invitation, Peers, invite, meet
from stagecoach.trainer.checkpointing.process import WriterProcess
from stagecoach.trainer.checkpointing.state import TrainingState
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.checkpointing.write import HEADERS, write_checkpoint
from stagecoach.trainer.distributed import World, attempt, from_first, together
from stagecoach.trainer.ema import Ema
from stagecoach.trainer.engine import master_partitions
from stagecoach.trainer.freeze import parameter_count
from stagecoach.trainer.waiting import waiting

log = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of one stage, each rank what it holds; rank 0 writes the weights and the average of all.

    ``asynchronous``: training waits only until each rank has copied what it holds to (page-locked) host memory, which
    takes as much of it as the checkpoint has bytes per rank. A process of its own writes it while training goes on.
    One checkpoint is written at a time. Its failure is raised on all ranks by the next ``save`` or by ``wait``.
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
        self.layout: Layout | None = None
        """Known once the ranks have met."""
        self.peers: Peers | None = None
        """Of this process, where it writes itself."""
        self.copy: HostCopy | None = None
        self.writer: WriterProcess | None = None
        self.in_flight: Path | None = None
        """What the writer writes."""
        self.announced = True
        self.stalled = 0.0
        """Seconds that training stood still for the last checkpoint."""
        self.wrote = 0.0
        """Seconds that the last one took to write."""

    def save(self, state: TrainingState, config: str, card: AdapterCard) -> Path:
        """Write a checkpoint and drop the oldest beyond ``store.keep``. Every rank calls it. ``config``: the recipe;
        ``card``: what the weights are, for those who open them without the run.

        Returns:
            Its folder, which is there once ``wait`` has returned.

        Raises:
            SaveError, FirstRankError: a file cannot be written, now or of the checkpoint before; nothing stays of it.
            ValueError: a weight is not finite.
            PeerLostError: another rank, or its writer, is gone.
        """
        self.wait()
        if self.layout is None:
            self.meet()
        assert self.layout is not None
        started = time.monotonic()
        state = replace(state, adam_steps=adam_steps(self.engine), loss_scale=loss_scaler_state(self.engine))
        texts = {CONFIG: config, CARD: json.dumps(asdict(signed(card)), indent=2)}
        needed, final = self.layout.bytes + HEADERS, self.store.path(state.step)
        if self.writer is not None and self.copy is not None:
            self.copy.take(self._flats())
            self.writer.write(asdict(state), texts, needed)
            self.in_flight, self.announced = final, False
            self.stalled = time.monotonic() - started
        else:
            assert self.peers is not None
            written = write_checkpoint(self.store, asdict(state), texts, needed, self.layout, self._held, self.peers)
            self.wrote = time.monotonic() - started
            self._say(final, written)
        return final

    def wait(self) -> None:
        """Wait for the checkpoint that is being written, if any. Every rank calls it; raises what ``save`` does."""
        if self.in_flight is None:
            return
        own = attempt(self._finish)
        # Where one writer has ended those of other ranks may have seen the checkpoint through.
        failure = attempt(together, self.world, own)
        if failure is not None:
            raise own or failure

    def look(self) -> None:
        """Log a checkpoint that has been written since. It costs nothing, and a failure waits for ``wait``."""
        if self.writer is not None and not self.announced and self.writer.has_answered():
            attempt(self._announce)

    def close(self) -> None:
        """End of the stage, also by an error of this rank alone: what is being written is finished, and its failure is
        said where it is not raised."""
        try:
            self._finish()
        except Exception as error:
            log.warning("the last checkpoint was not written: %s", error)
        for part in (self.writer, self.copy, self.peers):
            if part is not None:
                part.close()
        self.writer = self.copy = self.peers = self.layout = None

    def abandon(self) -> None:
        """End what is being written: the folder is another run's now."""
        if self.writer is not None:
            self.writer.process.kill()

    def meet(self) -> None:
        """Learn what each rank holds, and connect those who will write it, so that their messages never mix with those
        of training; get the memory and start the process where another writes. Every rank calls it, before the first
        step: a network on which they cannot meet, or too little memory, is found there and not at the first save, hours
        later."""
        own = [flat.numel() for flat in master_partitions(self.engine)], find_fragments(self.engine, self.parameters)
        ranks: list[Any] = [None] * self.world.size
        dist.all_gather_object(ranks, own)
        for name, parameter in self.parameters.items():
            held = sum(fragments[name].numel for _, fragments in ranks if name in fragments)
            if held != parameter_count(parameter):
                raise ValueError(
                    f"{name}: the ranks hold {held} elements, expected {parameter_count(parameter)}; the engine does "
                    f"not own this parameter"
                )
        kinds = (MODEL, *MOMENTS, *((AVERAGED,) if self.ema is not None else ()))
        shapes = {name: tuple(parameter_shape(parameter)) for name, parameter in self.parameters.items()}
        self.layout = Layout(kinds, shapes, [sizes for sizes, _ in ranks], [fragments for _, fragments in ranks])
        if self.asynchronous:
            mine = socket.gethostname(), 4 * len(kinds) * sum(self.layout.sizes[self.world.rank])
            asked: list[Any] = [None] * self.world.size
            dist.all_gather_object(asked, mine)  # before the first rank has got any
            needed = sum(size for host, size in asked if host == mine[0])
            together(self.world, attempt(check_memory, needed, mine[0]) or attempt(self._get_memory))
        made: list[Any] = [Invitation(), None]
        together(self.world, attempt(_invite, made, self.world.size) if self.world.is_first else None)
        invitation, listener = from_first(made[0]), made[1]
        with waiting("all ranks to connect for writing checkpoints"):
            together(self.world, attempt(self._connect, self.layout, invitation, listener))

    def _get_memory(self) -> None:
        assert self.layout is not None
        cuda = self.world.device.type == "cuda"
        sizes = self.layout.sizes[self.world.rank]
        try:
            self.copy = HostCopy(self.layout.kinds, sizes, cuda)
        except OSError as error:
            raise ValueError(
                f"checkpoint.asynchronous needs {4 * len(self.layout.kinds) * sum(sizes):,} bytes of host memory for "
                f"rank {self.world.rank}, which cannot be had ({error.strerror}); set it to false, or ask for more"
            ) from error

    def _connect(self, layout: Layout, invitation: Invitation, listener: Any) -> None:
        rank = self.world.rank
        if self.copy is None:
            self.peers = meet(rank, self.world.size, invitation, listener)
            return
        try:
            self.writer = WriterProcess(rank, layout, self.copy.descriptor, self.store, invitation, listener)
        finally:
            if listener is not None:
                listener.close()
        self.writer.outcome()

    def _finish(self) -> None:
        if self.in_flight is None:
            return
        try:
            with waiting("the checkpoint before to be written"):
                self._announce()
        finally:
            self.in_flight = None

    def _announce(self) -> None:
        assert self.writer is not None
        assert self.in_flight is not None
        announced, self.announced = self.announced, True
        outcome = self.writer.outcome()
        self.wrote = self.stalled + outcome["seconds"]
        if not announced:
            self._say(self.in_flight, outcome["bytes"], f", training stood still for {self.stalled:.2f} s of them")

    def _say(self, path: Path, written: int, more: str = "") -> None:
        if self.world.is_first:
            log.info(f"checkpoint {path} ({written / 1e6:,.1f} MB, {self.wrote:.1f} s{more})")

    def _flats(self) -> dict[str, list[Tensor]]:
        """All that this rank holds, as it is."""
        states = adam_states(self.engine)
        flats = {MODEL: [flat.detach() for flat in master_partitions(self.engine)]}
        flats |= {name: [state[name] for state in states] for name in MOMENTS}
        if self.ema is not None:
            flats[AVERAGED] = self.ema.shadows
        return flats

    def _held(self, kind: str) -> list[np.ndarray]:
        return [flat.cpu().float().numpy() for flat in self._flats()[kind]]


def _invite(made: list[Any], size: int) -> None:
    made[:] = invite(size)
