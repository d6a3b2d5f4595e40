"""Nothing that an earlier run left in a folder is taken for the present."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stagecoach.data.locks import DirectoryLock
from stagecoach.models.weights.card import read_card, read_tensors
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.run_folder import set_aside
from tests.distributed import cases
from tests.distributed.cases import toy_recipe
from tests.pair import Pair
from tests.toy import write_toy_shards


@pytest.fixture(scope="module")
def alone():
    process = Pair(size=1)
    yield process
    process.close()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    write_toy_shards(directory)
    return str(directory)


@pytest.fixture
def recipe(shards, tmp_path):
    """A dumped recipe of short stages with the run's folder, and changes."""

    def make(run: Path = tmp_path / "run", **changes) -> dict:
        short = {"steps": 4, "checkpoint_every": 1, "validation_samples": 0, "preview_samples": 0}
        return toy_recipe(shards, str(run), **short | changes).model_dump()

    return make


def train_until_a_power_cut(recipe: dict, step: int, **options) -> None:
    from stagecoach.trainer.stage import StageLoop

    save = StageLoop.save

    def cut(self, **how):
        path = save(self, **how)
        if self.step == step:
            raise KeyError("power cut")
        return path

    StageLoop.save = cut
    try:
        cases.train(recipe, [1], **options)
    except KeyError:
        pass
    finally:
        StageLoop.save = save


def checkpoints(run: Path, stage: int = 1) -> list[str]:
    return sorted(path.name for path in (run / f"stage{stage}" / "checkpoints").iterdir())


def test_never_moves_the_old_run_aside_whole_and_the_next_auto_goes_on_from_the_new_one(alone, recipe, tmp_path):
    run = tmp_path / "run"
    alone.run(cases.train, recipe(), [1])
    assert checkpoints(run) == ["checkpoint_2", "checkpoint_3", "checkpoint_4"]
    old = cases.losses(run, 1)
    alone.run(train_never_until_a_power_cut, recipe(learning_rate=5e-3))
    assert checkpoints(run) == ["checkpoint_1"]
    (aside,) = (run / "earlier").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d{6}", aside.name)
    assert checkpoints(aside) == ["checkpoint_2", "checkpoint_3", "checkpoint_4"]
    assert read_card(aside / "stage1" / "adapter").steps == 4
    assert cases.losses(aside, 1) == old
    alone.run(cases.train, recipe(learning_rate=5e-3), [1])
    assert "checkpoint_1 at step 1" in (run / "train.log").read_text()
    alone.run(cases.train, recipe(run=tmp_path / "whole", learning_rate=5e-3), [1])
    assert cases.losses(run, 1) == cases.losses(tmp_path / "whole", 1) != old


def train_never_until_a_power_cut(recipe: dict) -> None:
    train_until_a_power_cut(recipe, 1, resume="never")


def test_never_in_a_job_that_slurm_starts_again_goes_on_from_what_the_job_began(alone, recipe, tmp_path):
    """Its first start moves the old run aside; a later one does not do so with the job's own work."""
    run = tmp_path / "run"
    alone.run(cases.train, recipe(), [1])
    alone.run(train_never_in_a_job, recipe(learning_rate=5e-3), 0)
    alone.run(train_never_in_a_job, recipe(learning_rate=5e-3), 1)
    assert len(list((run / "earlier").iterdir())) == 1
    assert "checkpoint_1 at step 1" in (run / "train.log").read_text()
    alone.run(train_never_in_a_job, recipe(learning_rate=5e-3), 1, "8")  # another job: from nothing
    assert len(list((run / "earlier").iterdir())) == 2


def train_never_in_a_job(recipe: dict, restarts: int, job: str = "7") -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_JOB_ID", job)
        patch.setenv("SLURM_RESTART_COUNT", str(restarts))
        train_until_a_power_cut(recipe, 1 if restarts == 0 else 3, resume="never")


def resume_from(recipe: dict, path: str) -> None:
    train_until_a_power_cut(recipe, 3, resume=path)


def resume_from_home(recipe: dict, home: str, path: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", home)
        resume_from(recipe, path)


def test_what_lies_beyond_the_checkpoint_that_a_run_goes_on_from_is_moved_aside(alone, recipe, tmp_path):
    run = tmp_path / "run"
    alone.run(cases.train, recipe(), [1])
    alone.run(resume_from_home, recipe(learning_rate=5e-3), str(run), "~/stage1/checkpoints/checkpoint_2")
    assert checkpoints(run) == ["checkpoint_2", "checkpoint_3"]
    assert not (run / "stage1" / "adapter").exists()
    (aside,) = (run / "earlier").iterdir()
    assert checkpoints(aside) == ["checkpoint_3", "checkpoint_4"]


def test_retention_counts_by_the_age_of_writing(tmp_path):
    store = CheckpointStore(tmp_path, 3)
    for age, step in enumerate((2, 3, 4, 1)):
        store.path(step).mkdir()
        (store.path(step) / "manifest.json").write_text("{}")
        os.utime(store.path(step) / "manifest.json", (1000 + age, 1000 + age))
    store.path(9).mkdir()  # without a manifest, so never finished
    store.retire(store.path(1))
    assert store.steps() == [1, 3, 4]
    # By a host whose clock is behind that of those before.
    store.path(2).mkdir()
    (store.path(2) / "manifest.json").write_text("{}")
    os.utime(store.path(2) / "manifest.json", (900, 900))
    store.retire(store.path(2))
    assert store.steps() == [1, 2, 4]


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run(tmp_path, monkeypatch, caplog):
    store = CheckpointStore(tmp_path, 1)
    for step in (1, 2):
        store.path(step).mkdir()

    def refuse(*paths):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(paths[0]))

    monkeypatch.setattr(os, "rename", refuse)
    store.retire(store.path(2))
    assert store.steps() == [1, 2]
    assert "checkpoint_1: stays, although 1 are kept (Permission denied)" in caplog.text


def test_moving_aside_twice_in_a_second_keeps_both(tmp_path):
    for _ in range(2):
        (tmp_path / "stage1/adapter").mkdir(parents=True)
        assert set_aside(tmp_path, 1, 0, 4) is not None
    assert set_aside(tmp_path, 1, 0, 4) is None
    assert len(list((tmp_path / "earlier").glob("*/stage1/adapter"))) == 2


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_after_a_load_the_optimizers_settings_and_rates_are_those_of_recipe_and_family(alone, recipe, zero):
    alone.run(cases.train, recipe(zero=zero, steps=2), [1, 2])
    (groups,) = alone.run(cases.settings_in_force, recipe(zero=zero, **cases.CHANGED), 2, *cases.OTHER_RATES)
    cases.check_settings(groups)


def test_a_pipeline_keeps_a_stage_of_the_same_recipe_and_says_by_name_what_differs(alone, recipe, tmp_path):
    run = tmp_path / "run"
    alone.run(cases.train, recipe(), [1])
    before = (run / "stage1/adapter/adapter.json").stat().st_mtime_ns
    alone.run(cases.train, recipe(micro_batch=4, checkpoint_every=2, zero=1), [1, 2])
    assert (run / "stage1/adapter/adapter.json").stat().st_mtime_ns == before
    with pytest.raises(AssertionError) as caught:
        alone.run(cases.train, recipe(steps=6, learning_rate=5e-2, seed=7, model={"noise": 0.5}), [1, 2])
    said = str(caught.value).splitlines()[-1]
    for words in (
        "finished stage 1 was trained with model.noise 0.1, this run has 0.5",
        "seed 0, this run has 7",
        "stages.1.learning_rate 0.01, this run has 0.05",
        "stages.1.steps 4, this run has 6",
        "--resume never",
    ):
        assert words in said
    # Stage 1 trained again leaves another adapter than the one that stage 2 started from.
    alone.run(train_again, recipe(learning_rate=5e-3))
    with pytest.raises(AssertionError, match=r"finished stage 2 was trained with .*started_from"):
        alone.run(cases.train, recipe(learning_rate=5e-3), [1, 2])


def train_again(recipe: dict) -> None:
    cases.train(recipe, [1], resume="never")


def test_a_finished_stage_alone_goes_on_for_more_steps_and_not_under_settings_that_were_never_in_force(
    alone, recipe, tmp_path
):
    alone.run(cases.train, recipe(), [1])
    with pytest.raises(AssertionError, match=r"learning_rate 0\.01, this run has 0\.05"):
        alone.run(cases.train, recipe(learning_rate=5e-2), [1])
    alone.run(cases.train, recipe(steps=6), [1])
    assert len(cases.losses(tmp_path / "run", 1)) == 6
    assert read_card(tmp_path / "run/stage1/adapter").steps == 6
    with pytest.raises(AssertionError, match=r"steps 6, this run has 3"):
        alone.run(cases.train, recipe(steps=3), [1])
    alone.run(forget_adapter, recipe())
    with pytest.raises(AssertionError, match=r"checkpoint_6: 6 steps are done, but stage 1 has only 3"):
        alone.run(cases.train, recipe(steps=3), [1])


def test_a_finished_adapter_is_never_made_again_also_where_its_checkpoints_were_removed(alone, recipe, tmp_path):
    run = tmp_path / "run"
    alone.run(cases.train, recipe(), [1])
    card = run / "stage1/adapter/adapter.json"
    first = card.stat()
    alone.run(cases.train, recipe(steps=4), [1])
    shutil.rmtree(run / "stage1/checkpoints")
    alone.run(cases.train, recipe(micro_batch=4), [1])
    found = card.stat()
    assert (found.st_ino, found.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert not (run / "earlier").exists()
    assert len(cases.losses(run, 1)) == 4
    alone.run(cases.train, recipe(), [2])  # which started from the very adapter


def forget_adapter(recipe: dict) -> None:
    shutil.rmtree(Path(recipe["run"]) / "stage1" / "adapter")


def start_from(recipe: dict, stages: list[int], init: str) -> None:
    cases.train(recipe, stages, init=Path(init))


def start_from_variable(recipe: dict, value: str, init: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINED", value)
        start_from(recipe, [2], init)


def test_init_is_a_warm_start_of_the_same_or_the_stage_before_recorded_as_such(alone, recipe, tmp_path):
    alone.run(cases.train, recipe(), [1, 2])
    one, two = (str(tmp_path / f"run/stage{stage}/adapter") for stage in (1, 2))
    other = tmp_path / "other"
    write_toy_shards(other, samples=40, seed=1)
    for stage, init, warm in ((1, one, True), (2, two, True), (2, one, False)):
        run = tmp_path / f"from{stage}{warm}"
        alone.run(start_from, recipe(run=run, data=str(other), learning_rate=1e-30), [stage], init)
        card, source = read_card(run / f"stage{stage}/adapter"), read_card(Path(init))
        expected = {"adapter": init, "stage": source.stage, "sha256": source.sha256, "warm_start": warm}
        assert card.started_from == expected
        assert json.loads((run / "run.json").read_text())[f"stage{stage}"]["started_from"] == expected
        if warm:  # nothing is learned at such a rate
            before, after = read_tensors(Path(init)), read_tensors(run / f"stage{stage}/adapter")
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)
    alone.run(start_from_variable, recipe(run=tmp_path / "variable"), str(tmp_path / "run"), "$TRAINED/stage1/adapter")
    card = read_card(tmp_path / "variable/stage2/adapter")
    assert (card.predecessor, card.started_from["adapter"]) == (read_card(Path(one)).sha256, one)
    for stage, init, words in (
        (1, two, "adapter of stage 2, expected 1 to start stage 1"),
        (1, str(tmp_path / "run"), r"no adapter and no checkpoint, expected .*adapter\.json, such as"),
    ):
        with pytest.raises(AssertionError, match=words):
            alone.run(start_from, recipe(run=tmp_path / "wrong"), [stage], init)
    assert not (tmp_path / "wrong").exists()


def test_a_warm_start_from_the_folders_own_adapter_finds_it_where_it_was_moved(alone, recipe, tmp_path):
    alone.run(cases.train, recipe(), [1, 2])
    alone.run(start_again_from, recipe(), str(tmp_path / "run/stage2/adapter"))
    assert read_card(tmp_path / "run/stage2/adapter").started_from["warm_start"]
    assert "taken from the network instead" not in (tmp_path / "run/train.log").read_text()


def start_again_from(recipe: dict, init: str) -> None:
    cases.train(recipe, [2], init=Path(init), resume="never")


def test_what_is_no_checkpoint_is_named_with_the_checkpoints_there_are(alone, recipe, tmp_path):
    run = tmp_path / "run"
    alone.run(cases.train, recipe(), [1])
    (tmp_path / "file").write_text("")
    for path, words in (
        (tmp_path / "none", "there is nothing"),
        (tmp_path / "file", "a file"),
        (run / "stage1/adapter", "an adapter, which --init starts from"),
        (run, "a folder without training_state.json"),
    ):
        with pytest.raises(AssertionError) as caught:
            alone.run(resume_from, recipe(), str(path))
        said = str(caught.value).splitlines()[-1]
        assert f"no checkpoint ({words})" in said
        assert f"{run}/stage1/checkpoints/checkpoint_2, " in said
        assert f"{run}/stage1/checkpoints/checkpoint_4" in said


def test_a_second_run_in_a_folder_is_refused_and_a_dead_one_is_taken_over(alone, recipe, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lock = DirectoryLock(run / "lock")
    lock.acquire()
    with pytest.raises(AssertionError, match=rf"run: another run writes to this folder \(process {os.getpid()} on .*"):
        alone.run(cases.train, recipe(), [1])
    lock.release()
    code = f"""
import os
from pathlib import Path
from stagecoach.data.locks import DirectoryLock
DirectoryLock(Path({str(run / "lock")!r})).acquire()
os.kill(os.getpid(), 9)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    assert (run / "lock").exists()
    alone.run(cases.train, recipe(), [1])
    assert not (run / "lock").exists()


def train_and_lose_the_folder(recipe: dict, step: int) -> str:
    """The failure of a run that is silent for too long in ``step``, so that another takes its folder."""
    from stagecoach.trainer.distributed import attempt
    from stagecoach.trainer.stage import StageLoop

    after, run = StageLoop._after_step, Path(recipe["run"])

    def overtaken(self):
        after(self)
        if self.step == step:
            os.rename(run / "lock", run / "lock.dead-first")
            other = DirectoryLock(run / "lock")
            other.acquire()
            other._released.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageLoop, "_after_step", overtaken)
        return str(attempt(cases.train, recipe, [1]))


@pytest.mark.parametrize(("logged", "saved"), [(1, 100), (100, 4)])
def test_a_run_whose_folder_was_taken_by_another_stops_before_it_saves(alone, recipe, tmp_path, logged, saved):
    run = tmp_path / "run"
    logging = {"every": logged, "tensorboard": False, "wandb": "off"}
    (said,) = alone.run(train_and_lose_the_folder, recipe(steps=8, checkpoint_every=saved, logging=logging), 2)
    assert said.startswith(f"{run}: another run writes to this folder now (process ")
    assert "no sign of life for 180 s" in said
    assert not (run / "stage1" / "checkpoints").exists()
    assert (run / "lock").exists()  # the other's
    assert (run / "metrics.jsonl").exists() == (logged == 1)
    assert logged == 100 or len(cases.losses(run, 1)) <= 3


def test_stages_that_are_not_there_leave_nothing_behind(alone, recipe, tmp_path):
    with pytest.raises(AssertionError, match="has no stage 9"):
        alone.run(cases.train, recipe(), [9])
    with pytest.raises(AssertionError, match="no readable manifest"):
        alone.run(cases.train, recipe(data=str(tmp_path / "nowhere")), [1])
    assert not (tmp_path / "run").exists()
