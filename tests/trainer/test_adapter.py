"""An adapter in several files, one per part of the family."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stagecoach import __version__
from stagecoach.data.files import DamagedError
from stagecoach.models.weights.card import AdapterCard, adapter_files, read_card, read_tensors
from stagecoach.models.weights.network import load_tensors
from stagecoach.trainer.adapter import write_adapter

CARD = AdapterCard(
    family="toy",
    size="tiny",
    stage=1,
    stage_name="one",
    steps=3,
    recipe="r",
    base="b",
    predecessor=None,
    export_weights="raw",
    config={},
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.ModuleDict({"first": nn.Linear(2, 3), "second": nn.Linear(3, 2)})


@pytest.fixture
def adapter(tmp_path, network):
    tensors = {name: p.detach().clone() for name, p in network.named_parameters()}
    write_adapter(tmp_path / "adapter", tensors, CARD, lambda name: name.split(".")[0])
    return tmp_path / "adapter"


def files_of(adapter):
    return {name: file for file in adapter_files(adapter) for name in load_file(file)}


def test_each_part_has_its_file_and_together_they_are_the_adapter(adapter, network):
    assert sorted(p.name for p in adapter.glob("*.safetensors")) == ["first.safetensors", "second.safetensors"]
    assert set(load_file(adapter / "first.safetensors")) == {"first.weight", "first.bias"}
    found = read_tensors(adapter)
    assert set(found) == {name for name, _ in network.named_parameters()}
    assert read_card(adapter).parameters == 9 + 8
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    load_tensors(files_of(adapter), network, set(found), adapter)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_part_that_is_not_there_is_named_by_its_tensors(adapter, network):
    (adapter / "second.safetensors").unlink()
    with pytest.raises(ValueError, match=r"missing 2 \(second.bias, second.weight\)"):
        load_tensors(files_of(adapter), network, {name for name, _ in network.named_parameters()}, adapter)
    with pytest.raises(DamagedError):
        read_card(adapter)


def test_a_replaced_part_is_found_by_its_hash(adapter):
    file = adapter / "second.safetensors"
    tensors = load_file(file)
    tensors["second.weight"][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt", "family": "toy", "stage": "1"})
    with pytest.raises(DamagedError):
        read_card(adapter)


def test_the_card_names_the_version_that_wrote_it(adapter):
    assert read_card(adapter).version == __version__


def test_an_adapter_that_is_written_again_is_left_as_it_is(adapter, network):
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in adapter.iterdir()}
    tensors = {name: p.detach().clone() for name, p in network.named_parameters()}
    first = read_card(adapter)
    assert write_adapter(adapter, tensors, CARD, lambda name: name.split(".")[0]) == first
    assert {path.name: (path.stat().st_ino, path.read_bytes()) for path in adapter.iterdir()} == before
    tensors["first.bias"] += 1
    assert write_adapter(adapter, tensors, CARD, lambda name: name.split(".")[0]).sha256 != first.sha256
    assert read_card(adapter).sha256 != first.sha256


def test_a_damaged_adapter_is_written_again_with_the_same_bytes_and_identity(adapter, network):
    first, content = read_card(adapter), (adapter / "first.safetensors").read_bytes()
    (adapter / "first.safetensors").write_bytes(content[:-1])
    tensors = {name: p.detach().clone() for name, p in network.named_parameters()}
    assert write_adapter(adapter, tensors, CARD, lambda name: name.split(".")[0]) == first
    assert (adapter / "first.safetensors").read_bytes() == content


def test_the_identity_does_not_depend_on_the_files(tmp_path, network):
    tensors = {name: p.detach().clone() for name, p in network.named_parameters()}
    one = write_adapter(tmp_path / "one", tensors, CARD)
    assert one.sha256 == write_adapter(tmp_path / "two", tensors, CARD, lambda name: name.split(".")[0]).sha256


def test_weights_that_are_a_link_out_of_the_adapter_are_refused(adapter):
    file = adapter / "second.safetensors"
    file.rename(adapter.parent / "elsewhere.safetensors")
    file.symlink_to(adapter.parent / "elsewhere.safetensors")
    with pytest.raises(DamagedError, match="leads out of its folder"):
        read_card(adapter)
