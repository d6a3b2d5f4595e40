"""The loop of a stage: the phases that its heartbeat tells, a single step, and shards that are out of reach."""

import errno
from collections import defaultdict
from pathlib import Path

import pytest

from stagecoach.data.local_files import UnreachableError
from stagecoach.models.weights.card import read_card
from stagecoach.trainer import run as run_module
from stagecoach.trainer import stage as stage_module
from stagecoach.trainer.checkpointing.save import Saver
from stagecoach.trainer.evaluate import Evaluator
from stagecoach.trainer.reporting.monitor import RunMonitor
from stagecoach.trainer.stage import StageLoop
from stagecoach.trainer.watch import heartbeat
from tests.data.trouble import Trouble
from tests.distributed import cases
from tests.distributed.cases import toy_recipe
from tests.pair import Pair
from tests.toy import write_toy_shards

WORK = (
    (run_module, "prepare_stage"),
    (run_module, "write_report"),
    (StageLoop, "micro_step"),
    (StageLoop, "_boundary"),
    (Evaluator, "validate"),
    (Evaluator, "preview"),
    (Saver, "save"),
    (Saver, "close"),
    (stage_module, "check_frozen"),
    (stage_module, "write_adapter"),
    (RunMonitor, "close"),
)


@pytest.fixture(scope="module")
def alone():
    process = Pair(size=1)
    yield process
    process.close()


@pytest.fixture
def shards(tmp_path):
    write_toy_shards(tmp_path / "shards")
    return str(tmp_path / "shards")


def train_and_listen(recipe: dict) -> tuple[dict[str, list[str]], list[str]]:
    """By function the phase in which each of its calls began and ended, and the phases of the run in their order."""
    during, told = defaultdict(list), []

    def listened(name, function):
        def call(*arguments, **named):
            during[name].append(heartbeat._current.now.phase)
            result = function(*arguments, **named)
            assert heartbeat._current.now.phase == during[name][-1]
            return result

        return call

    def fetched(batches):
        while True:
            during["fetch"].append(heartbeat._current.now.phase)
            try:
                yield next(batches)
            except StopIteration:
                return

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in WORK:
            patch.setattr(owner, name, listened(name, vars(owner)[name]))
        batches, beat = stage_module.device_batches, heartbeat.Heartbeat.beat

        def beat_and_tell(self, **changes):
            beat(self, **changes)
            told.append(self.now.phase)

        patch.setattr(stage_module, "device_batches", lambda *arguments: fetched(batches(*arguments)))
        patch.setattr(heartbeat.Heartbeat, "beat", beat_and_tell)
        cases.train(recipe, [1])
    return dict(during), [phase for at, phase in enumerate(told) if at == 0 or told[at - 1] != phase]


def test_each_piece_of_a_stages_work_runs_in_the_phase_of_its_name(alone, shards, tmp_path):
    short = {"steps": 2, "micro_batch": 4, "validate_every": 1, "preview_every": 1, "checkpoint_every": 1}
    ((during, told),) = alone.run(train_and_listen, toy_recipe(shards, str(tmp_path / "run"), **short).model_dump())
    # Two micro-batches a step; that there are no more is learned by asking once more.
    assert during == {
        "prepare_stage": ["build"],
        "fetch": ["compile"] * 2 + ["data"] * 3,
        "micro_step": ["compile"] * 2 + ["step"] * 2,
        "_boundary": ["boundary"] * 2,
        "validate": ["validation"] * 3,  # once before the first step
        "preview": ["preview"] * 2,
        "save": ["save"] * 2,
        "check_frozen": ["save"],
        "write_adapter": ["save"],
        "close": ["save"] * 2,  # the saver and the monitor
        "write_report": ["save"],
    }
    work = ["boundary", "validation", "boundary", "preview", "boundary", "save", "boundary"]
    assert told[: told.index("data")] == ["build", "validation", "build", "compile", *work]
    second = told[told.index("data") :]
    assert second[:11] == ["data", "step"] * 2 + work
    assert "compile" not in second


def test_a_stage_of_one_step_trains_where_a_longer_one_is_stopped_by_the_gradient_check(alone, shards, tmp_path):
    """Half of the weights get no gradient, as behind gates that are zero in the first step."""

    def recipe(run: str, steps: int) -> dict:
        quiet = {"validation_samples": 0, "preview_samples": 0, "model": {"unused_layer": True}}
        return toy_recipe(shards, str(tmp_path / run), steps=steps, **quiet).model_dump()

    ((adapter,),) = alone.run(cases.train, recipe("one", 1), [1])
    assert read_card(Path(adapter)).steps == 1
    assert len(cases.losses(tmp_path / "one", 1)) == 1
    with pytest.raises(AssertionError, match=r"layers\.1\.first"):
        alone.run(cases.train, recipe("three", 3), [1])


def train_beside_a_dead_disk(recipe: dict, tar: str) -> str:
    """How a run ends to which a tar gives no answer from the first sample on."""
    with pytest.MonkeyPatch.context() as patch, Trouble(patch, tar, errno.EIO) as trouble:
        with pytest.raises(UnreachableError) as caught:
            cases.train(recipe, [1])
        assert trouble.count
    return str(caught.value)


def test_a_tar_that_gives_no_answer_ends_the_stage_by_name_and_is_no_damaged_sample(alone, shards, tmp_path):
    tar = sorted(Path(shards, "train").glob("*.tar"))[-1]
    options = {"stream": {"bad_samples": 0.9}, "validation_samples": 0, "preview_samples": 0}
    recipe = toy_recipe(shards, str(tmp_path / "run"), **options)
    (said,) = alone.run(train_beside_a_dead_disk, recipe.model_dump(), tar.name)
    assert said.startswith(f"{tar}: not read in 7 attempts over ")
    assert "Input/output error" in said
    metrics = tmp_path / "run/metrics.jsonl"
    assert not any(cases.losses(tmp_path / "run", 1, "bad_samples") if metrics.exists() else [])
    assert "damaged" not in (tmp_path / "run/train.log").read_text()
    assert not (tmp_path / "run/stage1/adapter").exists()
