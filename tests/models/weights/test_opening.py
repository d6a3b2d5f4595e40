"""Adapter, exported file, checkpoint and base open through one strict function; what is wrong is named."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from stagecoach.data.files import DamagedError, seal_directory
from stagecoach.data.reading import read_json
from stagecoach.data.weight_files import AVERAGE, CARD, WEIGHTS
from stagecoach.models import FAMILIES
from stagecoach.models.weights import AdapterCard, load_network, open_weights
from stagecoach.trainer.adapter import write_adapter
from stagecoach.trainer.export import export_adapter
from tests.models.weights.held import hold
from tests.toy import ToyConfig


@pytest.fixture(scope="session", params=sorted({"toy", *FAMILIES}))
def held(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "toy", "tests.toy:ToyFamily")
        yield hold(tmp_path_factory.mktemp(request.param) / "run", request.param)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", "tests.toy:ToyFamily")
    return hold(tmp_path / "run", "toy")


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_adapter_exported_file_and_checkpoint_give_equal_tensors_and_one_identity(held, tmp_path):
    file = tmp_path / "adapter.safetensors"
    from_checkpoint = tmp_path / "checkpoint.safetensors"
    export_adapter(held.adapter, file, "fp32")
    export_adapter(held.checkpoint, from_checkpoint, "fp32")
    opened = [open_weights(source) for source in (held.adapter, file, held.checkpoint, from_checkpoint)]
    assert [one.kind for one in opened] == ["adapter", "file", "checkpoint", "file"]
    assert len({one.sha256 for one in opened}) == 1
    assert all(same(one.tensors(), held.tensors) for one in opened)
    assert len({(one.card.family, one.size, one.stage, one.card.base, str(one.config)) for one in opened}) == 1
    average = open_weights(held.checkpoint, "ema").tensors()
    assert same(average, held.tensors | held.average)
    assert same(open_weights(held.checkpoint / AVERAGE).tensors(), average)


def test_all_of_them_make_the_same_network(held, tmp_path):
    export_adapter(held.adapter, tmp_path / "a.safetensors", "fp32")
    sources = (held.adapter, tmp_path / "a.safetensors", held.checkpoint)
    states = [dict(load_network(open_weights(source)).named_parameters()) for source in sources]
    assert all(torch.equal(states[0][name], value) for name, value in held.tensors.items())
    assert all(same(state, states[0]) for state in states[1:])
    assert not any(parameter.requires_grad for parameter in states[0].values())


def test_the_base_is_the_network_at_its_initial_values(held):
    card = open_weights(held.adapter).card
    weights = open_weights(None, family=card.family, size=card.size)
    assert (weights.kind, weights.stage, weights.tensors()) == ("base", card.stage, {})
    network, trained = load_network(weights), load_network(open_weights(held.adapter))
    for (name, value), (_, other) in zip(network.named_parameters(), trained.named_parameters(), strict=True):
        assert torch.equal(value, other) == (name not in held.tensors), name


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_file_in_sixteen_bits_is_taken_and_says_so(held, tmp_path, dtype):
    export_adapter(held.adapter, tmp_path / "a.safetensors", dtype)
    weights = open_weights(tmp_path / "a.safetensors")
    assert weights.dtypes == (dtype,)
    assert f"stored in {dtype}" in weights.describe()
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert same(weights.tensors(), {name: value.to(kind).float() for name, value in held.tensors.items()})
    assert weights.sha256 != open_weights(held.adapter).sha256


def forms(held, tmp_path) -> dict:
    export_adapter(held.adapter, tmp_path / "a.safetensors")
    return {"adapter": held.adapter, "file": tmp_path / "a.safetensors", "checkpoint": held.checkpoint}


def test_another_family_size_or_stage_is_named_in_each_form(toy, tmp_path):
    for kind, source in forms(toy, tmp_path).items():
        for wanted, words in (
            ({"family": "other"}, f"{kind} of family toy, expected other"),
            ({"size": "huge"}, f"{kind} of size tiny, expected huge"),
            ({"stages": [1]}, f"{kind} of stage 2, expected 1"),
        ):
            with pytest.raises(ValueError, match=words):
                open_weights(source, **wanted)
        assert open_weights(source, family="toy", size="tiny", stages=[1, 2]).stage == 2


def test_another_base_is_named_by_both_hashes(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", "tests.toy:ToyFamily")
    held = hold(tmp_path / "run", "toy", base="another-base")
    for kind, source in forms(held, tmp_path).items():
        with pytest.raises(ValueError, match=f"{kind} of base weights another-base, expected toy-base"):
            load_network(open_weights(source))


def edited(folder, change):
    """An adapter or checkpoint whose card says something else, sealed again."""
    card = change(read_json(folder / CARD, AdapterCard))
    (folder / CARD).write_text(json.dumps(asdict(card)))
    (folder / "manifest.json").unlink()
    seal_directory(folder)


def test_tensors_that_are_missing_left_over_or_of_another_shape_are_named(toy):
    weights = load_file(toy.checkpoint / WEIGHTS)
    for change, words in (
        ({"layers.0.second.up.bias": None}, r"missing 1 \(layers\.0\.second\.up\.bias\)"),
        ({"layers.7.other": torch.zeros(1)}, r"left over 1 \(layers\.7\.other\)"),
        ({"layers.0.second.up.bias": torch.zeros(3)}, r"1 of another shape, first layers\.0\.second\.up\.bias \[3\]"),
    ):
        changed = {name: value for name, value in (weights | change).items() if value is not None}
        save_file(changed, toy.checkpoint / WEIGHTS)
        edited(toy.checkpoint, lambda card: card)
        with pytest.raises(ValueError, match=words):
            open_weights(toy.checkpoint)


def test_a_stage_that_the_family_does_not_have_is_named(toy):
    edited(toy.adapter, lambda card: replace(card, stage=3))
    with pytest.raises(ValueError, match=r"of stage 3, expected one that family 'toy' has, \[1, 2\]"):
        open_weights(toy.adapter)


def test_a_config_that_the_family_cannot_read_is_named(toy):
    edited(toy.adapter, lambda card: replace(card, config={"depth": 3}))
    with pytest.raises(ValueError, match=r"stage2/adapter: its config is none of family 'toy' \(depth"):
        open_weights(toy.adapter)


def test_what_is_damaged_is_not_opened(toy, tmp_path):
    for source in forms(toy, tmp_path).values():
        file = source if source.is_file() else source / WEIGHTS
        content = bytearray(file.read_bytes())
        content[-3] ^= 0xFF
        file.write_bytes(content)
        with pytest.raises(DamagedError, match=file.name):
            open_weights(source)


def test_a_file_that_does_not_say_what_it_is_is_refused_with_what_would_be_taken(toy, tmp_path):
    for path, words in (
        (tmp_path / "none", "there is nothing"),
        (toy.adapter / WEIGHTS, r"metadata lack .* give the adapter's or the checkpoint's folder"),
        (toy.run, "no adapter and no checkpoint, expected a folder with adapter.json"),
        (toy.adapter / CARD, r"expected a file ending in \.safetensors"),
    ):
        with pytest.raises(ValueError, match=words):
            open_weights(path)


def test_lora_in_diffusers_layout_is_refused_by_name(tmp_path):
    held = hold(tmp_path / "run", "stable_diffusion_3")
    export_adapter(held.adapter, tmp_path / "lora.safetensors", "fp32", "diffusers-lora")
    with pytest.raises(ValueError, match=r"LoRA alone, in the layout of diffusers-lora, .*--to adapter"):
        open_weights(tmp_path / "lora.safetensors")


def test_an_average_that_is_not_there_is_named(toy):
    with pytest.raises(ValueError, match="holds raw weights, expected the average"):
        open_weights(toy.adapter, "ema")
    (toy.checkpoint / AVERAGE).unlink()
    edited(toy.checkpoint, lambda card: card)
    with pytest.raises(ValueError, match=r"holds no ema\.safetensors"):
        open_weights(toy.checkpoint, "ema")


def test_a_checkpoints_predecessor_is_found_by_its_hash_or_asked_for(tmp_path, monkeypatch):
    """Where all of stage 1 trains again in stage 2 none is needed; here stage 2 keeps it as it was."""
    monkeypatch.setitem(FAMILIES, "toy", "tests.toy:ToyFamily")
    held = hold(tmp_path / "run", "toy", config=ToyConfig(keep_first=True))
    first = held.run / "stage1" / "adapter"
    assert same(open_weights(held.checkpoint).tensors(), held.tensors)
    aside = held.run / "earlier" / "2026-01-01_000000" / "stage1" / "adapter"
    aside.parent.mkdir(parents=True)
    first.rename(aside)
    assert same(open_weights(held.checkpoint).tensors(), held.tensors)
    aside.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"12 \(layers\.0\.first.*which was not found \(.*stage2/adapter is another"):
        open_weights(held.checkpoint)
    assert same(open_weights(held.checkpoint, predecessor=tmp_path / "elsewhere").tensors(), held.tensors)
    with pytest.raises(ValueError, match=r"which was not found \(.*is another"):
        open_weights(held.checkpoint, predecessor=held.adapter)
    with pytest.raises(ValueError, match="no checkpoint, and a predecessor"):
        open_weights(held.adapter, predecessor=held.adapter)
    shutil.copytree(held.adapter, first)
    with pytest.raises(ValueError, match=r"which was not found \(.*stage1/adapter is another"):
        open_weights(held.checkpoint)


def test_a_checkpoint_of_an_earlier_version_is_named(toy):
    (toy.checkpoint / CARD).unlink()
    (toy.checkpoint / "manifest.json").unlink()
    seal_directory(toy.checkpoint)
    with pytest.raises(ValueError, match=r"holds no adapter\.json, so an earlier version wrote it"):
        open_weights(toy.checkpoint)


def test_fp16_is_refused_where_it_cannot_hold_a_value_and_says_what_becomes_zero(toy, tmp_path, caplog):
    tensors = toy.tensors | {"layers.0.first.up.bias": torch.full((32,), 1e-9)}
    card = read_json(toy.adapter / CARD, AdapterCard)
    write_adapter(toy.adapter, tensors, card)
    export_adapter(toy.adapter, tmp_path / "a.safetensors", "fp16")
    assert "32 of" in caplog.text
    assert "became 0" in caplog.text
    tensors["layers.0.first.up.bias"][3] = 7e4
    write_adapter(toy.adapter, tensors, card)
    with pytest.raises(ValueError, match=r"layers\.0\.first\.up\.bias holds 70000, expected at most 65504"):
        export_adapter(toy.adapter, tmp_path / "b.safetensors", "fp16")
    assert not (tmp_path / "b.safetensors").exists()
