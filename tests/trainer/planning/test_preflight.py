"""Each thing that would stop a run later is found before it starts, and said in one sentence."""

import json
from collections import namedtuple

import pytest
import torch

from stagecoach.data.files import seal_directory
from stagecoach.models import FAMILIES
from stagecoach.trainer.planning import preflight as module
from stagecoach.trainer.planning.preflight import preflight, requirements
from stagecoach.trainer.recipe import load_recipe
from tests.commands import run_stagecoach
from tests.toy import ToyFamily, write_toy_shards
from tests.trainer.finished import damage, finish_stage_one, toy_recipe_file


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", "tests.toy:ToyFamily")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    write_toy_shards(directory)
    return directory


def check(recipe, stages=(1, 2), **options):
    return {c.name: c for c in preflight(recipe, stages=list(stages), **options)}


def recipe_of(tmp_path, shards, **changes):
    return load_recipe(recipe=toy_recipe_file(tmp_path / "toy.yaml", tmp_path / "run", shards, **changes))


def failed(checks):
    return {name: c.message for name, c in checks.items() if not c.ok}


def test_a_sound_run_passes_every_check_and_one_line_is_said_of_each(tmp_path, shards, monkeypatch, capfd):
    file = toy_recipe_file(tmp_path / "toy.yaml", tmp_path / "run", shards)
    assert run_stagecoach("verify", "--recipe", file, "--full")[1] == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["ok"] * 10
    assert "24 samples" in lines[2]
    assert "all hashes agree" in lines[2]


def test_with_json_standard_output_is_one_object_and_a_failure_exits_with_1(tmp_path, monkeypatch, capfd):
    file = toy_recipe_file(tmp_path / "toy.yaml", tmp_path / "run", tmp_path / "nowhere")
    assert run_stagecoach("verify", "--recipe", file, "--json")[1] == 1
    found = json.loads(capfd.readouterr().out)
    assert not found["ok"]
    assert [c["name"] for c in found["checks"] if not c["ok"]] == ["train shards"]


def test_a_wrong_recipe_is_a_failed_check_too(tmp_path, monkeypatch, capfd):
    file = toy_recipe_file(tmp_path / "toy.yaml", tmp_path / "run", tmp_path, activation_checkpoint="none")
    assert run_stagecoach("verify", "--recipe", file, "--json")[1] == 1
    (only,) = json.loads(capfd.readouterr().out)["checks"]
    assert only["message"].endswith("unknown key activation_checkpoint; did you mean 'activation_checkpointing'?")


def test_a_damaged_tar_is_found_with_full_and_named(tmp_path, shards):
    write_toy_shards(tmp_path / "own")
    tar = sorted((tmp_path / "own" / "train").glob("*.tar"))[0]
    damage(tar)
    recipe = recipe_of(tmp_path, tmp_path / "own")
    assert "train shards" not in failed(check(recipe))
    assert str(tar) in failed(check(recipe, full=True))["train shards"]
    tar.write_bytes(tar.read_bytes()[:-512])
    assert str(tar) in failed(check(recipe))["train shards"]


def test_gpus_that_do_not_divide_the_batch(tmp_path, shards):
    found = failed(check(recipe_of(tmp_path, shards), gpus=3))
    assert found.keys() == {"batches"}
    assert "use 6 or 9" in found["batches"]


def test_the_adapter_of_the_stage_before_must_be_there_unless_this_run_makes_it(tmp_path, shards):
    recipe = recipe_of(tmp_path, shards)
    assert check(recipe)["hand-off to stage 2"].ok
    assert "stage1/adapter: there is nothing, expected" in failed(check(recipe, stages=[2]))["hand-off to stage 2"]
    adapter, _ = finish_stage_one(tmp_path / "run", recipe)
    assert "intact and complete" in check(recipe, stages=[2])["hand-off to stage 2"].message
    damage(adapter / "model.safetensors")
    assert "model.safetensors" in failed(check(recipe))["hand-off to stage 2"]


def test_an_adapter_named_with_init_must_be_of_the_stage_before_or_for_a_warm_start_of_the_same(tmp_path, shards):
    recipe = recipe_of(tmp_path, shards)
    adapter, _ = finish_stage_one(tmp_path / "other", recipe)
    assert not failed(check(recipe, stages=[2], init=adapter))
    assert not failed(check(recipe, stages=[1], init=adapter))
    card = json.loads((adapter / "adapter.json").read_text())
    for stage, change, words in (
        (1, {"stage": 2}, "adapter of stage 2, expected 1 to start stage 1"),
        (2, {"stage": 3}, "adapter of stage 3, expected 1 or 2 to start stage 2"),
        (1, {"size": "huge"}, "adapter of size huge, expected tiny"),
    ):
        (adapter / "adapter.json").write_text(json.dumps(card | change))
        (adapter / "manifest.json").unlink()
        seal_directory(adapter)
        assert words in failed(check(recipe, stages=[stage], init=adapter))[f"hand-off to stage {stage}"]


def test_a_full_disk(tmp_path, shards, monkeypatch):
    recipe = recipe_of(tmp_path, shards, keep_checkpoints=2)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**6, 0, 100))
    assert "free some" in failed(check(recipe))["disk"]
    # Three checkpoints of fp32 weights and moments (100 steps and one every 1000 make one), an adapter.
    planned = {1: {"trainable": 1000}}
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**6, 0, 1000 * (12 + 4) - 1))
    with pytest.raises(ValueError, match="free some"):
        module._disk(recipe, planned)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**6, 0, 1000 * (12 + 4)))
    module._disk(recipe, planned)


def test_no_gpu_is_a_failure_unless_the_cpu_is_asked_for(tmp_path, shards, monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR")
    assert "set DS_ACCELERATOR=cpu" in failed(check(recipe_of(tmp_path, shards)))["device"]


def test_an_attention_backend_that_cannot_run_here(tmp_path, shards):
    recipe = recipe_of(tmp_path, shards, attention="flash", precision="bf16")
    assert "needs a CUDA device" in failed(check(recipe))["attention"]


def test_base_weights_are_looked_at_by_the_family(tmp_path, shards, monkeypatch):
    def look(self, config):
        raise ValueError("base/model.safetensors: 3 names not in the model")

    monkeypatch.setattr(ToyFamily, "check_base", look)
    assert failed(check(recipe_of(tmp_path, shards))) == {
        "base weights": "base/model.safetensors: 3 names not in the model"
    }


def test_versions_are_held_against_setup_py(monkeypatch):
    names = {r.name for r in requirements()}
    assert {"torch", "deepspeed", "diffusers"} <= names
    assert "packages" in module._versions()
    versions = dict.fromkeys(names, "99.0") | {"deepspeed": "0.10.0"}
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: versions[name])
    with pytest.raises(ValueError, match=r"deepspeed is 0\.10\.0, expected >=") as error:
        module._versions()
    assert "torch is" not in str(error.value)
