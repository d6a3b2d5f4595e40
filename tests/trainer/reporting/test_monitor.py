import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagecoach import __version__
from stagecoach.data.outputs.moving import Video
from stagecoach.trainer.recipe import Recipe, load_recipe
from stagecoach.trainer.reporting.logs import log_to_run, log_to_terminal
from stagecoach.trainer.reporting.monitor import Monitor, NodeMonitor, RunMonitor, read_run_record
from stagecoach.trainer.reporting.sinks import read_metrics
from stagecoach.trainer.watch.view import ClusterView


@pytest.fixture
def recipe(recipe_file) -> Recipe:
    return load_recipe(recipe=recipe_file)


def steps_of(run: Path, stage: int) -> list[int]:
    return [record["step"] for record in read_metrics(run / "metrics.jsonl") if record["stage"] == stage]


def trained(recipe: Recipe, run: Path, stage: int, first: int, last: int) -> None:
    """An attempt that logs steps ``first`` to ``last`` (as done), going on from ``first - 1``."""
    monitor = RunMonitor(recipe, run, stage, max(0, first - 1))
    monitor.start(100, max(0, first - 1))
    for step in range(first, last + 1):
        monitor.log(step, {"loss": 1.0 / (step + 1)})
    monitor.close()


def test_a_step_is_one_json_object_with_what_it_was_given(recipe, tmp_path):
    monitor = RunMonitor(recipe, tmp_path, 2, 0)
    monitor.start(10, 0)
    monitor.log(5, {"loss": 0.25, "loss/depth": math.nan, "depth_loss": math.inf})
    monitor.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[0], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert record.pop("time") > 1e9
    assert record == {"stage": 2, "step": 5, "loss": 0.25, "loss/depth": None, "depth_loss": None}
    assert len(lines) == 1


def test_a_resumed_stage_has_no_step_twice_and_keeps_what_the_checkpoint_had_seen(recipe, tmp_path):
    trained(recipe, tmp_path, 1, 0, 9)
    monitor = RunMonitor(recipe, tmp_path, 1, 6)
    assert steps_of(tmp_path, 1) == list(range(7))
    monitor.start(100, 6)
    for step in range(7, 13):
        monitor.log(step, {"loss": 0.0})
    monitor.close()
    assert steps_of(tmp_path, 1) == list(range(13))


def test_other_stages_stay_when_one_starts_over(recipe, tmp_path):
    trained(recipe, tmp_path, 1, 0, 3)
    trained(recipe, tmp_path, 2, 0, 5)
    trained(recipe, tmp_path, 2, 0, 1)
    assert steps_of(tmp_path, 1) == [0, 1, 2, 3]
    assert steps_of(tmp_path, 2) == [0, 1]


def test_a_line_that_a_crash_cut_short_is_dropped(recipe, tmp_path):
    trained(recipe, tmp_path, 1, 0, 4)
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write('{"stage": 1, "st')
    trained(recipe, tmp_path, 1, 4, 5)
    assert steps_of(tmp_path, 1) == [0, 1, 2, 3, 4, 5]


def test_the_log_is_for_reading_and_grows_over_attempts(recipe, tmp_path, capsys):
    log_to_terminal()
    log_to_run(tmp_path)
    monitor = RunMonitor(recipe, tmp_path, 1, 0)
    monitor.start(100, 0)
    monitor.log(10, {"loss": 0.123456})
    monitor.close()
    shown = capsys.readouterr().out
    trained(recipe, tmp_path, 1, 11, 11)
    text = (tmp_path / "train.log").read_text()
    for words in ("stage 1 step 10/100", "loss 0.1235", "ETA"):
        assert words in text
        assert words in shown
    assert "goes on from step 10 of 100" in text


def test_the_monitor_of_other_ranks_leaves_nothing(tmp_path, capsys, monkeypatch):
    log_to_terminal()
    monkeypatch.chdir(tmp_path)
    monitor = Monitor()
    monitor.start(10, 0)
    monitor.log(1, {"loss": 1.0})
    monitor.images(1, {"a": np.zeros((2, 2, 3), np.uint8)})
    monitor.facts({"a": 1})
    monitor.close()
    assert not list(tmp_path.iterdir())
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_pictures_are_files_by_stage_and_step(recipe, tmp_path):
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    monitor = RunMonitor(recipe, tmp_path, 2, 0)
    monitor.images(40, {"clip_0/depth": picture, "clip_1": picture[:, ::-1]})
    monitor.close()
    folder = tmp_path / "previews" / "stage2" / "step_40"
    assert sorted(path.name for path in folder.iterdir()) == ["clip_0_depth.png", "clip_1.png"]
    assert np.array_equal(np.asarray(Image.open(folder / "clip_0_depth.png")), picture)
    assert np.array_equal(np.asarray(Image.open(folder / "clip_1.png")), picture[:, ::-1])


def test_a_video_is_a_gif_in_the_run_in_tensorboard_and_in_wandb(recipe_file, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe = load_recipe(recipe=recipe_file, overrides=["logging.tensorboard=true", "logging.wandb=offline"])
    frames = np.stack([np.full((8, 12, 3), 60 * k, np.uint8) for k in range(4)])
    monitor = RunMonitor(recipe, tmp_path, 1, 0)
    monitor.images(5, {"clip-sampled": Video(frames, 10.0), "clip": frames[0]})
    monitor.close()
    folder = tmp_path / "previews" / "stage1" / "step_5"
    assert sorted(path.name for path in folder.iterdir()) == ["clip-sampled.gif", "clip.png"]
    with Image.open(folder / "clip-sampled.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (4, (12, 8), 100)
        gif.seek(2)
        assert abs(np.asarray(gif.convert("RGB")).astype(int) - 120).max() <= 4
    events = EventAccumulator(str(tmp_path / "tb" / "stage1")).Reload()
    assert set(events.Tags()["images"]) == {"preview/clip", "preview/clip-sampled"}
    assert events.Images("preview/clip-sampled")[0].encoded_image_string.startswith(b"GIF89a")
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media/videos/preview/clip-sampled_*.gif")
    assert media.read_bytes() == (folder / "clip-sampled.gif").read_bytes()


def test_run_json_says_what_ran_where_and_keeps_facts(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monitor = RunMonitor(recipe, tmp_path, 1, 0)
    monitor.facts({"stage1": {"name": "bridge"}})
    monitor.close()
    RunMonitor(recipe, tmp_path, 1, 50).close()
    record = read_run_record(tmp_path)
    starts = [(start["stage"], start["step"], start["world_size"]) for start in record["starts"]]
    assert starts == [(1, 0, 2), (1, 50, 2)]
    start = record["starts"][0]
    assert start["commit"] is None or len(start["commit"].rstrip("+")) == 40
    assert start["host"]
    assert start["argv"]
    assert start["version"] == __version__
    assert {"torch", "deepspeed", "diffusers"} <= set(start["versions"])
    assert record["stage1"] == {"name": "bridge"}


def test_the_tracker_run_goes_on_with_the_stage_and_is_another_when_it_starts_over(recipe, tmp_path):
    ids = []
    for resume_step in (0, 50, 0):
        RunMonitor(recipe, tmp_path, 1, resume_step).close()
        ids.append(read_run_record(tmp_path)["wandb"]["1"])
    assert ids[0] == ids[1] != ids[2]


def test_tensorboard_gets_the_same_names_and_forgets_what_is_written_again(recipe_file, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = load_recipe(recipe=recipe_file, overrides=["logging.tensorboard=true"])
    trained(recipe, tmp_path, 1, 0, 9)
    monitor = RunMonitor(recipe, tmp_path, 1, 6)
    monitor.start(100, 6)
    monitor.log(7, {"loss": 5.0, "val_depth_error": 2.0})
    monitor.images(7, {"clip": np.zeros((4, 4, 3), np.uint8)})
    monitor.cluster(7, ClusterView({"cluster/slowest_rank": 1.0}, {"step_seconds": [1.0, 2.0]}, "", []))
    monitor.close()
    events = EventAccumulator(str(tmp_path / "tb" / "stage1")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert events.Scalars("loss")[-1].value == 5.0
    assert set(events.Tags()["scalars"]) == {"loss", "val_depth_error", "cluster/slowest_rank"}
    assert events.Tags()["images"] == ["preview/clip"]


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[dict] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, values: dict) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def fake_wandb(monkeypatch):
    """W&B without its service process: what ``init`` was asked for, and the runs it gave."""
    import wandb

    calls: list[dict] = []
    runs: list[FakeRun] = []

    def init(**arguments):
        calls.append(arguments)
        if arguments["mode"] == "online" and getattr(init, "unreachable", False):
            raise wandb.errors.CommError("no route to host")
        runs.append(FakeRun())
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "login", lambda prompt: init.has_key)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    init.calls, init.runs, init.has_key = calls, runs, False
    return init


def with_wandb(recipe_file: Path, tmp_path: Path, mode: str) -> RunMonitor:
    recipe = load_recipe(recipe=recipe_file, overrides=[f"logging.wandb={mode}"])
    return RunMonitor(recipe, tmp_path / "run", 1, 0)


def test_wandb_without_a_key_is_offline_with_a_notice(recipe_file, tmp_path, fake_wandb):
    log_to_run(tmp_path / "run")
    with_wandb(recipe_file, tmp_path, "online").close()
    assert [call["mode"] for call in fake_wandb.calls] == ["offline"]
    assert "no key" in (tmp_path / "run" / "train.log").read_text()


def test_wandb_with_a_key_is_online_under_the_id_of_run_json(recipe_file, tmp_path, fake_wandb):
    fake_wandb.has_key = True
    monitor = with_wandb(recipe_file, tmp_path, "online")
    monitor.start(10, 0)
    monitor.log(3, {"loss": 1.0})
    monitor.close()
    call = fake_wandb.calls[0]
    assert (call["mode"], call["group"], call["project"]) == ("online", "run", "stagecoach")
    assert call["id"] == read_run_record(tmp_path / "run")["wandb"]["1"]
    assert fake_wandb.runs[0].logged == [{"step": 3, "loss": 1.0}]
    assert fake_wandb.runs[0].finished


def test_what_the_ranks_do_reaches_wandb_under_cluster(recipe_file, tmp_path, fake_wandb):
    monitor = with_wandb(recipe_file, tmp_path, "offline")
    values = {"cluster/slowest_rank": 1.0, "cluster/step_seconds_max": 2.0}
    monitor.cluster(10, ClusterView(values, {"step_seconds": [1.0, 2.0]}, "slowest rank 1 (b)", []))
    monitor.close()
    assert fake_wandb.runs[0].logged == [{"step": 10, **values}]


def test_the_config_that_wandb_keeps_holds_no_secret(recipe_file, tmp_path, fake_wandb, monkeypatch):
    monkeypatch.setenv("STORE_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    secrets = ("hunter22", "0f3a9c77", "wJalrXUtnFEMI", "hf_abcdefghijklmnopqrstuvwx")
    words = [
        "logging.wandb=offline",
        "data=[{path: 'https://anna:hunter22@host/set?X-Amz-Signature=0f3a9c77&part=3'}, {path: 's3://b/wJalrXUtnFEMI'}]",
        "encoders.text.name=hf_abcdefghijklmnopqrstuvwx",
        f"stream.cache.directory={tmp_path}/cache",
    ]
    recipe = load_recipe(recipe=recipe_file, overrides=words)
    assert all(secret in str(recipe.model_dump()) for secret in secrets)
    for monitor in (
        RunMonitor(recipe, tmp_path / "run", 1, 0),
        NodeMonitor(recipe, tmp_path / "run", 1, "shared", "node01"),
    ):
        monitor.close()
    for call in fake_wandb.calls:
        assert not [secret for secret in secrets if secret in str(call)], call
        assert [part["path"] for part in call["config"]["data"]] == [
            "https://***@host/set?X-Amz-Signature=***&part=3",
            "s3://b/***",
        ]
        assert (call["config"]["seed"], call["config"]["stages"]["1"]["steps"]) == (recipe.seed, 100)
    assert len(fake_wandb.calls) == 2


def test_several_nodes_share_one_wandb_run_that_rank_0_leads(recipe_file, tmp_path, fake_wandb):
    fake_wandb.has_key = True
    recipe = load_recipe(recipe=recipe_file, overrides=["logging.wandb=online"])
    first = RunMonitor(recipe, tmp_path / "run", 1, 0, node="node00")
    other = NodeMonitor(recipe, tmp_path / "run", 1, first.shared_run, "node01")
    other.log(1, {"loss": 1.0})
    for monitor in (other, first):
        monitor.close()
    roles = [call["settings"] for call in fake_wandb.calls]
    assert [call["mode"] for call in fake_wandb.calls] == ["shared", "shared"]
    assert len({call["id"] for call in fake_wandb.calls}) == 1
    assert [(role.x_label, role.x_primary) for role in roles] == [("node00", True), ("node01", False)]
    assert not roles[1].x_update_finish_state
    assert not fake_wandb.runs[1].logged
    assert fake_wandb.runs[1].finished


def test_nodes_do_not_share_a_run_that_is_offline(recipe_file, tmp_path, fake_wandb):
    recipe = load_recipe(recipe=recipe_file, overrides=["logging.wandb=online"])
    monitor = RunMonitor(recipe, tmp_path / "run", 1, 0, node="node00")
    monitor.close()
    assert monitor.shared_run is None
    assert [call["mode"] for call in fake_wandb.calls] == ["offline"]


def test_what_the_ranks_do_is_a_record_of_its_own_a_line_and_a_warning(recipe, tmp_path):
    log_to_run(tmp_path)
    monitor = RunMonitor(recipe, tmp_path, 1, 0)
    monitor.start(100, 0)
    monitor.log(10, {"loss": 0.5})
    slow = {"step_seconds": [1.0, 2.0]}
    monitor.cluster(10, ClusterView({"cluster/slowest_rank": 1.0}, slow, "slowest rank 1 (b)", ["straggler: rank 1"]))
    monitor.close()
    assert read_metrics(tmp_path / "metrics.jsonl")[1] | {"time": 0} == {
        "stage": 1,
        "step": 10,
        "time": 0,
        "cluster/slowest_rank": 1.0,
        "ranks": slow,
    }
    text = (tmp_path / "train.log").read_text()
    assert "cluster at step 10: slowest rank 1 (b)" in text
    assert "WARNING step 10: straggler: rank 1" in text


def test_a_service_out_of_reach_does_not_stop_a_run(recipe_file, tmp_path, fake_wandb):
    fake_wandb.has_key = fake_wandb.unreachable = True
    with_wandb(recipe_file, tmp_path, "online").close()
    assert [call["mode"] for call in fake_wandb.calls] == ["online", "offline"]


def test_wandb_mode_of_the_environment_comes_first(recipe_file, tmp_path, fake_wandb, monkeypatch):
    fake_wandb.has_key = True
    monkeypatch.setenv("WANDB_MODE", "offline")
    with_wandb(recipe_file, tmp_path, "online").close()
    assert [call["mode"] for call in fake_wandb.calls] == ["offline"]


def test_on_a_terminal_a_bar_shows_loss_pace_memory_and_time_left(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    log_to_terminal()
    log_to_run(tmp_path)
    monitor = RunMonitor(recipe, tmp_path, 1, 0)
    monitor.start(100, 0)
    monitor.log(20, {"loss": 0.5, "step_seconds": 0.25, "samples_per_second": 16.0, "memory_gib": 1.5})
    logging.getLogger("stagecoach.trainer").info("a message")
    monitor.close()
    captured = capsys.readouterr()
    for words in ("20/100", "loss 0.5", "4 it/s", "16 samples/s", "1.5 GiB", "ETA", "a message"):
        assert words in captured.err
    assert captured.out == ""
    assert "stage 1 step 20/100" in (tmp_path / "train.log").read_text()
