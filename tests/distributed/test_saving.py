"""What cannot be written is said once on every rank, and nothing half-written stays; saving behind the steps."""

import errno
import os
import resource
import signal
import subprocess
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from safetensors import safe_open

from stagecoach.models.weights import AdapterCard
from stagecoach.trainer.checkpointing import save
from stagecoach.trainer.checkpointing.process import WriterProcess
from stagecoach.trainer.distributed import attempt, start
from stagecoach.trainer.recipe import Recipe
from stagecoach.trainer.reporting.monitor import RunMonitor
from stagecoach.trainer.reporting.sinks import MetricsFile
from stagecoach.trainer.run import run_stages
from stagecoach.trainer.stage import StageLoop
from tests.distributed import cases
from tests.pair import Pair

CARD = AdapterCard("toy", "tiny", 1, "one", 0, "", "", None, "raw", {})


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]).returncode:
        pytest.skip("only a user who may mount makes a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def full(folder: Path, left: int):
    """Nothing but ``left`` bytes are free while the block runs, on the file system that the ranks share."""
    world, file = start(), folder / "filler"
    if world.is_first:
        found = os.statvfs(folder)
        file.write_bytes(bytes(found.f_bavail * found.f_frsize - left))
    save.dist.barrier()
    try:
        yield
    finally:
        save.dist.barrier()
        if world.is_first:
            file.unlink()


@contextmanager
def file_size(limit: int, process: int):
    before = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)


def fill_and_save(recipe: dict, disk: str, asynchronous: bool) -> list[tuple[str, str, list[str]]]:
    """Kind and text of each failure, and what lies in the folder of checkpoints after it. Of asynchronous checkpoints
    all but the first failure are raised by the next save."""
    setup, found = cases.prepared(recipe, 1), []
    engine, folder = setup.engine, setup.store.directory
    saver = save.Saver(setup.store, engine.deepspeed, engine.trainable, engine.ema, setup.world, asynchronous)

    def save_and_wait(step: int) -> None:
        saver.save(save.replace(setup.start.state, step=step), "config", CARD)
        saver.wait()

    def save_and_go_on(step: int) -> None:
        saver.save(save.replace(setup.start.state, step=step), "config", CARD)
        while asynchronous and not saver.writer.has_answered():
            time.sleep(0.01)  # what training does meanwhile
        saver.look()

    def failing(step: int) -> None:
        if step == 2 or not asynchronous:
            error = attempt(save_and_wait, step)
        else:
            save_and_go_on(step)
            error = attempt(save_and_go_on, 99)
        save.dist.barrier()  # rank 0 has removed what is left
        found.append((type(error).__name__, str(error), sorted(p.name for p in folder.iterdir())))
        save.dist.barrier()

    save_and_wait(1)
    with full(Path(disk), 300_000):
        failing(2)  # known before a file is written
    headers, save.HEADERS = save.HEADERS, -saver.layout.bytes
    with full(Path(disk), 8_000):
        failing(3)  # found out by a write
    save.HEADERS = headers
    last = setup.world.rank == setup.world.size - 1
    with file_size(2_000, saver.writer.process.pid if asynchronous else 0) if last else nullcontext():
        failing(4)  # one rank alone
    save.dist.barrier()
    if setup.world.is_first:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    save.dist.barrier()
    failing(5)
    if setup.world.is_first:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    save.dist.barrier()
    save_and_wait(6)
    saver.close()
    engine.deepspeed.destroy()
    found.append(("", "", sorted(p.name for p in folder.iterdir())))
    return found


@pytest.mark.parametrize(("ranks", "asynchronous"), [(2, False), (2, True), (1, False)])
def test_a_full_or_read_only_disk_is_one_sentence_on_all_ranks_and_the_last_checkpoint_stays(
    pair, shards, small_disk, ranks, asynchronous
):
    recipe = cases.toy_recipe(shards, str(small_disk / "run"), zero=3 if asynchronous else 1, ema={"decay": 0.9})
    some = pair if ranks == 2 else Pair(size=1)
    try:
        every = some.run(fill_and_save, recipe.model_dump(), str(small_disk), asynchronous)
    finally:
        if some is not pair:
            some.close()
    reasons = [os.strerror(code) for code in (errno.ENOSPC, errno.ENOSPC, errno.EFBIG, errno.EROFS)]
    for number, (step, reason) in enumerate(zip((2, 3, 4, 5), reasons, strict=True)):
        kinds = [found[number][0] for found in every]
        assert sorted(kinds) == ["FirstRankError"] * (ranks - 1) + ["SaveError"], every
        assert step != 4 or kinds[-1] == "SaveError"
        for _, text, left in (found[number] for found in every):
            assert f"checkpoint_{step}: cannot be written ({reason}" in text
            assert "bytes, and" in text
            assert "checkpoint_1; free space there" in text
            assert "\n" not in text
            assert left == ["checkpoint_1"]
    assert all(found[4][2] == ["checkpoint_1", "checkpoint_6"] for found in every)


def train_with_a_failing_metrics_file(recipe: dict) -> str:
    """The run's failure on this rank; the third line of metrics finds no space."""
    original, lines = MetricsFile.log, []

    def log(self, step, values):
        lines.append(step)
        if len(lines) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        original(self, step, values)

    MetricsFile.log = log
    try:
        return f"{attempt(run_stages, Recipe.model_validate(recipe), [1])}"
    finally:
        MetricsFile.log = original


def train_and_fail_to_close(recipe: dict) -> str:
    """The run's failure on this rank; what was kept for the end of the stage finds no space."""

    def close(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), recipe["run"] + "/tb")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunMonitor, "close", close)
        return run_in(recipe)


def run_in(recipe: dict) -> str:
    return f"{attempt(run_stages, Recipe.model_validate(recipe), [1])}"


def test_what_rank_0_cannot_write_ends_all_ranks_with_its_sentence(pair, shards, tmp_path):
    (tmp_path / "file").touch()
    recipe = cases.toy_recipe(shards, str(tmp_path / "file" / "run"), steps=4)
    for text in pair.run(run_in, recipe.model_dump()):
        assert str(tmp_path / "file") in text
        assert os.strerror(errno.ENOTDIR) in text
    recipe = cases.toy_recipe(shards, str(tmp_path / "run"), steps=6)
    for text in pair.run(train_with_a_failing_metrics_file, recipe.model_dump()):
        assert "metrics.jsonl" in text
        assert os.strerror(errno.ENOSPC) in text
    recipe = cases.toy_recipe(shards, str(tmp_path / "other"), steps=2)
    for text in pair.run(train_and_fail_to_close, recipe.model_dump()):
        assert "other/tb" in text
        assert os.strerror(errno.ENOSPC) in text


def train_and_write_late(recipe: dict, steps: int) -> None:
    """Each checkpoint but the last is written when training has gone on for a step."""
    micro_step, write, stopped = StageLoop.micro_step, WriterProcess.write, []

    def count(loop, batch):
        micro_step(loop, batch)
        for held in stopped:
            held[1] += 1
            # The micro-step after it has begun with the weights that the step in between made.
            if held[1] == 4:
                assert not loop.saver.writer.has_answered()
                os.kill(held[0], signal.SIGCONT)

    def late(writer, state, *args):
        if state["step"] < steps:
            os.kill(writer.process.pid, signal.SIGSTOP)
            stopped.append([writer.process.pid, 0])
        write(writer, state, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageLoop, "micro_step", count)
        patch.setattr(WriterProcess, "write", late)
        cases.train(recipe, [1])
    assert all(count >= 4 for _, count in stopped)


@pytest.mark.parametrize("zero", [1, 3])
def test_an_asynchronous_checkpoint_is_the_one_that_is_written_in_the_step(pair, shards, tmp_path, zero):
    files = {}
    for name, asynchronous in (("behind", True), ("inside", False)):
        recipe = cases.toy_recipe(
            shards,
            str(tmp_path / name),
            zero=zero,
            ema={"decay": 0.9},
            steps=6,
            checkpoint_every=3,
            checkpoint={"asynchronous": asynchronous},
        )
        pair.run(train_and_write_late, recipe.model_dump(), 6)
        folder = tmp_path / name / "stage1" / "checkpoints"
        assert sorted(p.name for p in folder.iterdir()) == ["checkpoint_3", "checkpoint_6"]
        files[name] = sorted(folder.rglob("*.safetensors"))
    assert len(files["behind"]) == 2 * 4
    for one, other in zip(*files.values(), strict=True):
        assert one.read_bytes() == other.read_bytes(), one


def test_a_checkpoint_holds_each_weight_once_and_two_moments_of_it(pair, shards, tmp_path):
    recipe = cases.toy_recipe(shards, str(tmp_path), steps=2)
    pair.run(cases.train, recipe.model_dump(), [1])
    elements = {"model": 0, "optimizer": 0}
    folder = tmp_path / "stage1" / "checkpoints" / "checkpoint_2"
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            held = sum(handle.get_tensor(key).numel() for key in handle.keys())  # noqa: SIM118  # no mapping
        elements["model" if file.parent == folder else "optimizer"] += held
    # ZeRO pads its partitions to a multiple of the ranks and of what a transfer is aligned to.
    assert 2 * elements["model"] <= elements["optimizer"] <= 2 * elements["model"] + 64
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} == {".safetensors", ".json", ".yaml"}
