"""The command writes a component, prints how far it is from PyTorch, and names the components that there are."""

import json

import pytest

from stagecoach.trainer.export import export_onnx
from tests.commands import run_stagecoach
from tests.models.weights.held import hold


def test_a_component_of_an_adapter_is_written_with_its_differences(tmp_path, capfd):
    held = hold(tmp_path / "run", "dance_with_music")
    words = ("export", "--adapter", held.adapter, "--to", "onnx", "--component", "music_to_pose")
    file = tmp_path / "m2p.onnx"
    assert run_stagecoach(*words, "--output", file)[1] == 0
    said = capfd.readouterr().out
    assert f"{file}: dance_with_music tiny stage {held.stage} in fp32" in said
    assert "  face: at most " in said
    assert run_stagecoach(*words, "--output", file, "--json")[1] == 0
    result = json.loads(capfd.readouterr().out)
    assert result["bytes"] == file.stat().st_size
    assert max(one["relative"] for one in result["differences"].values()) < 1e-4
    assert result["metadata"]["adapter_sha256"] == json.loads((held.adapter / "adapter.json").read_text())["sha256"]
    with pytest.raises(ValueError, match=r"--component unet: .* none of that name .*, expected one of music_to_pose, "):
        export_onnx(held.adapter, tmp_path / "a.onnx", "unet")
    with pytest.raises(ValueError, match=r"a\.bin: expected a name that ends in \.onnx"):
        export_onnx(held.adapter, tmp_path / "a.bin", "music_to_pose")
