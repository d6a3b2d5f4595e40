"""The freeze matrix: names and counts of what trains."""

import pytest
import torch

from stagecoach.models.dance_with_music.config import SIZES, DanceConfig
from stagecoach.models.dance_with_music.family import DanceWithMusicFamily
from stagecoach.models.dance_with_music.stages import make_stages
from stagecoach.models.dance_with_music.weight_names import part_of
from stagecoach.models.family import Progress
from stagecoach.models.trainable import trainable_names, trained_before

FAMILY = DanceWithMusicFamily()


def changed(size: str, **values) -> DanceConfig:
    return DanceConfig.model_validate(SIZES[size].model_dump() | values)


def trained(config: DanceConfig, stage: int) -> tuple[torch.nn.Module, dict[str, int]]:
    """The network on meta, and the numbers of parameters that train by name."""
    network = FAMILY.build(config, stage, "meta", torch.bfloat16)
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    return network, {name: sizes[name] for name in trainable_names(network, FAMILY.stages(config)[stage - 1])}


def count(numbers: dict[str, int], *parts: str) -> int:
    return sum(size for name, size in numbers.items() if part_of(name) in parts)


def test_champ_trains_what_the_guide_counts_in_b_and_c():
    config = changed("champ-sd15")
    network, numbers = trained(config, 2)
    assert count(numbers, "denoising_unet") == 859_520_964
    assert count(numbers, "reference_unet") == 840_698_240
    assert count(numbers, "face_tokens") == 33_188_352
    assert count(numbers, "identity_adapter") == 19_169_280
    assert (
        count(numbers, "guidance_pose")
        + count(numbers, "denoising_unet", "reference_unet", "face_tokens", "identity_adapter")
        == 1_756_428_836
    )
    assert all(name in numbers for name, _ in network.m2p.named_parameters(prefix="m2p"))
    assert not any(name.startswith("reference_unet.up_blocks.3") for name in numbers)
    network, numbers = trained(config, 3)
    assert sum(numbers.values()) == count(numbers, "motion") == 453_209_280
    assert all(".motion_modules." in name for name in numbers)


def test_svd_trains_attentions_then_time():
    config = changed("svd-xt")
    network, numbers = trained(config, 2)
    assert count(numbers, "denoising_unet", "identity_adapter") == 795_994_256
    assert count(numbers, "guidance_pose_net") == 205_557
    assert count(numbers, "face_tokens") == 57_183_232
    assert sum(numbers.values()) - count(numbers, "m2p") == 853_383_045
    assert {name for name in numbers if name.startswith("denoising_unet")} == {
        name for name, _ in network.named_parameters() if "attentions" in name and name.startswith("denoising_unet")
    }
    network, numbers = trained(config, 3)
    assert sum(numbers.values()) == 656_076_838
    assert set(numbers) == {
        name
        for name, _ in network.named_parameters()
        if any(
            part in name
            for part in ("temporal_transformer_blocks", "temporal_res_block", "time_mixer", "time_pos_embed")
        )
    }


@pytest.mark.parametrize("size", ["tiny", "tiny-svd"])
def test_stage_a_builds_and_trains_music_to_pose_alone(size):
    network, numbers = trained(changed(size), 1)
    assert set(numbers) == {name for name, _ in network.named_parameters()}
    assert {part_of(name) for name in numbers} == {"m2p"}


@pytest.mark.parametrize("size", ["tiny", "tiny-svd"])
def test_the_joint_stage_trains_all_but_the_end_of_the_reference_net(size):
    network, numbers = trained(changed(size, joint=True), 4)
    rest = {name for name, _ in network.named_parameters()} - set(numbers)
    assert all(name.startswith("reference_unet.up_blocks.1.") for name in rest)
    assert bool(rest) == (size == "tiny")


@pytest.mark.parametrize("size", ["tiny", "tiny-svd"])
def test_music_to_pose_trains_in_c_only_where_it_is_asked_to(size):
    assert not count(trained(changed(size), 3)[1], "m2p")
    config = changed(size, m2p_in_motion=0.01)
    assert count(trained(config, 3)[1], "m2p")
    assert {entry.pattern: entry.lr_scale for entry in make_stages(config)[2].trainable}["m2p"] == 0.01
    assert {"pose", "face"} <= {term.name for term in make_stages(config)[2].losses}


def test_music_to_pose_opens_in_b_with_its_losses():
    config = changed("champ-sd15")
    stage = make_stages(config)[1]
    entry = next(entry for entry in stage.trainable if entry.pattern == "m2p")
    assert (entry.lr_scale, entry.start_fraction) == (0.1, 0.8)
    weight = next(term.weight for term in stage.losses if term.name == "pose")
    assert [weight.at(Progress(step, 1000, 2, 0)) for step in (0, 799, 800, 1000)] == [0, 0, 0.5, 0.5]


def test_the_seeds_losses_and_weights():
    weights = [
        {term.name: term.weight.end if term.weight.end is not None else term.weight.start for term in stage.losses}
        for stage in make_stages(changed("champ-sd15"))
    ]
    assert weights == [
        {"pose": 0.5, "face": 0.1},
        {"diffusion": 1.0, "id": 0.1, "pose": 0.5, "face": 0.1},
        {"diffusion": 1.0, "id": 0.1, "temporal": 0.1},
    ]


@pytest.mark.parametrize("size", ["tiny", "tiny-svd"])
def test_what_was_trained_before_is_the_same_in_a_later_stages_network(size):
    """Or an adapter could not be handed on: C's network has modules that B's has not."""
    config = changed(size, joint=True)
    specs = FAMILY.stages(config)
    for stage in (2, 3):
        network, later = (FAMILY.build(config, s, "meta", torch.float32) for s in (stage, stage + 1))
        assert trained_before(network, specs, stage + 1) == trained_before(later, specs, stage + 1)


@pytest.mark.parametrize("size", ["tiny", "tiny-svd"])
def test_every_weight_belongs_to_a_part_of_its_own(size):
    names = [
        name
        for stage in (1, 2, 3)
        for name, _ in FAMILY.build(changed(size), stage, "meta", torch.float32).named_parameters()
    ]
    found = {part_of(name) for name in names}
    expected = {"m2p", "guidance_pose", "face_tokens", "reference_unet", "identity_adapter", "motion", "denoising_unet"}
    if size == "tiny-svd":
        expected = {"m2p", "guidance_pose_net", "face_tokens", "identity_adapter", "denoising_unet"}
    assert found == expected
    with pytest.raises(ValueError, match="belongs to no part"):
        part_of("vae.decoder.conv_in.weight")


def test_the_guides_older_plan_has_one_stage():
    stages = make_stages(changed("champ-sd15", plan="guidance"))
    assert [stage.name for stage in stages] == ["guidance"]
    assert {entry.pattern.split(".")[0] for entry in stages[0].trainable} == {
        "guidance",
        "face_tokens",
        "denoising_unet",
        "reference_unet",
    }
