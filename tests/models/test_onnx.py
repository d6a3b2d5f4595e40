"""Components as ONNX files compute what PyTorch does, at other lengths too; what does not is not written."""

import onnx
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, AutoencoderKLWan
from torch import nn

from stagecoach.data.encoding.latent_encoders import wan_statistics
from stagecoach.models import get_family
from stagecoach.models.common import onnx_export
from stagecoach.models.common.decoder import vae_arguments
from stagecoach.models.common.onnx_export import OnnxPart, OnnxRequest, write_onnx
from stagecoach.models.dance_with_music.config import SIZES
from stagecoach.models.dance_with_music.guidance.types import GuidanceBank
from stagecoach.models.dance_with_music.music_to_pose.heatmaps import coordinates
from stagecoach.models.dance_with_music.music_to_pose.model import MusicToPose
from stagecoach.models.dance_with_music.onnx_components import guidance_part, music_to_pose_part
from stagecoach.models.weights import load_network, open_weights
from tests.models.weights.held import hold

TINY = SIZES["tiny"]
ABOUT = {"family": "dance_with_music", "component": "x"}


def run(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    return {out.name: torch.from_numpy(x) for out, x in zip(session.get_outputs(), found, strict=True)}


@pytest.fixture(scope="module")
def dance(tmp_path_factory):
    return open_weights(hold(tmp_path_factory.mktemp("dance") / "run", "dance_with_music").adapter)


def component(weights, name, **more):
    return weights.family.onnx_components(weights.config, weights.stage)[name](OnnxRequest(weights, **more))


@torch.no_grad()
@pytest.mark.parametrize("head", ["factorised", "full2d"])
def test_music_to_pose_gives_the_same_for_any_length(tmp_path, head):
    torch.manual_seed(0)
    model, path = MusicToPose(TINY.m2p.model_copy(update={"head": head}), 64), tmp_path / "m2p.onnx"
    found = write_onnx(music_to_pose_part(model), path, ABOUT)
    assert max(one.relative for one in found.values()) < 1e-5
    given = {"music": torch.randn(2, 33, 35), "ref": torch.randn(2, 64), "pose0": torch.rand(2, 134, 3)}
    expected, values = model(**given), run(path, **given)
    assert list(values) == list(expected) == list(found)
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, atol=1e-4, rtol=1e-4)
    assert [file.name for file in tmp_path.iterdir()] == ["m2p.onnx"]


@torch.no_grad()
def test_music_to_pose_in_int8_stays_within_half_a_pixel_and_is_smaller(tmp_path):
    torch.manual_seed(0)
    part = music_to_pose_part(MusicToPose(TINY.m2p, 64))
    for name, int8 in (("m2p", False), ("int8", True)):
        found = write_onnx(part, tmp_path / f"{name}.onnx", ABOUT, int8)
    assert 0 < max(one.relative for one in found.values()) < 0.05
    given = {"music": torch.randn(2, 24, 35), "ref": torch.randn(2, 64), "pose0": torch.rand(2, 134, 3)}
    exact, small = (
        coordinates(run(tmp_path / f"{name}.onnx", **given), TINY.m2p.temperature) for name in ("m2p", "int8")
    )
    assert 0 < (exact - small).abs().max() * TINY.m2p.resolution < 0.5
    assert (tmp_path / "int8.onnx").stat().st_size < 0.4 * (tmp_path / "m2p.onnx").stat().st_size


@torch.no_grad()
def test_music_to_pose_of_an_adapter_needs_no_base_and_is_that_of_its_network(tmp_path, dance):
    write_onnx(component(dance, "music_to_pose", base="no such folder"), tmp_path / "m2p.onnx", ABOUT)
    given = {"music": torch.randn(2, 24, 35), "ref": torch.randn(2, 64), "pose0": torch.rand(2, 134, 3)}
    expected = load_network(open_weights(dance.source)).m2p(**given)
    torch.testing.assert_close(run(tmp_path / "m2p.onnx", **given)["conf"], expected["conf"], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "shape"), [("pose", (134, 8, 8)), ("skeleton", (3, 64, 64)), ("music", (35,)), ("pose_net", (3, 64, 64))]
)
def test_guidance_encoders_give_the_same_for_any_number_of_frames(tmp_path, name, shape):
    torch.manual_seed(0)
    config = TINY.model_copy(update={"guidance": TINY.guidance.model_copy(update={"types": (name,)})})
    encoder = GuidanceBank(config).encoders[name]
    for parameter in encoder.parameters():
        if not parameter.any():
            parameter.normal_(std=0.05)
    found = write_onnx(guidance_part(encoder, name, config), tmp_path / "guidance.onnx", ABOUT)
    assert 0 < found["guidance"].relative < 1e-4
    condition = torch.randn(5, *shape)
    values = run(tmp_path / "guidance.onnx", condition=condition)["guidance"]
    torch.testing.assert_close(values, encoder(condition), atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_the_denoiser_of_champ_and_its_reference_net_give_what_the_network_does(tmp_path, dance):
    """Through both files, against ``DanceNetwork.denoise``; without a reference too."""
    errors = {
        name: write_onnx(component(dance, name, frames=6), tmp_path / f"{name}.onnx", ABOUT)
        for name in ("reference_net", "denoiser")
    }
    assert errors["denoiser"]["v"].relative < 1e-4
    network, g = load_network(dance), torch.Generator().manual_seed(3)
    for given in (True, False):
        conditions = {
            "references": torch.randn(2, 1, 4, 8, 8, generator=g),
            "reference_given": torch.full((2,), given),
            "embedding": torch.randn(2, 1, 64, generator=g),
            "embedding_given": torch.full((2,), given),
            "face": torch.randn(2, 512, generator=g),
            "face_given": torch.full((2,), given),
            "guidance": {"pose": torch.rand(2, 6, 134, 8, 8, generator=g)},
            "guidance_given": torch.full((2,), True),
            "condition_scale": 1.0,
            "identity_scale": 1.0,
        }
        x, level = torch.randn(2, 6, 4, 8, 8, generator=g), torch.tensor([900.0, 20.0])
        expected = network.denoise(x, level, conditions)
        embedding = conditions["embedding"]
        bank = run(tmp_path / "reference_net.onnx", references=conditions["references"], embedding=embedding)
        found = run(
            tmp_path / "denoiser.onnx",
            x=x,
            level=level,
            embedding=embedding[:, 0],
            face=network.face(conditions),
            guidance=network.guide(conditions, (8, 8)),
            given=conditions["reference_given"],
            **bank,
        )["v"]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    """By class, a tiny VAE of random weights in its folder."""
    folder = tmp_path_factory.mktemp("vae")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        flux = vae_arguments(16, (8, 8, 8, 8), 1, 4, shift_factor=0.1, scaling_factor=0.36, use_post_quant_conv=False)
        made = {
            "movie_post_production": AutoencoderKL(**flux),
            "dance_with_music": AutoencoderKLTemporalDecoder(
                block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=1
            ),
            "fantasy_world": AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        }
    for name, vae in made.items():
        vae.save_pretrained(folder / name)
    return folder, made


@torch.no_grad()
@pytest.mark.parametrize("family", ["movie_post_production", "dance_with_music", "fantasy_world"])
def test_a_vaes_decoder_gives_the_same_pixels_for_any_size(tmp_path, vaes, family):
    folder, made = vaes
    vae, weights = made[family], open_weights(None, family=family, size="tiny")
    found = write_onnx(component(weights, "vae_decoder", vae=folder / family), tmp_path / "vae.onnx", ABOUT)
    assert found["pixels"].relative < 1e-4
    if family == "fantasy_world":
        latents = torch.randn(1, 16, 3, 4, 6)
        mean, std = wan_statistics(vae)
        expected = vae.decode(latents * std + mean).sample
        assert expected.shape[2] == weights.config.clip.frames
    else:
        latents = torch.randn(3, vae.config.latent_channels, 4, 6)
        z = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0)
        more = {"num_frames": 1} if family == "dance_with_music" else {}
        expected = vae.decode(z, **more).sample
    pixels = run(tmp_path / "vae.onnx", latents=latents)["pixels"]
    torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=1e-3)


def test_a_decoder_needs_a_folder_and_frames_that_wan_can_give(vaes):
    weights = open_weights(None, family="fantasy_world", size="tiny")
    with pytest.raises(ValueError, match=r"--vae is not given"):
        component(weights, "vae_decoder")
    with pytest.raises(ValueError, match=r"--frames 10, expected 4 \(f - 1\) \+ 1"):
        component(weights, "vae_decoder", vae=vaes[0] / "fantasy_world", frames=10)
    with pytest.raises(ValueError, match=r"_class_name is 'AutoencoderKLWan', expected AutoencoderKL"):
        component(
            open_weights(None, family="movie_post_production", size="tiny"),
            "vae_decoder",
            vae=vaes[0] / "fantasy_world",
        )


def test_the_same_component_is_the_same_bytes_and_says_what_it_is(tmp_path, dance):
    for name in ("a", "b"):
        write_onnx(component(dance, "music_to_pose"), tmp_path / name / "m2p.onnx", ABOUT, int8=True)
    assert len({(tmp_path / name / "m2p.onnx").read_bytes() for name in ("a", "b")}) == 1
    assert {prop.key: prop.value for prop in onnx.load(tmp_path / "a/m2p.onnx").metadata_props} == ABOUT


class Scaled(nn.Module):
    """Depends on how it is called, which a trace cannot see."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.layer, self.scale, self.calls = nn.Linear(8, 8), scale, 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * (self.scale if self.calls > 1 else 1.0)


def part_of(module):
    return OnnxPart(module, lambda which: {"x": torch.randn(2 + which, 8)}, ("y",), {"x": {0: "N"}, "y": {0: "N"}})


def test_what_differs_from_pytorch_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"a\.onnx: y differs from PyTorch's by .*, expected at most 0\.1%; no file"):
        write_onnx(part_of(Scaled(1.01)), tmp_path / "a.onnx", ABOUT)
    assert not list(tmp_path.iterdir())
    write_onnx(part_of(Scaled(1.0)), tmp_path / "a.onnx", ABOUT)


def test_int8_needs_a_product_and_keeps_its_bound(tmp_path, monkeypatch):
    convolution = OnnxPart(
        nn.Conv2d(3, 3, 3), lambda which: {"x": torch.randn(1, 3, 8, 8)}, ("y",), {"x": {0: "N"}, "y": {0: "N"}}
    )
    with pytest.raises(ValueError, match=r"no product with a matrix of weights"):
        write_onnx(convolution, tmp_path / "a.onnx", ABOUT, int8=True)
    monkeypatch.setattr(onnx_export, "INT8_BOUND", 1e-6)
    with pytest.raises(ValueError, match=r"y differs from PyTorch's"):
        write_onnx(part_of(nn.Sequential(nn.Linear(8, 8))), tmp_path / "a.onnx", ABOUT, int8=True)
    assert not list(tmp_path.iterdir())


def test_weights_beyond_a_file_stand_next_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "WHOLE", 1000)
    module = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
    part = OnnxPart(module, lambda which: {"x": torch.randn(2 + which, 64)}, ("y",), {"x": {0: "N"}, "y": {0: "N"}})
    for int8 in (False, True):
        write_onnx(part, tmp_path / "a.onnx", ABOUT, int8)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
        assert (tmp_path / "a.onnx").stat().st_size < (tmp_path / "a.onnx.data").stat().st_size
        x = torch.randn(3, 64)
        torch.testing.assert_close(run(tmp_path / "a.onnx", x=x)["y"], module(x).detach(), atol=0.05, rtol=0.05)


def test_components_are_those_of_the_stage(dance):
    family = get_family("dance_with_music")
    assert set(family.onnx_components(TINY, 1)) == {"music_to_pose", "vae_decoder"}
    assert set(family.onnx_components(TINY, 3)) == {
        "music_to_pose",
        "guidance_pose",
        "denoiser",
        "reference_net",
        "vae_decoder",
    }
    assert "denoiser" not in family.onnx_components(SIZES["tiny-svd"], 3)
    base = open_weights(None, family="dance_with_music", size="tiny")
    with pytest.raises(ValueError, match=r"holds no m2p"):
        component(base, "music_to_pose")
