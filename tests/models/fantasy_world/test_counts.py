"""Parameter counts on the meta device against those of the method."""

import pytest

from stagecoach.models.fantasy_world.config import SIZES
from stagecoach.models.fantasy_world.network import build_network


def counts(size, stage):
    """Trainable parameters by top module (parts of IRG and DPT by their own name), and the frozen ones together."""
    trainable, frozen = {}, 0
    for name, parameter in build_network(SIZES[size], stage, "meta").named_parameters():
        if not parameter.requires_grad:
            frozen += parameter.numel()
            continue
        parts = name.split(".")
        key = parts[2] if parts[0] in ("irg", "dpt") else parts[0]
        trainable[key] = trainable.get(key, 0) + parameter.numel()
    return trainable, frozen


def test_the_1_3b_size_lands_on_the_seeds_numbers():
    first, frozen_first = counts("wan2.1-1.3b", 1)
    second, frozen = counts("wan2.1-1.3b", 2)
    assert frozen == 1_418_996_800
    assert frozen_first == frozen - 18 * 46_440_704 - (1536 * 64 + 64 + 2 * 1536)
    assert first["latent_bridge"] == 4_732_032
    assert first["geo_block"] == 878_427_648
    assert first["pose_encoder"] == 791_552
    assert second["cross_attention"] == 201_917_952
    assert second["camera_adapters"] == 28_329_984
    assert first["depth_and_points"] + first["camera_head"] == pytest.approx(48_394_999, rel=0.03)
    assert sum(first.values()) == pytest.approx(956e6, rel=0.03)
    assert sum(second.values()) == pytest.approx(1186e6, rel=0.03)
    assert sum(second.values()) - sum(first.values()) == 230_247_936
    assert {name: second[name] for name in first} == first


def wan_count(dim, layers, ffn, channels, text=4096, freq=256, clip=1280, out=16):
    """Parameters of a Wan2.1 image-to-video transformer from its published config, layer by layer."""

    def linear(inputs, outputs):
        return inputs * outputs + outputs

    attention = 4 * linear(dim, dim) + 2 * dim  # q, k, v, o and the norms of q and k
    picture = 2 * linear(dim, dim) + dim  # k and v of CLIP's states, the norm of k
    block = 2 * attention + picture + linear(dim, ffn) + linear(ffn, dim) + 2 * dim + 6 * dim
    clip_mlp = 2 * clip + linear(clip, clip) + linear(clip, dim) + 2 * dim
    time = linear(freq, dim) + linear(dim, dim) + linear(dim, 6 * dim)
    ends = linear(4 * channels, dim) + linear(dim, 4 * out) + 2 * dim
    return layers * block + clip_mlp + time + linear(text, dim) + linear(dim, dim) + ends


def test_the_1_3b_image_to_video_size_stands_on_wan_fun_inp():
    first, _ = counts("wan2.1-1.3b-i2v", 1)
    second, frozen = counts("wan2.1-1.3b-i2v", 2)
    # Of Wan2.1-Fun-1.3B-InP's config.json: in_dim 36, dim 1536, ffn_dim 8960, 30 layers, model_type i2v.
    assert frozen == wan_count(1536, 30, 8960, 36) == 1_564_428_608
    assert wan_count(5120, 40, 13824, 36) == 16_394_878_784  # the formula, on the known 14 B
    text_only = counts("wan2.1-1.3b", 2)[0]
    picture = 18 * (2 * (1536 * 1536 + 1536) + 1536)  # the geometry blocks are copies of blocks that see the picture
    assert second.pop("geo_block") - text_only.pop("geo_block") == picture
    assert second == text_only
    assert sum(first.values()) == 932_336_376 + picture == 1_017_353_976
    assert SIZES["wan2.1-1.3b-i2v"].image_to_video


@pytest.mark.parametrize("stage", [1, 2])
def test_the_tiny_size_is_tiny(stage):
    assert sum(counts("tiny", stage)[0].values()) < 3e6


def test_the_14b_size_has_the_published_counts():
    first, _ = counts("wan2.1-14b", 1)
    second, frozen = counts("wan2.1-14b", 2)
    assert frozen == 16_394_878_784
    assert first == {
        "latent_bridge": 5_243_904,
        "geo_block": 605_171_328 - 136_832 - 10_240,
        "special_tokens": 136_832 + 10_240,
        "geometry_time": 7_610_368,
        "camera_head": 233_009_170,
        "depth": 195_143_650,
        "points": 195_143_716,
    }
    assert sum(first.values()) == 1_241_322_136
    assert {name: n for name, n in second.items() if name not in first} == {
        "cross_attention": 24 * 21_250_560,
        "pose_encoder": 34_692_096,
        "camera_adapters": 25 * 14_476_697,
    }
    assert {name: second[name] for name in first} == first
