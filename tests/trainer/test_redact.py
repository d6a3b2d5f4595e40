"""No secret that a user gives reaches what a run writes."""

import json
import logging

import pytest
import yaml

from stagecoach.trainer.recipe import load_recipe
from stagecoach.trainer.redact import redact, redact_values
from stagecoach.trainer.reporting.logs import log_to_run
from stagecoach.trainer.reporting.monitor import RunMonitor

SIGNED = "https://bucket.s3.amazonaws.com/set?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2Fus&X-Amz-Signature=0f3a9c&part=3"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://anna:hunter22@host/set", ["anna", "hunter22"]),
        ("s3://KEYID123:wJalrXUtn/FEMI@bucket/x", ["wJalrXUtn"]),
        (SIGNED, ["AKIAIOSFODNN7EXAMPLE", "0f3a9c"]),
        ("https://x.blob.core.windows.net/c?sv=2022&sig=abc%2Bdef&se=2027", ["abc%2Bdef"]),
        ("--set logging.api_key=0123456789abcdef", ["0123456789abcdef"]),
        ("{'password': 'hunter22', 'user': 'anna'}", ["hunter22"]),
        ("Authorization: Bearer abcdef.ghijk", ["abcdef"]),
        ("token hf_abcdefghijklmnopqrstuvwx", ["hf_abc"]),
        ("WANDB_API_KEY=40characters", ["40characters"]),
    ],
)
def test_a_secret_is_hidden_by_its_form_or_its_name(text, hidden):
    found = redact(text)
    assert "***" in found
    assert not [word for word in hidden if word in found], found
    assert redact(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "stage 1 step 10/20 | loss 0.5 | text_tokens 77 | key frames=5",
        "https://host/set?part=3",
        "global_batch 8 = 2 ranks x 2 samples; model.max_tokens=512",
        "user@host:/data/run",
        "sha256 0123456789abcdef, keyed_randn, signature of the function",
        "monkey=banana tokens=1234567",
    ],
)
def test_other_words_stay(text):
    assert redact(text) == text


def test_a_secret_of_the_environment_is_hidden_wherever_it_comes_up(monkeypatch):
    monkeypatch.setenv("MY_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("RANK_TOKEN", "7")
    monkeypatch.setenv("PWD", "/data/checkout")
    assert redact("/data/checkout/run.py") == "/data/checkout/run.py"
    assert redact("failed with wJalrXUtnFEMI in step 7") == "failed with *** in step 7"


def test_values_are_hidden_at_any_depth_and_numbers_kept():
    values = {"a": [{"token": "x y", "tokens": 5, "api_key": None}], "b": ("https://u:p@h", 1.5)}
    assert redact_values(values) == {"a": [{"token": "***", "tokens": 5, "api_key": None}], "b": ["https://***@h", 1.5]}


def test_neither_log_nor_run_json_nor_recipe_holds_a_secret(tmp_path, recipe_file, monkeypatch):
    url, key = "https://anna:hunter22@host/set?X-Amz-Signature=0f3a9c77", "0123456789abcdef0123"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setattr("sys.argv", ["stage1.py", "--data", url, "--set", f"logging.api_key={key}"])
    recipe = load_recipe(recipe=recipe_file, overrides=[f"data={url}"])
    assert recipe.data == url
    run = tmp_path / "run"
    run.mkdir()
    log_to_run(run)
    (run / "recipe.yaml").write_text(recipe.dump())
    RunMonitor(recipe, run, 1, 0).close()
    logging.getLogger("stagecoach").error("%s is not reached with %s", url, key)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"train.log", "run.json", "recipe.yaml"} <= {path.name for path in files}
    for path in files:
        assert not [word for word in (b"hunter22", b"0f3a9c77", key.encode()) if word in path.read_bytes()], path
    assert "***" in json.loads((run / "run.json").read_text())["starts"][0]["argv"][-1]
    assert yaml.safe_load((run / "recipe.yaml").read_text())["data"].startswith("https://***@host/set")


def test_wandb_is_given_no_secret(tmp_path, recipe_file, monkeypatch):
    from stagecoach.trainer.reporting.sinks import WeightsAndBiases

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("sys.argv", ["stage1.py", "--set", "logging.password=hunter22hunter22"])
    sink = WeightsAndBiases("offline", directory=tmp_path, project="p", stage=1, run_id="a", config={})
    sink.log(1, {"loss": 1.0})
    sink.close()
    files = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    assert not [path for path in files if b"hunter22" in path.read_bytes()]
