"""The loop: one stage from its first step, or from a checkpoint, to its adapter."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stagecoach.data.streaming.stream import BadSample
from stagecoach.models.trainable import trained_before
from stagecoach.models.weights import AdapterCard, Weights, open_weights
from stagecoach.trainer.adapter import write_adapter
from stagecoach.trainer.bad_samples import BadSamples
from stagecoach.trainer.checkpointing.save import Saver
from stagecoach.trainer.claim import LostFolderError
from stagecoach.trainer.distributed import Deferred, attempt, on_first, together, totals
from stagecoach.trainer.engine import frozen_copies, full_parameters, learning_rate, loss_scale, set_learning_rate
from stagecoach.trainer.evaluate import Evaluator
from stagecoach.trainer.feed import device_batches
from stagecoach.trainer.freeze import freeze_table
from stagecoach.trainer.guards import GradientCheck, check_frozen, frozen_checksums
from stagecoach.trainer.hardware import device_name, peak_flops, peak_memory_bytes
from stagecoach.trainer.interrupt import Interrupted, StopRequest
from stagecoach.trainer.job_state import note_progress
from stagecoach.trainer.meter import Meter
from stagecoach.trainer.objective import weighted_total
from stagecoach.trainer.planning.meter import sample_flops
from stagecoach.trainer.reporting.monitor import Monitor
from stagecoach.trainer.run_folder import adapter_directory
from stagecoach.trainer.setup import StageSetup
from stagecoach.trainer.waiting import waiting
from stagecoach.trainer.watch.cluster import ClusterMeter
from stagecoach.trainer.watch.heartbeat import beat, phase, step_done

log = logging.getLogger(__name__)


class NonFiniteError(ValueError):
    """Too many steps in a row had a non-finite loss or gradient."""


class StageLoop:
    """Trains a prepared stage. ``step`` counts optimizer steps that are done, skipped ones included, since the position
    in the data follows from it. ``check_folder`` raises where the run's folder is no longer its own."""

    def __init__(
        self,
        setup: StageSetup,
        monitor: Monitor,
        stop: StopRequest,
        cluster: ClusterMeter | None = None,
        check_folder: Callable[[], None] = lambda: None,
    ) -> None:
        self.s, self.check_folder = setup, check_folder
        self.monitor = Deferred(monitor)
        self.stop = stop
        self.cluster = cluster
        self.step = setup.start.state.step
        self.skipped = setup.start.state.skipped
        self.skipped_in_a_row = 0
        self.scale = loss_scale(setup.engine.deepspeed)
        self.finite = torch.ones((), dtype=torch.bool, device=setup.world.device)
        """Whether the losses of this step are, on this rank; kept with fp16's loss scale alone."""
        self.meter = Meter(setup.world)
        plan, data, engine = setup.plan, setup.data, setup.engine
        behind = plan.recipe.checkpoint.asynchronous
        self.saver = Saver(setup.store, engine.deepspeed, engine.trainable, engine.ema, setup.world, behind)
        self.bad = BadSamples(setup.start.state.bad, plan.recipe.stream.bad_samples, len(data.train))
        self.evaluator = None
        if data.held_out is not None and len(data.held_out):
            self.evaluator = Evaluator(
                plan.family,
                engine.network,
                engine.deepspeed,
                data.held_out,
                data.train.statistics,
                setup.world,
                plan.window(plan.stage.steps - 1, len(data.train)),
                plan.recipe,
            )
        self.peak = peak_flops(device_name(setup.world.device))
        self.flops_per_sample = on_first(setup.world, sample_flops, plan) if self.peak else 0.0

    def run(self) -> Path:
        """Train to the end of the stage and return the adapter's directory. Raises ``Interrupted`` after saving."""
        try:
            return self._run()
        except LostFolderError:
            self.saver.abandon()
            raise
        finally:
            with phase("save"):
                self.saver.close()

    def _run(self) -> Path:
        s, plan, network = self.s, self.s.plan, self.s.engine.network
        self.saver.meet()
        self.monitor.start(plan.stage.steps, self.step)
        beat(step=self.step)
        before = frozen_checksums(network)
        checked = plan.stage.checked_steps if self.step == 0 else 0
        check = GradientCheck(network, plan.spec, s.world) if checked else None
        if self.step == 0:
            # The state before the first step is what every later number is compared with.
            with waiting("the validation before the first step"):
                self._evaluate(validate=True, preview=False)
        s.engine.deepspeed.module.train()
        accumulation, first = plan.batching.accumulation, self.step
        stream = s.stream(self.step, plan.stage.steps)
        batches = device_batches(stream, s.world.device, plan.recipe.seed, plan.index)
        # The first step compiles, fills caches and opens files.
        fetching, working = "compile", "compile"
        began, micro = time.monotonic(), 0
        while True:
            beat(phase=fetching, micro=micro)
            asked = time.monotonic()
            with waiting(lambda: f"the data of step {self.step + 1}"):
                item = next(batches, None)
            self.meter.waited += time.monotonic() - asked
            if item is None:
                break
            _, micro, batch = item
            beat(phase=working, micro=micro)
            with waiting("the first step, compilation included") if self.step == first else nullcontext():
                self.micro_step(batch)
            micro = (micro + 1) % accumulation
            if micro:
                continue
            self._after_step()
            self.stop.at_once(False)
            step_done(self.step, time.monotonic() - began)
            if check is not None:
                check.after_step(s.engine.deepspeed.was_step_applied())
                if check.steps >= checked or self.step == plan.stage.steps:
                    self._end(check)
                    check = None
            found, stream.bad = stream.bad, []
            self._boundary(found)
            fetching, working, began = "data", "step", time.monotonic()
        with phase("save"):
            together(s.world, attempt(check_frozen, network, before))
            together(s.world, self.monitor.failure)
            return self._finish()

    def _end(self, check: GradientCheck) -> None:
        if check.steps >= min(3, self.s.plan.stage.checked_steps):
            check.finish(self.step)
        else:
            check.close()
            log.warning(f"gradients were not checked: only {check.steps} of {self.step} steps changed any weights")

    def micro_step(self, batch: dict[str, Any]) -> None:
        """Forward and backward of one micro-batch; the optimizer steps at the accumulation boundary."""
        plan, engine = self.s.plan, self.s.engine.deepspeed
        progress = plan.progress(self.step, self.s.engine.helpers)
        if engine.is_gradient_accumulation_boundary():
            set_learning_rate(engine, plan.stage, self.step)
        output = engine(batch, progress)
        total = weighted_total(output["losses"], plan.spec, plan.stage.loss_weights, progress)
        # Equal micro-batches: the mean over this one, averaged by DeepSpeed over accumulation and ranks, is the plain
        # mean over the samples of the global batch.
        if self.scale is not None:
            self.finite &= total.detach().isfinite().all()
        engine.backward(total.mean())
        engine.step()
        self.meter.add_output(output, total.detach())

    def _after_step(self) -> None:
        s = self.s
        self.step += 1
        self.meter.steps += 1
        self.meter.samples += s.plan.stage.global_batch
        scale, self.scale = self.scale, loss_scale(s.engine.deepspeed)
        if s.engine.deepspeed.was_step_applied():
            self.skipped_in_a_row = 0
            self.finite.fill_(True)
            if s.engine.ema is not None:
                s.engine.ema.update()
            return
        self.skipped += 1
        if scale is not None:
            (infinite,) = totals(s.world, not self.finite)
            self.finite.fill_(True)
            if not infinite and scale[0] > scale[1]:  # a search for the largest scale, at the start and now and then
                log.info(f"step {self.step}: gradients too large for the loss scale of {scale[0]:g}, update skipped")
                return
        self.skipped_in_a_row += 1
        log.warning(
            f"step {self.step}: non-finite loss or gradient, update skipped on all ranks "
            f"({self.skipped_in_a_row} in a row, {self.skipped} in all)"
        )
        if self.skipped_in_a_row >= s.plan.recipe.max_skipped:
            # Skipped steps change no weights, so an older checkpoint is where training last was sound.
            steps = s.store.steps()
            last = s.store.path(steps[-1]) if steps else None
            raise NonFiniteError(
                f"{self.skipped_in_a_row} steps in a row up to step {self.step} had a non-finite loss or gradient; "
                f"the last checkpoint is {last or 'none yet'}; lower the learning rate or look at the data"
            )

    def _boundary(self, bad: list[BadSample]) -> None:
        """What happens between two steps: damaged samples, logging, evaluation, checkpoint, and stopping on request."""
        s, stage, recipe = self.s, self.s.plan.stage, self.s.plan.recipe
        failed = self.monitor.failure is not None
        stops, damaged, untold = totals(s.world, self.stop.received is not None, len(bad), failed)
        if untold:
            together(s.world, self.monitor.failure)
        if damaged:
            self._report(self.bad.gather(bad, s.world))
        last = self.step == stage.steps
        self.saver.look()
        due = {
            name: last or self.step % every == 0
            for name, every in (
                ("log", recipe.logging.every),
                ("validate", recipe.validation.every or stage.validate_every),
                ("preview", stage.preview_every),
            )
        }
        if due["log"]:
            self._log()
        self._evaluate(due["validate"], due["preview"])
        asked = stops > 0
        if self.step % stage.checkpoint_every == 0 or last or asked:
            with phase("save"):
                together(s.world, attempt(self.check_folder))
                self.save(wait=last or asked)
        if asked and not last:
            raise Interrupted(
                f"stopped by {self.stop.received or 'a signal on another rank'} at step {self.step}; "
                "the same command with --resume auto goes on from there"
            )

    def _log(self) -> None:
        steps = self.meter.steps
        values = self._values()
        # Raised on all ranks at the next boundary.
        self.monitor.failure = self.monitor.failure or attempt(self.check_folder)
        self.monitor.log(self.step, values)
        if self.cluster is not None:
            view = self.cluster.gather(steps, values["data_wait"], values["memory_gib"])
            if view is not None:
                self.monitor.cluster(self.step, view)

    def _report(self, new: list[BadSample]) -> None:
        for sample in new:
            log.warning(
                f"step {self.step}: sample {sample.key!r} of {sample.shard} is damaged and replaced "
                f"by another ({len(self.bad.indices)} in all): {sample.reason}"
            )
        if new:
            self.bad.check(new[-1])

    def _values(self) -> dict[str, float]:
        s = self.s
        values = self.meter.reduce()
        values |= self.meter.rates()
        norm = s.engine.deepspeed.get_global_grad_norm()
        values["learning_rate"] = learning_rate(s.plan.stage, self.step - 1)
        values["gradient_norm"] = float(norm) if norm is not None else float("nan")
        values["skipped_steps"] = self.skipped
        values["bad_samples"] = len(self.bad.indices)
        values["memory_gib"] = peak_memory_bytes(s.world.device) / 2**30
        values |= {alias: values[name] for alias, name in s.plan.family.aliases.items() if name in values}
        if self.peak and self.flops_per_sample:
            per_device = values["samples_per_second"] / s.world.size
            values["mfu"] = per_device * self.flops_per_sample / self.peak
        return values

    def _evaluate(self, validate: bool, preview: bool) -> None:
        if self.evaluator is None or not (validate or preview):
            return
        plan, ema, samples = self.s.plan, self.s.engine.ema, self.s.plan.recipe.preview_samples
        progress = plan.progress(self.step, self.s.engine.helpers, training=False)
        # Where an average is kept it is what will be used, so it is what is judged.
        with ema.swapped_in() if ema is not None else nullcontext():
            if validate and self.evaluator.samples:
                with phase("validation"):
                    values, drawn = self.evaluator.validate(progress, plan.batching.micro)
                self.monitor.log(self.step, values)
                self.monitor.images(self.step, drawn)
            if preview and samples:
                with phase("preview"):
                    self.monitor.images(self.step, self.evaluator.preview(progress, samples))

    def save(self, wait: bool = False) -> Path:
        state = replace(self.s.start.state, step=self.step, skipped=self.skipped, bad=tuple(sorted(self.bad.indices)))
        path = self.saver.save(state, self.s.plan.recipe.dump(), self._card("raw"))
        if wait:
            self.saver.wait()
        return path

    def _finish(self) -> Path:
        """Write the adapter: what this stage trained, and what earlier stages did, as it is in the network."""
        s, plan, recipe = self.s, self.s.plan, self.s.plan.recipe
        ema = s.engine.ema if recipe.export_weights == "ema" else None
        with ema.swapped_in() if ema is not None else nullcontext():
            tensors = full_parameters(s.engine.deepspeed, s.engine.trainable, keep=s.world.is_first)
        earlier = trained_before(s.engine.network, plan.specs, plan.index) - set(s.engine.trainable)
        tensors |= self._carried(earlier)
        directory = adapter_directory(recipe.run, plan.index)
        card = self._card(recipe.export_weights)
        card = on_first(s.world, write_adapter, directory, tensors, card, plan.family.adapter_file)
        if s.world.is_first:
            note_progress(f"stage {plan.index}, adapter")
        self.stop.at_once(True)
        log.info(f"adapter {directory} ({card.parameters:,} parameters, sha256 {card.sha256[:12]})")
        return directory

    def _card(self, export_weights: str) -> AdapterCard:
        """Of the weights as they are now; those who write them add what follows from the tensors."""
        plan, start, recipe = self.s.plan, self.s.start, self.s.plan.recipe
        return AdapterCard(
            family=plan.family.name,
            size=recipe.size,
            stage=plan.index,
            stage_name=plan.spec.name,
            steps=self.step,
            recipe=recipe.digest(plan.family),
            base=start.base,
            predecessor=start.predecessor.sha256 if start.predecessor else None,
            export_weights=export_weights,
            config=plan.config.model_dump(mode="json"),
            started_from=start.origin,
            settings=start.settings,
        )

    def _carried(self, names: set[str]) -> dict[str, torch.Tensor]:
        """What earlier stages trained and this one did not, on rank 0: from the adapter that the stage started from,
        in its fp32, or where that has been moved or changed meanwhile from the network, in the dtype that it is used
        in."""
        world = self.s.world
        before = on_first(world, self._predecessor)
        if before is None:
            return frozen_copies(self.s.engine.network, names, keep=world.is_first)
        tensors: dict[str, torch.Tensor] = {}
        together(world, attempt(lambda: tensors.update(before.tensors(names))) if world.is_first else None)
        return tensors

    def _predecessor(self) -> Weights | None:
        """What the stage started from, where it is still there."""
        start = self.s.start
        if start.source is None or start.predecessor is None:
            return None
        try:
            found = open_weights(start.source)
            if found.sha256 == start.predecessor.sha256:
                return found
            reason: Any = f"{start.source}: was replaced since the stage started"
        except (ValueError, OSError) as error:
            reason = error
        log.warning(f"{reason}; what earlier stages trained is taken from the network instead")
        return None


def describe(setup: StageSetup, monitor: Monitor) -> None:
    """The freeze table and the batch arithmetic, at start-up and in ``run.json``."""
    plan, network = setup.plan, setup.engine.network
    recipe, stage, spec, batching = plan.recipe, plan.stage, plan.spec, plan.batching
    rows = freeze_table(network, spec)
    trainable = sum(row.parameters for row in rows if row.lr_scale is not None)
    frozen = sum(row.parameters for row in rows if row.lr_scale is None)
    lines = [f"stage {spec.index} ({spec.name}): {trainable:,} parameters train, {frozen:,} are frozen"]
    for row in rows:
        state = "frozen" if row.lr_scale is None else f"trains at {row.lr_scale * stage.learning_rate:g}"
        if row.start_fraction:
            state += f" from step {math.ceil(row.start_fraction * stage.steps)} on"
        lines.append(f"  {row.pattern:<28} {row.modules:>4} modules {row.parameters:>15,}  {state}")
    lines.append(
        f"  global batch {batching.global_batch} = {setup.world.size} ranks x {batching.micro} samples x "
        f"{batching.accumulation} accumulation; {stage.steps} steps; ZeRO-{recipe.zero}, "
        f"{recipe.precision}, frozen weights {recipe.frozen.removesuffix('e')}ed, activation "
        f"checkpointing {recipe.activation_checkpointing}"
    )
    dtypes: dict[str, int] = {}
    for _, parameter in network.named_parameters():
        kind = f"{'trained' if parameter.requires_grad else 'frozen'} {str(parameter.dtype).removeprefix('torch.')}"
        dtypes[kind] = dtypes.get(kind, 0) + 1
    lines.append("  tensors: " + ", ".join(f"{count} {kind}" for kind, count in sorted(dtypes.items())))
    log.info("\n".join(lines))
    monitor.facts(
        {
            f"stage{spec.index}": {
                "name": spec.name,
                "steps": stage.steps,
                "global_batch": batching.global_batch,
                "started_from": setup.start.origin,
                "modules": [vars(row) for row in rows],
                "trainable": trainable,
                "frozen": frozen,
                "exits": [vars(criterion) for criterion in spec.exits],
                "metrics": [vars(metric) for metric in (*plan.family.metrics, *recipe.sampled_metrics)],
            }
        }
    )
