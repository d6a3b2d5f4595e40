"""MusicToPose."""

import math

import pytest
import torch
from torch import nn

from stagecoach.models.common.keyed import rng_keys
from stagecoach.models.dance_with_music.config import SIZES, M2PConfig
from stagecoach.models.dance_with_music.music_to_pose.heatmaps import coordinates, heatmap
from stagecoach.models.dance_with_music.music_to_pose.model import EncoderLayer, MusicNorm, MusicToPose, positions

TINY = SIZES["tiny"].m2p
REF = 64


def make(**change):
    torch.manual_seed(0)
    return MusicToPose(TINY.model_copy(update=change), REF)


def inputs(b=2, t=9, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(b, t, 35, generator=g), torch.randn(b, REF, generator=g), torch.rand(b, 134, 3, generator=g)


def draws(*uids):
    return {"uid": torch.tensor(uids), "rng_key": rng_keys(0, 1, uids)}


def test_the_full_size_has_the_count_of_the_page_and_two_numbers_per_feature():
    with torch.device("meta"):
        model = MusicToPose(M2PConfig(), 768)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sizes["music_proj"] == 11_936_768
    assert sizes["layers"] == 75_577_344
    assert sum(sizes.values()) - sizes["music_norm"] == 108_531_590
    assert sizes["music_norm"] == 2 * 4800


@pytest.mark.parametrize("head", ["factorised", "full2d"])
def test_outputs_have_their_shapes_and_are_fp32(head):
    found = make(head=head)(*inputs())
    maps = (
        {"logits": (2, 9, 134, 16, 16)}
        if head == "full2d"
        else dict.fromkeys(("logits_x", "logits_y"), (2, 9, 134, 16))
    )
    assert {name: tuple(x.shape) for name, x in found.items()} == {**maps, "conf": (2, 9, 134), "face": (2, 512)}
    assert all(x.dtype == torch.float32 for x in found.values())
    torch.testing.assert_close(found["face"].norm(dim=-1), torch.ones(2))
    assert heatmap(found, TINY.temperature).shape == (2, 9, 134, 16, 16)


def test_a_hundred_and_fifty_frames_work_and_all_of_them_count():
    model, (music, ref, pose0) = make(), inputs(t=150)
    found = coordinates(model(music, ref, pose0), TINY.temperature)
    assert found.shape == (2, 150, 134, 2)
    changed = music.clone()
    changed[:, 149] += 1
    moved = coordinates(model(changed, ref, pose0), TINY.temperature)
    assert (moved - found)[:, 0].abs().max() > 1e-6  # both directions
    changed = music.clone()
    changed[:, 0] += 1
    moved = coordinates(model(changed, ref, pose0), TINY.temperature)
    assert (moved - found)[:, 149].abs().max() > 1e-6


@pytest.mark.parametrize("which", [0, 1, 2])
def test_music_reference_and_start_pose_all_move_the_poses(which):
    model, given = make(), list(inputs())
    before = coordinates(model(*given), TINY.temperature)
    given[which] = given[which].flip(0)
    assert (coordinates(model(*given), TINY.temperature) - before).abs().max() > 1e-4


def test_the_face_comes_from_the_reference():
    model, (music, ref, pose0) = make(), inputs()
    face = model(music, ref, pose0)["face"]
    assert (model(music, ref.flip(0), pose0)["face"] - face).abs().max() > 1e-2


def test_a_point_that_was_not_found_has_no_place_in_the_start_pose():
    model, (music, ref, pose0) = make(), inputs()
    pose0[..., 2] = 0
    moved = pose0.clone()
    moved[..., :2] = 0.9
    torch.testing.assert_close(model(music, ref, moved)["logits_x"], model(music, ref, pose0)["logits_x"])


def test_every_parameter_learns():
    for head in ("factorised", "full2d"):
        model = make(head=head)
        found = model(*inputs(), draws(0, 1))
        loss = sum((x * torch.randn(x.shape)).sum() for x in found.values())
        loss.backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_layer_is_pytorchs_with_the_norm_behind():
    torch.manual_seed(0)
    layer, theirs = (
        EncoderLayer(TINY, "x"),
        nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, activation="gelu", batch_first=True),
    )
    names = {
        "qkv.weight": "self_attn.in_proj_weight",
        "qkv.bias": "self_attn.in_proj_bias",
        "out.weight": "self_attn.out_proj.weight",
        "out.bias": "self_attn.out_proj.bias",
    }
    theirs.load_state_dict({names.get(name, name): p for name, p in layer.state_dict().items()})
    x = torch.randn(2, 7, 64)
    torch.testing.assert_close(layer(x, None), theirs(x), atol=1e-5, rtol=1e-5)


def test_positions_are_those_of_the_paper():
    found = positions(160, 64, "cpu")
    assert found.shape == (160, 64)
    for p, k in ((3, 0), (3, 7), (150, 31)):
        assert math.isclose(found[p, 2 * k], math.sin(p / 10000 ** (2 * k / 64)), abs_tol=1e-4)
        assert math.isclose(found[p, 2 * k + 1], math.cos(p / 10000 ** (2 * k / 64)), abs_tol=1e-4)


def test_dropout_belongs_to_the_sample():
    """The same draws in another micro-batch, and none without draws."""
    model, (music, ref, pose0) = make(dropout=0.3), inputs(b=3)
    both = model(music, ref, pose0, draws(5, 6, 7))["logits_x"]
    one = model(music[1:2], ref[1:2], pose0[1:2], draws(6))["logits_x"]
    torch.testing.assert_close(one, both[1:2], atol=1e-5, rtol=1e-5)
    other = model(music[1:2], ref[1:2], pose0[1:2], draws(8))["logits_x"]
    assert (other - one).abs().max() > 1e-2
    plain = model(music, ref, pose0)["logits_x"]
    torch.testing.assert_close(plain, model(music, ref, pose0)["logits_x"], rtol=0, atol=0)
    assert (plain - both).abs().max() > 1e-2


def test_the_start_is_close_to_uniform():
    """Divided by the temperature, logits are of the order that Xavier's weights give, not ten times that."""
    maps = heatmap(make()(*inputs()), TINY.temperature)
    assert maps.max() < 0.2


def test_music_is_normalised_by_the_splits_sums():
    frames = torch.randn(1000, 4, dtype=torch.float64) * torch.tensor([1.0, 30.0, 0.01, 0.0]) + torch.tensor(
        [0.0, -300.0, 2.0, 5.0]
    )
    norm = MusicNorm(4)
    norm.fit(frames.sum(0), frames.square().sum(0), len(frames))
    found = norm(frames.float())
    torch.testing.assert_close(found[:, :3].mean(0), torch.zeros(3), atol=1e-2, rtol=0)
    torch.testing.assert_close(found[:, :3].std(0), torch.ones(3), atol=1e-2, rtol=0)
    assert (found[:, 3].abs() < 1e-5).all()
    assert norm.scale[3].item() == 1


def test_sums_of_other_features_are_refused():
    with pytest.raises(ValueError, match="music_dim"):
        MusicNorm(4).fit(torch.zeros(5), torch.zeros(5), 10)
    with pytest.raises(ValueError, match="0 frames"):
        MusicNorm(4).fit(torch.zeros(4), torch.zeros(4), 0)


def test_it_computes_in_the_references_dtype_whatever_the_weights():
    model, (music, ref, pose0) = make(), inputs()
    seen = []
    model.layers[0].register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    short = model(music, ref.bfloat16(), pose0)
    assert seen == [torch.bfloat16]
    assert (short["logits_x"] - model(music, ref, pose0)["logits_x"]).abs().max() < 0.1
    model.bfloat16()(music, ref.bfloat16(), pose0)
