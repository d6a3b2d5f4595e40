"""An exported file holds the adapter's numbers and says what it is; nothing damaged gets out."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from stagecoach.data.files import DamagedError
from stagecoach.models import FAMILIES
from stagecoach.trainer.export import export_adapter
from tests.commands import run_stagecoach
from tests.toy import ToyConfig
from tests.trainer.finished import damage, finish_stage_one


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", "tests.toy:ToyFamily")


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_file_holds_every_tensor_in_the_dtype_asked_for(tmp_path, dtype, torch_dtype):
    adapter, tensors = finish_stage_one(tmp_path / "run")
    export_adapter(adapter, tmp_path / "out" / "toy.safetensors", dtype)
    found = load_file(tmp_path / "out" / "toy.safetensors")
    assert found.keys() == tensors.keys()
    assert all(found[name].equal(tensors[name].to(torch_dtype)) for name in tensors)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["toy.safetensors"]


def test_the_metadata_says_what_it_is_and_what_it_came_from(tmp_path, capfd):
    adapter, _ = finish_stage_one(tmp_path / "run")
    file = tmp_path / "toy.safetensors"
    assert run_stagecoach("export", "--adapter", adapter, "--output", file, "--json")[1] == 0
    printed = json.loads(capfd.readouterr().out)
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    assert metadata == printed["metadata"]
    card = json.loads((adapter / "adapter.json").read_text())
    assert (metadata["family"], metadata["size"], metadata["stage"]) == ("toy", "tiny", "1")
    assert json.loads(metadata["config"]) == ToyConfig().model_dump(mode="json")
    assert (metadata["adapter_sha256"], metadata["recipe_sha256"]) == (card["sha256"], card["recipe"])


def test_three_exports_of_one_adapter_are_the_same_bytes(tmp_path):
    adapter, _ = finish_stage_one(tmp_path / "run")
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file in files:
        export_adapter(adapter, file)
    assert len({file.read_bytes() for file in files}) == 1


def test_a_damaged_adapter_is_refused_and_nothing_is_written(tmp_path):
    adapter, _ = finish_stage_one(tmp_path / "run")
    damage(adapter / "model.safetensors")
    with pytest.raises(DamagedError, match=r"model\.safetensors: content differs"):
        export_adapter(adapter, tmp_path / "toy.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))
