"""The folder for a hub: opened again with the same tensors, the same bytes each time, and nothing of this machine."""

import json
import logging

import huggingface_hub.constants
import pytest
import torch
import yaml
from PIL import Image, PngImagePlugin

from stagecoach import MoviePostPipeline
from stagecoach.models import FAMILIES, get_family
from stagecoach.models.common.licences import APACHE, FLUX_DEV, INSIGHTFACE, SVD, Part, strictest
from stagecoach.models.weights import load_network, open_weights
from stagecoach.trainer.hub import push, write_hub_folder
from stagecoach.trainer.redact import without_places
from tests.commands import run_stagecoach
from tests.models.weights.held import hold
from tests.trainer.finished import finish_stage_one, toy_recipe_file
from tests.trainer.hub_server import hub

SECRET = "hf_abcdefghijklmnopqrstuvwx"


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", "tests.toy:ToyFamily")


@pytest.fixture
def adapter(tmp_path):
    """Of a run on data in a store that its recipe gives a password for."""
    run = tmp_path / "home" / "anna" / "run"
    found, _ = finish_stage_one(run)
    data = f"https://anna:hunter22@store.internal/sets/dances?X-Amz-Signature={SECRET}"
    toy_recipe_file(run / "recipe.yaml", run, data, logging={"wandb": "offline"}, ds_config=str(run / "own.json"))
    lines = [
        {"stage": 1, "step": 50, "time": 1.0, "val_loss": 0.9},
        {"stage": 1, "step": 100, "time": 2.0, "val_loss": 0.25, "loss": 0.2},
        {"stage": 2, "step": 100, "time": 3.0, "val_loss": 7.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


@pytest.fixture
def samples(tmp_path):
    folder = tmp_path / "samples"
    (folder / "b").mkdir(parents=True)
    note = PngImagePlugin.PngInfo()
    note.add_text("parameters", f"/home/anna/secret {SECRET}")
    Image.new("RGB", (8, 6), (255, 0, 0)).save(folder / "a.png", pnginfo=note)
    exif = Image.Exif()
    exif[0x010E] = "/home/anna/secret"
    Image.new("RGB", (8, 6), (0, 0, 255)).save(folder / "b" / "c.jpg", exif=exif)
    return folder


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def front(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_the_folder_opens_as_the_adapter_does(tmp_path, adapter):
    write_hub_folder(adapter, tmp_path / "hub", "fp32")
    opened, before = open_weights(tmp_path / "hub"), open_weights(adapter)
    assert (opened.kind, opened.sha256, opened.stage) == ("file", before.sha256, before.stage)
    assert all(torch.equal(value, before.tensors()[name]) for name, value in opened.tensors().items())
    # As it comes down from a hub.
    (tmp_path / "hub" / ".gitattributes").write_text("* text")
    (tmp_path / "hub" / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / "hub" / "README.md").write_text("edited there")
    assert open_weights(tmp_path / "hub").sha256 == before.sha256
    again = write_hub_folder(tmp_path / "hub", tmp_path / "again", "fp32")
    assert again["metadata"]["adapter_sha256"] == before.sha256
    assert (tmp_path / "again" / "recipe.yaml").read_bytes() == (tmp_path / "hub" / "recipe.yaml").read_bytes()
    # A file's neighbours are not taken for its own.
    (tmp_path / "hub" / "adapter.safetensors").rename(adapter.parent / "alone.safetensors")
    assert set(write_hub_folder(adapter.parent / "alone.safetensors", tmp_path / "alone", "fp32")["files"]) == {
        "README.md",
        "adapter.safetensors",
        "stagecoach.json",
    }


@pytest.mark.parametrize("family", ["movie_post_production", "fantasy_world", "dance_with_music"])
def test_the_folder_of_each_family_gives_the_network_that_its_adapter_gives(tmp_path, family):
    held = hold(tmp_path / "run", family)
    write_hub_folder(held.adapter, tmp_path / "hub", "fp32")
    found, expected = (load_network(open_weights(source)) for source in (tmp_path / "hub", held.adapter))
    for (name, value), (_, other) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(value, other), name
    if family == "movie_post_production":
        pipeline = MoviePostPipeline.from_adapter(tmp_path / "hub")
        assert torch.equal(next(pipeline.transformer.parameters()), next(expected.parameters()))


def test_the_same_content_is_the_same_bytes(tmp_path, adapter, samples):
    for name in ("a", "b"):
        write_hub_folder(adapter, tmp_path / name, samples=samples)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert set(bytes_of(tmp_path / "a")) == {
        "README.md",
        "adapter.safetensors",
        "recipe.yaml",
        "stagecoach.json",
        "samples/a.png",
        "samples/b-c.png",
    }


def test_no_secret_and_no_place_of_this_machine_goes_up(tmp_path, adapter, samples, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "0123456789abcdef")
    result = tmp_path / "result.json"
    value = {"mean": 31.25, "low": 30.0, "high": 32.5, "n": 9, "unit": "dB", "better": "higher"}
    metrics = {"psnr": value | {"of": "/home/anna/out"}}
    result.write_text(json.dumps({"samples": 9, "generated": ["/home/anna/out"], "metrics": metrics}))
    write_hub_folder(adapter, tmp_path / "hub", samples=samples, metrics=result)
    held = bytes_of(tmp_path / "hub")
    words = ["anna", "hunter22", "store.internal", SECRET, "/home", str(tmp_path), "secret"]
    for name, content in held.items():
        assert not [word for word in words if word.encode() in content], name
    recipe = yaml.safe_load(held["recipe.yaml"])
    assert "run" not in recipe
    assert (recipe["ds_config"], recipe["family"]) == ("own.json", "toy")
    assert json.loads(held["stagecoach.json"])["evaluated_samples"] == 9
    assert "| psnr | 31.25 | 30 .. 32.5 | 9 | dB | higher |" in held["README.md"].decode()


def test_the_card_says_where_it_comes_from_and_takes_the_runs_last_validation(tmp_path, adapter):
    write_hub_folder(adapter, tmp_path / "hub")
    about, card = json.loads((tmp_path / "hub" / "stagecoach.json").read_text()), open_weights(adapter).card
    assert about["sha256"]["adapter"] == card.sha256
    assert about["sha256"]["base"] == card.base
    assert about["metrics"] == {"val_loss": {"mean": 0.25}}
    text = (tmp_path / "hub" / "README.md").read_text()
    assert f"| base | `{card.base}` |" in text
    assert "No published weights are known" in text
    assert front(tmp_path / "hub") == {"library_name": "stagecoach", "tags": ["diffusion", "adapter", "toy"]}


def test_the_card_carries_the_strictest_licence_of_the_parts(tmp_path, monkeypatch, adapter):
    family = get_family("toy")
    parts = (Part("a", "me/base", APACHE, base=True), Part("b", "them/other", FLUX_DEV))
    monkeypatch.setattr(type(family), "parts", {"tiny": parts}, raising=False)
    write_hub_folder(adapter, tmp_path / "hub")
    found = front(tmp_path / "hub")
    assert (found["base_model"], found["base_model_relation"], found["license"]) == ("me/base", "adapter", "other")
    assert found["license_name"] == "flux-1-dev-non-commercial-license"
    assert found["license_link"].startswith("https://huggingface.co/black-forest-labs/")
    assert "| b | them/other | flux-1-dev-non-commercial-license |" in (tmp_path / "hub" / "README.md").read_text()


@pytest.mark.parametrize(
    ("family", "size", "licence"),
    [
        ("movie_post_production", "flux-dev", FLUX_DEV),
        ("fantasy_world", "wan2.1-1.3b", APACHE),
        ("fantasy_world", "wan2.1-1.3b-i2v", APACHE),
        ("fantasy_world", "wan2.1-14b", APACHE),
        ("dance_with_music", "champ-sd15", INSIGHTFACE),
        ("dance_with_music", "svd-xt", INSIGHTFACE),
    ],
)
def test_every_published_size_states_its_parts(family, size, licence):
    parts = get_family(family).parts[size]
    assert strictest(parts) == licence
    assert [part for part in parts if part.base]
    if size == "svd-xt":
        assert strictest(part for part in parts if part.base) == SVD


def test_a_place_keeps_its_last_part_and_other_words_stay():
    assert without_places({"a": ["/data/x/set", "~/w", "s3://bucket/k/set/", "C:\\x\\y", "../z/q"]}) == {
        "a": ["set", "w", "set", "y", "q"]
    }
    same = ["val/loss", "warmup: 3", "a", "", "16:9", "blocks.*.attn", 3, None]
    assert without_places(same) == same


def test_pushing_lists_first_and_uploads_with_yes(tmp_path, adapter, monkeypatch, capfd):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    words = ("export", "--adapter", adapter, "--output", tmp_path / "hub", "--to", "hub-folder", "--push", "me/a")
    with hub() as (url, asked, files):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        assert run_stagecoach(*words)[1] == 0
        assert not asked
        said = capfd.readouterr().out
        assert "adapter.safetensors" in said
        assert "me/a: nothing was uploaded; --yes uploads it" in said
        assert run_stagecoach(*words, "--yes")[1] == 0
        (made,) = [json.loads(body) for _, path, body in asked if path == "/api/repos/create"]
        assert made["visibility"] == "private"
        assert files == bytes_of(tmp_path / "hub")
        assert "me/a: uploaded, http://127.0.0.1" in capfd.readouterr().out


def test_a_hub_that_refuses_or_is_off_line_is_one_sentence(tmp_path, adapter, monkeypatch):
    write_hub_folder(adapter, tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"not uploaded to me/a \(.*\); the folder is complete"):
        push(tmp_path / "hub", "me/a")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with hub(refuse=403) as (url, _, files):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        with pytest.raises(ValueError, match=r"not uploaded to me/a \(403 Forbidden.*hf auth login") as raised:
            push(tmp_path / "hub", "me/a")
        assert SECRET not in str(raised.value)
        assert not files


def test_what_cannot_be_shown_or_replaced_is_named(tmp_path, adapter, samples, caplog):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match=r"mine: holds something else than adapter\.safetensors"):
        write_hub_folder(adapter, tmp_path / "mine")
    (tmp_path / "result.json").write_text('{"metrics": {"psnr": {}}}')
    with pytest.raises(ValueError, match=r"result\.json: no result of an evaluation"):
        write_hub_folder(adapter, tmp_path / "hub", metrics=tmp_path / "result.json")
    (samples / "d.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"d\.png: not readable as a picture"):
        write_hub_folder(adapter, tmp_path / "hub", samples=samples)
    with pytest.raises(ValueError, match=r"mine: holds no picture"):
        write_hub_folder(adapter, tmp_path / "hub", samples=tmp_path / "mine")
    assert not (tmp_path / "hub").exists()
    (samples / "d.png").unlink()
    for number in range(24):
        Image.new("RGB", (2, 2)).save(samples / f"z{number}.png")
    with caplog.at_level(logging.WARNING):
        write_hub_folder(adapter, tmp_path / "hub", samples=samples)
    assert "holds 26 pictures, of which the first 24" in caplog.text
    assert len(list((tmp_path / "hub" / "samples").iterdir())) == 24
