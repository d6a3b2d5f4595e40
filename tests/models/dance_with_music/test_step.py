"""What a training step of each phase gives, and what its parts are fed."""

import pytest
import torch
import yaml

from stagecoach.data.dance_with_music.schema import KEYPOINTS
from stagecoach.data.format.schema import SchemaError
from stagecoach.data.streaming.mixture import check_inputs
from stagecoach.models.common.keyed import keyed_rand
from stagecoach.models.dance_with_music.clip import read_references
from stagecoach.models.dance_with_music.conditions import _given, at_frames, make_conditions, predict_poses, read_batch
from stagecoach.models.dance_with_music.config import SIZES, DanceConfig
from stagecoach.models.dance_with_music.family import DanceWithMusicFamily
from stagecoach.models.dance_with_music.losses import CUSTOM_LOSSES, register_custom_loss
from stagecoach.models.dance_with_music.stages import make_stages
from tests.tiny_dance import make_network, progress_at

STAGES = [
    (size, plan, stage)
    for size in ("tiny", "tiny-svd")
    for plan, stage in (("stages", 1), ("stages", 2), ("stages", 3), ("stages", 4), ("guidance", 1))
]


def changed(size: str = "tiny", **values) -> DanceConfig:
    merged = SIZES[size].model_dump()
    for name, value in values.items():
        merged[name] = merged[name] | value if isinstance(value, dict) else value
    return DanceConfig.model_validate(merged)


def total(config: DanceConfig, stage: int, losses: dict, progress) -> torch.Tensor:
    spec = make_stages(config)[stage - 1]
    return sum(term.weight.at(progress) * losses[term.name] for term in spec.losses)


@pytest.mark.parametrize(("size", "plan", "stage"), STAGES)
def test_each_stage_gives_its_losses_and_gradients_to_all_that_trains(dance, size, plan, stage):
    """Two steps behind the fade-in, as what starts at zero lets gradients through from the second on only."""
    config = changed(size, plan=plan, joint=stage == 4)
    network, batch = make_network(config, stage), dance.batch(config, stage)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    seen = set()
    for step in (8, 9, 9):
        progress = progress_at(step, 10, stage)
        result = network(batch, progress)
        assert set(result["losses"]) == {term.name for term in make_stages(config)[stage - 1].losses} | (
            {"pose", "face"} if network.phase == "motion" else set()
        ) | ({"temporal"} if network.phase == "image" else set())
        for value in result["losses"].values():
            assert value.shape == (2,)
            assert value.dtype == torch.float32
            assert value.isfinite().all()
        optimizer.zero_grad()
        total(config, stage, result["losses"], progress).mean().backward()
        seen |= {name for name, p in trained.items() if p.grad is not None and p.grad.ne(0).any()}
        assert all(p.grad.isfinite().all() for p in trained.values() if p.grad is not None)
        optimizer.step()
    assert set(trained) == seen
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)


def test_music_to_pose_gets_no_gradient_before_it_opens_and_one_from_the_denoiser_after(dance):
    config = changed(losses={"pose_weight": 0.0, "face_weight": 0.0})
    network, batch = make_network(config, 2), dance.batch(config, 2)
    found = {}
    with torch.no_grad():
        for p in network.guidance.parameters():  # a zero at its end would stop gradients too
            p.add_(0.01)
    for step in (7, 8, 9):
        network.zero_grad()
        progress = progress_at(step, 10, 2)
        total(config, 2, network(batch, progress)["losses"], progress).mean().backward()
        found[step] = sum(float(p.grad.abs().sum()) for p in network.m2p.parameters() if p.grad is not None)
    assert found[7] == 0
    assert found[8] == 0  # it trains for its own losses from here on; its poses enter one step later
    assert found[9] > 0


def test_a_sample_gets_the_losses_that_it_gets_alone(dance):
    for stage in (1, 2, 3):
        config = changed()
        network, batch = make_network(config, stage), dance.batch(config, stage)
        alone = {name: value[1:] for name, value in batch.items()}
        whole, part = (network(b, progress_at(9, 10, stage))["losses"] for b in (batch, alone))
        for name in whole:
            torch.testing.assert_close(whole[name][1:], part[name], rtol=1e-4, atol=1e-5)


def test_references_come_from_outside_of_the_window_and_targets_from_inside(dance):
    config = changed(reference={"count": 2}, frames={"target": 3})
    network, batch = make_network(config, 2), dance.batch(config, 2, count=4)
    batch["ref_frame"] = torch.tensor([[0, 5, -1, 59]] * 4)
    batch["window_start"] = torch.tensor([0, 4, 5, 44])  # 16 frames each
    batch["ref_arcface_norm"] = torch.arange(4.0).repeat(4, 1)
    batch["ref_face_valid"] = torch.ones(4, 4, dtype=torch.uint8)
    inputs = read_batch(network, batch)
    clip, target, references, frames = inputs.clip, inputs.target, inputs.references, inputs.frames
    allowed = [{2, 3}, {0, 2, 3}, {0, 2, 3}, {0, 1, 2}]
    assert all(int(length) in some for length, some in zip(references.length, allowed, strict=True))
    assert references.latents.shape[1] == references.embedding.shape[1] == 2
    assert frames.shape == (4, 3)
    assert frames.diff(dim=1).eq(1).all()
    assert frames.min() >= 0
    assert frames.max() < 16
    assert len(set(frames[:, 0].tolist())) > 1
    for b in range(4):
        assert torch.equal(target.latents[b], clip.latents[b, frames[b]])
        assert torch.equal(target.xy[b], clip.xy[b, frames[b]])


def test_poses_are_read_at_their_full_precision(dance):
    config = changed()
    network, batch = make_network(config, 1), dance.batch(config, 1)
    clip = read_batch(network, batch).clip
    assert torch.equal((clip.xy.double() * 65535).round().to(torch.int64), batch["pose_xy"].to(torch.int64))
    assert clip.start_pose.shape == (2, KEYPOINTS, 3)
    assert torch.equal(clip.start_pose[..., :2], clip.xy[:, 0])


def conditions_at(network, batch, step: int, training: bool = True) -> tuple[dict, dict]:
    progress = progress_at(step, 10, network.stage, training)
    inputs = read_batch(network, batch)
    output = predict_poses(network, batch, inputs, progress)
    return make_conditions(network, batch, inputs, output, progress), at_frames(output, inputs.frames)


def test_the_guidance_is_a_mixture_of_the_true_and_the_predicted_poses(dance):
    config = changed(guidance={"types": ("pose", "music")})
    network, batch = make_network(config, 2), dance.batch(config, 2)
    true, half, predicted = (conditions_at(network, batch, step)[0] for step in (8, 9, 10))
    for name in ("pose", "music"):
        torch.testing.assert_close(half["guidance"][name], (true["guidance"][name] + predicted["guidance"][name]) / 2)
    assert not torch.equal(true["guidance"]["pose"], predicted["guidance"]["pose"])
    assert torch.equal(true["guidance"]["music"], predicted["guidance"]["music"])
    assert not true["guidance"]["pose"].requires_grad
    assert predicted["guidance"]["pose"].requires_grad


def test_conditions_are_withheld_together_by_sample_in_training_only(dance):
    config = changed(diffusion={"drop_embedding": 0.5, "drop_face": 0.5, "drop_reference": 0.5, "drop_guidance": 0.5})
    network, batch = make_network(config, 2), dance.batch(config, 2, count=1)
    many = {name: value.repeat(64, *[1] * (value.ndim - 1)) for name, value in batch.items() if name != "key"}
    many |= {"uid": torch.arange(64), "rng_key": torch.arange(64) * 7919}
    many["ref_face_valid"] = torch.ones_like(many["ref_face_valid"])
    names = ("reference_given", "embedding_given", "face_given", "guidance_given")
    with torch.no_grad():
        found, kept = (conditions_at(network, many, 0, training)[0] for training in (True, False))
    for name in names:
        assert 15 < found[name].sum() < 49
        assert kept[name].all()
    assert len({tuple(found[name].tolist()) for name in names}) == 1, "without one is without all, as in guidance"


def test_of_stable_animators_ranges_a_tenth_has_no_clip_a_tenth_no_reference_a_tenth_neither():
    """Its code: CLIP is withheld where u < 0.2, the reference where 0.1 <= u < 0.3 of the same u."""
    many = {"uid": torch.arange(20_000), "rng_key": torch.arange(20_000) * 7919}
    progress = progress_at(0, 10, 2)
    u = keyed_rand(many, "drop", ())
    embedding, reference = _given(many, 0.2, progress), _given(many, 0.2, progress, 0.1)
    assert torch.equal(embedding, u >= 0.2)
    assert torch.equal(reference, (u < 0.1) | (u >= 0.3))
    for clip, picture, part in ((False, True, 0.1), (True, False, 0.1), (False, False, 0.1), (True, True, 0.7)):
        assert ((embedding == clip) & (reference == picture)).float().mean().item() == pytest.approx(part, abs=0.01)


def test_the_recipe_of_stable_animator_withholds_as_published():
    with open("launch/recipes/dance_with_music/default-svd.yaml") as file:
        own = yaml.safe_load(file)["model"]["diffusion"]
    published = {"drop_embedding": 0.2, "drop_reference": 0.2, "drop_face": 0, "dropping": "ranges"}
    assert own == {**published, "reference_noise_on": "pixels"}


def test_noise_on_the_references_pixels_is_in_the_shards_and_not_on_their_latents(dance):
    pixels, latents = (changed("tiny-svd", diffusion={"reference_noise_on": on}) for on in ("pixels", "latents"))
    batch = dance.batch(pixels, 2)
    stored = read_references(batch, pixels).latents
    for config, noise in ((pixels, 0.0), (latents, 0.02)):
        found = conditions_at(make_network(config, 2), batch, 0)[0]["references"]
        assert (found - stored).std().item() == pytest.approx(noise, rel=0.2)
    family, shards = DanceWithMusicFamily(), dance.samples(pixels)
    check_inputs(shards, family.encoder_inputs(latents))
    check_inputs(shards, family.encoder_inputs(changed(diffusion={"reference_noise_on": "pixels"})))  # none in CHAMP
    with pytest.raises(SchemaError, match=r"vae was given nothing.*, expected references with noise of 0.02 on their"):
        check_inputs(shards, family.encoder_inputs(pixels))


@torch.no_grad()
def test_the_face_reads_clip_also_where_the_denoiser_is_shown_none(dance):
    config = changed()
    network, batch = make_network(config, 2), dance.batch(config, 2)
    torch.nn.init.normal_(network.face_tokens.fusion_model.proj_out.weight)
    given = conditions_at(network, batch, 0, training=False)[0] | {"face_given": torch.tensor([True, True])}
    tokens = network.face(given)
    assert torch.equal(network.face(given | {"embedding_given": torch.tensor([False, False])}), tokens)
    assert not torch.equal(network.face(given | {"embedding": torch.zeros_like(given["embedding"])}), tokens)


def test_a_face_that_was_not_found_is_not_given(dance):
    config = changed(diffusion={"drop_face": 0.0})
    network, batch = make_network(config, 2), dance.batch(config, 2)
    batch["ref_face_valid"] = torch.tensor([[1] * 4, [0] * 4], dtype=torch.uint8)
    assert conditions_at(network, batch, 0)[0]["face_given"].tolist() == [True, False]
    assert network(batch, progress_at(0, 10, 2))["losses"]["face"][1].item() == 0


def test_music_to_poses_face_replaces_the_references_where_it_is_asked_for(dance):
    config = changed(face={"source": "m2p"})
    network, batch = make_network(config, 3), dance.batch(config, 3)
    conditions, output = conditions_at(network, batch, 0)
    length = conditions["face"].norm(dim=-1)
    torch.testing.assert_close(conditions["face"], output["face"] * length[:, None])


def test_a_custom_loss_joins_the_others(dance):
    def keep_still(prediction, target, conditions):
        assert set(conditions["guidance"]) == {"pose"}
        return (prediction.diff(dim=1) - target.diff(dim=1)).square().flatten(1).mean(1)

    register_custom_loss("keep_still", keep_still)
    try:
        config = changed(losses={"custom": "keep_still", "custom_weight": 0.25})
        assert {term.name: term.weight.start for term in make_stages(config)[2].losses}["custom"] == 0.25
        network = make_network(config, 3)
        found = network(dance.batch(config, 3), progress_at(0, 10, 3))["losses"]["custom"]
        assert found.shape == (2,)
        assert found.gt(0).all()
        with pytest.raises(ValueError, match="exists already"):
            register_custom_loss("keep_still", keep_still)
    finally:
        del CUSTOM_LOSSES["keep_still"]
    with pytest.raises(ValueError, match="register_custom_loss"):
        network(dance.batch(config, 3), progress_at(0, 10, 3))


def test_pictures_of_music_guide_and_are_normalised_by_their_own_statistics(dance):
    config = changed(plan="guidance", guidance={"types": ("pose", "music_map"), "map_channels": 3})
    assert DanceWithMusicFamily().schema(config).field("music_map").shape == ("F", 3, "hm", "wm")
    batch = dance.batch(changed(plan="guidance"), 1)
    frames = batch["music"].shape[1]
    batch["music_map"] = torch.randn(2, frames, 3, 12, 10) * 2 + 5
    sums = {"music_map_sum": [15.0, 15.0, 15.0], "music_map_square_sum": [87.0, 87.0, 87.0], "music_map_count": 3}
    network = make_network(config, 1, **sums)
    norm = network.guidance.encoders["music_map"].music_norm
    torch.testing.assert_close(norm.shift.detach(), torch.full((3,), 5.0))
    torch.testing.assert_close(norm.scale.detach(), torch.full((3,), 0.5))
    result = network(batch, progress_at(5))
    total(config, 1, result["losses"], progress_at(5)).mean().backward()
    assert network.guidance.encoders["music_map"].encoder.conv_out.weight.grad.any()
