"""Guidance by type and the encoders behind it."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import Transformer2DModel
from torch import nn

from stagecoach.models.dance_with_music.config import SIZES, GuidanceConfig
from stagecoach.models.dance_with_music.guidance import types as guidance
from stagecoach.models.dance_with_music.guidance.encoders import GuidanceEncoder, PoseNet, SpatialTransformer
from stagecoach.models.dance_with_music.guidance.types import (
    GuidanceBank,
    GuidanceInput,
    GuidanceType,
    register_guidance,
    resize_maps,
)
from stagecoach.models.dance_with_music.music_to_pose.heatmaps import gaussian_marginals, render_heatmaps

TINY, FULL = SIZES["tiny"], SIZES["champ-sd15"]
ALL = ("pose", "skeleton", "music", "pose_net")
WIDTHS = (16, 32, 96, 256)


def render_guidance(inputs, config):
    return {name: guidance.guidance_type(name).render(inputs, config) for name in config.guidance.types}


def with_types(*types, base=TINY, **change):
    own = base.guidance.model_copy(update={"types": types, **change})
    return base.model_copy(update={"guidance": own})


def given(b=2, t=3, height=64, width=64, seed=0, logits=None):
    g = torch.Generator().manual_seed(seed)
    xy = 0.2 + 0.6 * torch.rand(b, t, 134, 2, generator=g)
    return GuidanceInput(
        xy, torch.rand(b, t, 134, generator=g), logits, torch.randn(b, t, 35, generator=g), height, width
    )


def count(module):
    return sum(p.numel() for p in module.parameters())


def wake(bank):
    """The last convolutions of a bank away from zero."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in bank.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return bank


def test_encoders_have_the_counts_of_the_page_and_all_of_it_lives():
    """Section 4: 3,852,000 for 134 -> 320, which for CHAMP's own forward would hold 1,562,400 dead ones."""
    with torch.device("meta"):
        encoders = GuidanceBank(with_types("pose", "skeleton", "pose_net", base=FULL)).encoders
        dead = GuidanceEncoder(3, 320, WIDTHS, 8, 8, "every")
    assert count(encoders["pose"]) == 3_852_000
    assert count(encoders["skeleton"]) == 2_270_736
    assert count(dead) == 3_833_136
    assert count(dead) - count(encoders["skeleton"]) == 1_562_400
    assert count(encoders["pose_net"]) == 205_557


def test_the_guides_music_encoder_has_its_count_but_for_what_we_add():
    """32,897,854 (section 1.3) less its head of heatmaps (a 7 x 7 convolution 1280 -> 134), plus what normalises the
    music, the transformer at the end and the convolution to the denoiser's width; its conv_in takes one channel."""
    with torch.device("meta"):
        music = GuidanceBank(with_types("music", base=FULL, inner=1280, heads=12)).encoders["music"]
    ours = count(music.music_norm) + count(music.encoder.guidance_attention) + count(music.encoder.project)
    one_channel = (134 - 1) * 16 * 9
    assert count(music) - ours == 32_897_854 - 8_404_614 - one_channel


@pytest.mark.parametrize("attention", ["every", "last"])
@pytest.mark.parametrize("inner", [None, 24])
def test_a_fresh_encoder_adds_nothing_and_every_parameter_learns_once_it_is_awake(attention, inner):
    torch.manual_seed(0)
    encoder = GuidanceEncoder(5, 32, (8, 16, 24), 2, 1, attention, inner)
    x = torch.randn(3, 5, 8, 8)
    assert not encoder(x).any()
    out = wake(encoder)(x)
    (out * torch.randn_like(out)).sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("widths", "down"), [((8, 16), 8), ((8, 16, 24), 8), ((4, 8, 12, 16), 8), ((4, 8, 12, 16, 16), 8), ((8, 16), 1)]
)
def test_an_encoder_goes_down_by_the_factor_asked_for_and_sees_every_pixel(widths, down):
    encoder = wake(GuidanceEncoder(3, 32, widths, 2, down, "last"))
    x = torch.randn(1, 3, 8 * down, 4 * down, requires_grad=True)
    out = encoder(x)
    assert out.shape == (1, 32, 8, 4)
    out.square().sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize(("channels", "heads", "groups"), [(16, 8, 1), (96, 8, 32), (32, 12, 32)])
def test_the_transformer_is_diffusers(channels, heads, groups):
    torch.manual_seed(0)
    theirs = Transformer2DModel(heads, channels // heads, channels, norm_num_groups=groups)
    ours = SpatialTransformer(channels, heads, groups)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, channels, 6, 5)
    torch.testing.assert_close(ours(x), theirs(x).sample, atol=2e-5, rtol=1e-5)


def test_the_bank_adds_all_types_in_any_chunking():
    config = with_types(*ALL)
    torch.manual_seed(0)
    bank = wake(GuidanceBank(config))
    conditions = render_guidance(given(t=5), config)
    # A norm makes rounding of a nearly black picture large.
    conditions["skeleton"] = torch.rand(conditions["skeleton"].shape)
    with torch.no_grad():
        whole = bank(conditions, (8, 8))
        assert whole.shape == (2, 5, 32, 8, 8)
        single = []
        for name in ALL:
            one = GuidanceBank(with_types(name))
            one.encoders[name].load_state_dict(bank.encoders[name].state_dict())
            single.append(one(conditions, (8, 8)))
        torch.testing.assert_close(whole, sum(single), atol=1e-5, rtol=1e-4)
        bank.chunk = 2
        torch.testing.assert_close(bank(conditions, (8, 8)), whole, atol=1e-5, rtol=1e-4)


def test_how_often_an_encoder_is_called_depends_on_the_frames_alone():
    bank, calls = GuidanceBank(with_types("pose", chunk=2)), []
    bank.encoders["pose"].register_forward_hook(lambda *args: calls.append(1))
    for b in (1, 3):
        calls.clear()
        bank(render_guidance(given(b=b, t=5), TINY))
        assert len(calls) == 3


def test_a_fresh_bank_adds_nothing():
    config = with_types(*ALL)
    assert not GuidanceBank(config)(render_guidance(given(), config), (8, 8)).any()


def test_a_bank_in_16_bits_takes_and_gives_16_bits_whatever_its_weights():
    config = with_types(*ALL)
    bank = wake(GuidanceBank(config))
    conditions = render_guidance(given(), config)
    short = {name: value.bfloat16() for name, value in conditions.items()}
    out = bank(short, (8, 8))
    assert out.dtype == torch.bfloat16
    whole = bank(conditions, (8, 8))
    assert (out - whole).abs().mean() < 0.1 * whole.abs().mean()
    assert bank.bfloat16()(short, (8, 8)).dtype == torch.bfloat16


def test_pose_net_starts_as_published_and_learns():
    torch.manual_seed(0)
    net = PoseNet(32)
    assert net.scale.tolist() == [2.0]
    for layer, std in ((net.conv_layers[8], math.sqrt(2 / (9 * 32))), (net.conv_layers[10], math.sqrt(2 / (16 * 32)))):
        assert abs(float(layer.weight.detach().std()) / std - 1) < 0.1
        assert not layer.bias.any()
    x = torch.rand(2, 3, 64, 32)
    assert not net(x).any()
    assert net(x).shape == (2, 32, 8, 4)
    wake(net)(x).square().sum().backward()
    assert all(p.grad.any() for p in net.parameters())


# Conditions


def test_pose_maps_are_the_rendered_heatmaps_at_the_confidence():
    """At the latents' resolution, where nothing is resized, a true point peaks at its confidence."""
    config, points = TINY, given(height=128, width=128)
    maps = render_guidance(points, config)["pose"]
    sigma = config.losses.sigma
    expected = render_heatmaps(points.xy, points.conf, 16, sigma) * 2 * math.pi * sigma**2
    torch.testing.assert_close(maps, expected)
    assert (maps.amax((-1, -2)) <= 1.01 * points.conf).all()
    assert (maps.amax((-1, -2)) >= 0.75 * points.conf).all()  # between four pixels at worst


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (256, 128)])
def test_factorised_and_full_logits_of_one_distribution_give_one_condition(height, width):
    points, tau = given(), TINY.m2p.temperature
    x, y = gaussian_marginals(points.xy, 16, 1.0)
    factorised = {"logits_x": tau * x.log(), "logits_y": tau * y.log()}
    full = {"logits": factorised["logits_y"].unsqueeze(-1) + factorised["logits_x"].unsqueeze(-2)}
    found = [
        render_guidance(given(height=height, width=width, logits=logits), TINY)["pose"]
        for logits in (None, factorised, full)
    ]
    assert found[0].shape == (2, 3, 134, height // 8, width // 8)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (32, 12)])
def test_maps_are_resized_as_pytorch_does(size):
    maps = torch.rand(2, 3, 16, 16)
    expected = nn.functional.interpolate(maps, size, mode="bilinear", antialias=True)
    torch.testing.assert_close(resize_maps(maps, *size), expected, atol=1e-6, rtol=1e-5)


def test_gradients_of_every_condition_made_of_poses_reach_the_prediction():
    config = with_types("pose", "skeleton", "pose_net")
    logits = {name: torch.randn(1, 2, 134, 16, requires_grad=True) for name in ("logits_x", "logits_y")}
    render_guidance(given(1, 2, logits=logits), config)["pose"].square().sum().backward()
    assert all(x.grad.any() for x in logits.values())
    points = given(1, 2)
    points.xy.requires_grad_()
    render_guidance(points, config)["skeleton"].square().sum().backward()
    assert points.xy.grad.any()
    points.xy.grad = None
    points.conf.requires_grad_()
    render_guidance(points, config)["pose_net"].square().sum().backward()
    assert points.xy.grad.any()
    assert points.conf.grad.any()


def test_drawn_skeletons_are_in_the_published_ranges():
    """0..1 for CHAMP's encoder (its guidance is ToTensor alone), -1..1 for StableAnimator's PoseNet (/ 127.5 - 1)."""
    found = render_guidance(given(1, 1, 512, 512), with_types("skeleton", "pose_net"))
    assert (found["skeleton"].min(), found["skeleton"].max()) == (0, 1)
    assert found["pose_net"].min() == -1
    assert 0.5 < found["pose_net"].max() <= 1


# A type of one's own


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(guidance, "GUIDANCE_TYPES", dict(guidance.GUIDANCE_TYPES))


@pytest.mark.usefixtures("registry")
def test_a_type_of_ones_own_takes_a_few_lines():
    """As the module's docstring has it."""

    def render_hands(given, config):
        maps = render_heatmaps(given.xy[:, :, 92:], given.conf[:, :, 92:], config.m2p.resolution, config.losses.sigma)
        return resize_maps(maps, *given.latent)

    register_guidance(
        "hands",
        GuidanceType(
            make=lambda config: GuidanceEncoder(
                42, config.unet.widths[0], config.guidance.widths, config.guidance.heads
            ),
            render=render_hands,
            from_pose=True,
        ),
    )

    config = with_types("pose", "hands")
    torch.manual_seed(0)
    bank = wake(GuidanceBank(config))
    conditions = render_guidance(given(), config)
    assert conditions["hands"].shape == (2, 3, 42, 8, 8)
    out = bank(conditions, (8, 8))
    out.square().sum().backward()
    assert all(p.grad.any() for p in bank.encoders["hands"].parameters())
    without = {**conditions, "hands": torch.zeros_like(conditions["hands"])}
    assert (bank(without, (8, 8)) - out).abs().max() > 1e-3


@pytest.mark.usefixtures("registry")
def test_names_that_are_taken_unknown_or_no_names_are_refused():
    kind = guidance.GUIDANCE_TYPES["music"]
    with pytest.raises(ValueError, match="'pose' exists already"):
        register_guidance("pose", kind)
    with pytest.raises(ValueError, match="no name for a module"):
        register_guidance("my.hands", kind)
    with pytest.raises(ValueError, match="'depth', expected among pose, skeleton"):
        GuidanceBank(with_types("depth"))


def test_the_default_guidance_is_the_pose():
    assert GuidanceConfig().types == ("pose",)


def test_maps_of_music_are_guidance_of_their_channels():
    """The guide's music files of (feature_dim, height, width), and those of (feature_dim,) as channels."""
    config = with_types("pose", "music_map", map_channels=7)
    maps = torch.randn(2, 3, 7, 24, 20)
    inputs = replace(given(height=128, width=96), music_map=maps)
    condition = guidance.guidance_type("music_map").render(inputs, config)
    torch.testing.assert_close(condition, resize_maps(maps, 16, 12))
    torch.manual_seed(0)
    bank = wake(GuidanceBank(config))
    encoder = bank.encoders["music_map"]
    assert encoder.encoder.conv_in.weight.shape[1] == 7
    frames = condition.flatten(0, 1)
    encoder.music_norm.fit(frames.sum((0, 2, 3)), frames.square().sum((0, 2, 3)), 6 * 16 * 12)
    seen = []
    encoder.encoder.conv_in.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    assert bank(render_guidance(inputs, config), (16, 12)).shape == (2, 3, 32, 16, 12)
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].square().mean((0, 2, 3)), torch.ones(7), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="no maps of music given, expected 7 channels per frame"):
        render_guidance(given(), config)
    rows = with_types("music_map")
    assert GuidanceBank(rows).encoders["music_map"].encoder.conv_in.weight.shape[1] == 35
    condition = render_guidance(inputs, rows)["music_map"]
    assert condition.shape == (2, 3, 35, 16, 12)
    assert (condition == inputs.music[..., None, None]).all()


def test_channels_without_the_type_that_reads_them_are_refused():
    with pytest.raises(ValueError, match=r"guidance\.map_channels is 7 but guidance\.types .*, expected music_map"):
        GuidanceConfig(map_channels=7)
