"""Requests answered by all ranks, each answer sealed in a folder of its own."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from stagecoach import __version__
from stagecoach.data.progress import counter
from stagecoach.models.generation import Generation, GenerationOptions, Request, Source
from stagecoach.models.weights import open_weights
from stagecoach.models.weights.opening import Weights, Which
from stagecoach.trainer.distributed import World, attempt, on_first, together
from stagecoach.trainer.generating.listing import Listed
from stagecoach.trainer.generating.sealed import identity_hash, is_answered, output_folder, sealed_folder, write_result
from stagecoach.trainer.generating.shared_queue import SharedQueue
from stagecoach.trainer.interrupt import Interrupted, StopRequest

log = logging.getLogger(__name__)

BASE = "base"


@dataclass(frozen=True)
class Chosen:
    """Which weights. ``adapter`` as ``open_weights`` takes it, or ``base`` for none, of ``family`` and ``size`` (at
    ``config`` where that is given)."""

    adapter: str
    which: Which = "raw"
    predecessor: Path | None = None
    family: str | None = None
    size: str | None = None
    config: BaseModel | None = field(default=None, repr=False)

    def open(self) -> Weights:
        source = None if self.adapter == BASE else self.adapter
        return open_weights(
            source,
            self.which,
            family=self.family,
            size=self.size,
            config=self.config if source is None else None,
            predecessor=self.predecessor,
        )


@dataclass(frozen=True)
class Job:
    """A request, where it stands, the folder that its paths are relative to, that of its answer and the hash of what
    decides it."""

    request: Request
    where: str
    source: Path
    folder: Path
    sha256: str


@dataclass
class Summary:
    """Folders that were made and kept, and a line for each request that failed."""

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def describe(self) -> str:
        return f"{len(self.made)} answered, {len(self.kept)} there already, {len(self.failed)} failed"


@dataclass(frozen=True)
class Plan:
    """What rank 0 has found to do."""

    jobs: list[Job]
    settings: dict[str, Any]
    summary: Summary


def sample(
    world: World,
    chosen: Chosen,
    options: GenerationOptions,
    listed: Sequence[Listed],
    place: Callable[[Request], Path],
    remake: bool = False,
    seeds: Sequence[int] | None = None,
    title: str = "requests",
) -> Summary:
    """Answer the requests of ``listed`` into the folders that ``place`` names, each with all of ``seeds`` (None: with
    its own seed). Every rank calls it and gets the same ``Summary``.

    A folder that was made of the same request, weights and settings is kept; of others it is a failure, or replaced
    where ``remake`` says so. A failure is one line in the log and stops no other request. Raises ``ValueError`` for
    what concerns all of them, and ``Interrupted`` when a signal asked a rank to stop.
    """
    queue: SharedQueue | None = None

    def on_step() -> None:
        if queue is not None:
            queue.check()

    generations: list[Generation] = []

    def open_all() -> None:
        weights = chosen.open()
        log.info(weights.describe())
        generations.append(weights.family.generation(weights, replace(options, on_step=on_step)))

    together(world, attempt(open_all))
    generation = generations[0]
    plan: Plan = on_first(world, _plan, generation, listed, place, remake, seeds)
    if world.is_first:
        for line in plan.summary.failed:
            log.error(line)
    if plan.jobs:
        together(world, attempt(generation.load))
    with ExitStack() as stack:
        show = stack.enter_context(counter(title, len(plan.jobs))) if world.is_first else lambda done: None
        stop = stack.enter_context(StopRequest())
        stop.at_once(False)  # from here on a folder would stay half-written
        queue = SharedQueue(world, stop, show)
        own = _work(queue, generation, plan)
        stopped = queue.meet()
    if stopped:
        raise Interrupted("stopped on request; what was answered is kept, and the same command goes on")
    return _gathered(world, plan.summary, own)


@contextmanager
def locked_output(world: World, path: Path) -> Iterator[None]:
    """``output_folder``, which rank 0 holds for all. Every rank calls it."""
    with ExitStack() as stack:
        on_first(world, lambda: stack.enter_context(output_folder(path)))
        yield


def _plan(
    generation: Generation,
    listed: Sequence[Listed],
    place: Callable[[Request], Path],
    remake: bool,
    seeds: Sequence[int] | None,
) -> Plan:
    settings, summary = generation.identity(), Summary()
    jobs: list[Job] = []
    seen: dict[str, str] = {}
    for item in listed:
        try:
            if item.entry is None:
                raise ValueError(item.error)
            request = generation.parse(item.entry, Source(item.where, item.folder, item.name))
            if request.id in seen:
                raise ValueError(f"{item.where}: id {request.id!r} is that of {seen[request.id]} too, expected another")
            seen[request.id] = item.where
        except (ValueError, OSError) as error:
            summary.failed.append(" ".join(str(error).split()))
            continue
        for seed in (request.seed,) if seeds is None else seeds:
            seeded = replace(request, seed=seed)
            identity, folder = seeded.identity(), place(seeded)
            try:
                if not remake and is_answered(folder, identity, settings):
                    summary.kept.append(str(folder))
                    continue
            except ValueError as error:
                summary.failed.append(f"{item.where}: {error}")
                continue
            jobs.append(Job(seeded, item.where, item.folder, folder, identity_hash(identity, settings)))
    return Plan(jobs, settings, summary)


def _work(queue: SharedQueue, generation: Generation, plan: Plan) -> Summary:
    """Take one request after the other, until none is left or the command is to stop."""
    own = Summary()
    try:
        while (number := queue.take()) < len(plan.jobs):
            queue.check()
            job = plan.jobs[number]
            try:
                _answer(generation, job, plan.settings)
                own.made.append(str(job.folder))
            except torch.OutOfMemoryError as error:
                reason = f"the device has no memory left ({error}); --offload and --vae-tiling save some"
                own.failed.append(f"{job.where}: {reason}")
            except (ValueError, OSError) as error:
                own.failed.append(f"{job.where}: {error}")
            else:
                queue.finish()
                continue
            own.failed[-1] = " ".join(own.failed[-1].split())
            log.error(own.failed[-1])
            queue.finish()
    except Interrupted:
        pass  # ``meet`` knows
    return own


def _answer(generation: Generation, job: Job, settings: dict[str, Any]) -> None:
    device = generation.options.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.monotonic()
    with sealed_folder(job.folder) as folder:
        facts = generation.answer(job.request, folder)
        missing = [name for name in generation.shown if not (folder / name).is_file()]
        write_result(
            folder,
            {
                "sha256": job.sha256,
                "request": job.request.identity(),
                "source": str(job.source.resolve()),
                "settings": settings,
                "facts": facts,
                "shown": [name for name in generation.shown if name not in missing],
                "seconds": round(time.monotonic() - begun, 3),
                "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
                "version": __version__,
            },
        )


def _gathered(world: World, first: Summary, own: Summary) -> Summary:
    """The summaries of all ranks as one, in the order of folders."""
    parts: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(parts, own)
    return Summary(
        made=sorted(folder for part in parts for folder in part.made),
        kept=first.kept,
        failed=[*first.failed, *(line for part in parts for line in part.failed)],
    )
