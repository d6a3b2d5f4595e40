"""Acceptance test 11 of the design page: ONNX with free T, and int8."""

import onnxruntime
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from stagecoach.models.dance_with_music.config import SIZES
from stagecoach.models.dance_with_music.guidance.types import GuidanceBank
from stagecoach.models.dance_with_music.music_to_pose.heatmaps import coordinates
from stagecoach.models.dance_with_music.music_to_pose.model import MusicToPose
from stagecoach.models.dance_with_music.music_to_pose.onnx_export import export_guidance, export_m2p

TINY = SIZES["tiny"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


def run(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    return {out.name: torch.from_numpy(x) for out, x in zip(session.get_outputs(), found, strict=True)}


def inputs(b, t):
    return {"music": torch.randn(b, t, 35), "ref": torch.randn(b, 64), "pose0": torch.rand(b, 134, 3)}


def make(head):
    torch.manual_seed(0)
    return MusicToPose(TINY.m2p.model_copy(update={"head": head}), 64)


@pytest.mark.parametrize("head", ["factorised", "full2d"])
def test_music_to_pose_gives_the_same_for_any_length(tmp_path, head):
    model, path = make(head), tmp_path / "m2p.onnx"
    export_m2p(model, path)
    for b, t in ((1, 5), (2, 33)):
        given = inputs(b, t)
        with torch.no_grad():
            expected = model(**given)
        found = run(path, **given)
        assert list(found) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


def test_music_to_pose_in_int8_stays_within_half_a_pixel(tmp_path):
    model = make("factorised")
    export_m2p(model, tmp_path / "m2p.onnx")
    quantize_dynamic(tmp_path / "m2p.onnx", tmp_path / "int8.onnx", weight_type=QuantType.QInt8)
    given = inputs(2, 24)
    with torch.no_grad():
        expected = coordinates(model(**given), TINY.m2p.temperature)
    found = coordinates(run(tmp_path / "int8.onnx", **given), TINY.m2p.temperature)
    assert (found - expected).abs().max() * TINY.m2p.resolution < 0.5
    assert not torch.equal(found, expected)
    assert (tmp_path / "int8.onnx").stat().st_size < 0.4 * (tmp_path / "m2p.onnx").stat().st_size


@pytest.mark.parametrize(
    ("name", "shape"), [("pose", (134, 8, 8)), ("skeleton", (3, 64, 64)), ("music", (35,)), ("pose_net", (3, 64, 64))]
)
def test_guidance_encoders_give_the_same_for_any_number_of_frames(tmp_path, name, shape):
    torch.manual_seed(0)
    config = TINY.model_copy(update={"guidance": TINY.guidance.model_copy(update={"types": (name,)})})
    encoder = GuidanceBank(config).encoders[name]
    with torch.no_grad():
        for parameter in encoder.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    export_guidance(encoder, torch.zeros(2, *shape), tmp_path / "guidance.onnx")
    condition = torch.randn(5, *shape)
    with torch.no_grad():
        expected = encoder(condition)
    torch.testing.assert_close(
        run(tmp_path / "guidance.onnx", condition=condition)["guidance"], expected, atol=1e-4, rtol=1e-3
    )
