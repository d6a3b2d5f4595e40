"""References of a batch: keyed dropout, empty pictures, wrong widths; and what becomes of them."""

import math

import pytest
import torch

from stagecoach.models.common.keyed import rng_keys
from stagecoach.models.family import Progress
from stagecoach.models.movie_post_production.config import SIZES, InstanceConfig
from stagecoach.models.movie_post_production.layout.instance_tokens import (
    AlphaPredictor,
    InstanceEncoder,
    LayoutHead,
    NullReferences,
    TextContent,
    area,
    box_points,
    fourier,
    layout_weight,
)
from stagecoach.models.movie_post_production.layout.instances import make_instances
from tests.models.movie_post_production.inputs import BOXES

TINY, OWN = SIZES["tiny"], SIZES["tiny"].instance
TRAINING, HELD_OUT = Progress(0, 10, 1, 0), Progress(0, 10, 1, 0, training=False)
SURE = TINY.model_copy(
    update={"instance": OWN.model_copy(update={"reference_dropout": 0.5, "layout_dropout": 0.5, "text_dropout": 0.5})}
)


def make_batch(uids=(5, 6), boxes=BOXES):
    g, boxes = torch.Generator().manual_seed(1), torch.tensor(boxes)
    shape = boxes.shape[:2]
    return {
        "uid": torch.tensor(uids),
        "rng_key": rng_keys(0, 1, uids),
        "boxes": boxes,
        "depth": torch.zeros(shape, dtype=torch.uint8),
        "clip": torch.randn(*shape, 12, generator=g).half(),
        "dino": torch.randn(*shape, 16, generator=g).half(),
        "object_text": torch.randn(*shape, 20, generator=g).bfloat16(),
    }


def test_nothing_is_withheld_outside_of_training():
    instances = make_instances(make_batch(), SURE, HELD_OUT)
    assert instances["valid"].tolist() == [[True, True, True], [True, True, False]]
    for name in ("clip_given", "dino_given", "text_given", "layout_given"):
        assert instances[name].all()


def test_what_is_withheld_belongs_to_the_sample_not_to_its_place_or_padding():
    uids = tuple(range(40))
    batch = make_batch(uids, [BOXES[0]] * 40)
    together = make_instances(batch, SURE, TRAINING)
    for uid in (0, 17, 39):
        alone = make_batch((uid,), [BOXES[0]])
        padded = alone | {
            name: torch.cat([alone[name], torch.ones_like(alone[name])], 1)
            for name in ("boxes", "depth", "clip", "dino", "object_text")
        }
        for name in ("clip_given", "dino_given", "text_given", "layout_given"):
            assert torch.equal(make_instances(alone, SURE, TRAINING)[name][0], together[name][uid])
            further = make_instances(padded, SURE, TRAINING)[name]
            assert torch.equal(further[0, :3] if further.ndim > 1 else further[0], together[name][uid])
    for name in ("clip_given", "text_given", "layout_given"):
        assert 0.3 < together[name].float().mean() < 0.7
    assert torch.equal(together["clip_given"], together["dino_given"])


def test_a_crop_of_zeros_is_a_missing_one():
    batch = make_batch()
    batch["clip"][0, 1] = 0
    instances = make_instances(batch, TINY, HELD_OUT)
    assert instances["clip_given"][0].tolist() == [True, False, True]
    assert instances["dino_given"].all()


def test_a_batch_without_objects_has_one_empty_slot():
    batch = make_batch(boxes=torch.zeros(2, 0, 4).tolist()) | {"boxes": torch.zeros(2, 0, 4)}
    for name, width in (("clip", 12), ("dino", 16), ("object_text", 20)):
        batch[name] = torch.zeros(2, 0, width)
    batch["depth"] = torch.zeros(2, 0, dtype=torch.uint8)
    instances = make_instances(batch, TINY, TRAINING)
    assert {name: tuple(value.shape[:2]) for name, value in instances.items() if value.ndim > 1} == dict.fromkeys(
        (name for name in instances if name != "layout_given"), (2, 1)
    )
    assert not instances["valid"].any()


def test_vectors_of_another_width_are_refused():
    """D25: 512 or 768 is a matter of the encoder, and is checked."""
    batch = make_batch()
    batch["clip"] = torch.zeros(2, 3, 512)
    with pytest.raises(ValueError, match=r"clip vectors of 512 numbers were given, expected instance\.clip_dim = 12"):
        make_instances(batch, TINY, TRAINING)


def test_more_objects_than_the_recipe_allows_are_refused():
    with pytest.raises(ValueError, match=r"9 objects was given, expected at most instance\.max_refs = 8"):
        make_instances(make_batch(boxes=[[[0.0, 0.0, 1.0, 1.0]] * 9] * 2), TINY, TRAINING)


def test_alpha_is_one_half_at_first_and_sees_crop_size_and_depth():
    predictor = AlphaPredictor(OWN)
    clip, boxes, depth = torch.randn(2, 3, 12), torch.tensor(BOXES), torch.tensor([[0, 1, 2]] * 2)
    assert (predictor(clip, boxes, depth) == 0.5).all()
    torch.nn.init.normal_(predictor.out.weight)
    alpha = predictor(clip, boxes, depth)
    assert alpha.dtype == torch.float32
    for other in ((clip + 1, boxes, depth), (clip, boxes / 2, depth), (clip, boxes, (depth + 1) % 3)):
        assert not torch.equal(predictor(*other)[0], alpha[0])


def test_area_is_the_part_of_the_picture():
    assert area(torch.tensor([[0.0, 0.0, 1.0, 0.5], [0.5, 0.5, 0.5, 0.9], [0.0] * 4])).tolist() == [0.5, 0.0, 0.0]


def test_points_lie_on_the_closed_box_x_outermost():
    points = box_points(torch.tensor([0.0, 0.2, 0.4, 1.0]), 3)
    assert torch.allclose(points[:, 0], torch.tensor([0.0] * 3 + [0.2] * 3 + [0.4] * 3))
    assert torch.allclose(points[:, 1], torch.tensor([0.2, 0.6, 1.0] * 3))


def test_fourier_features_are_sines_and_cosines_without_two_pi():
    features = fourier(torch.tensor(0.3), 16)
    for k in (0, 5, 15):
        angle = 0.3 * 100 ** (k / 16)
        assert features[2 * k] == pytest.approx(math.sin(angle), abs=1e-5)
        assert features[2 * k + 1] == pytest.approx(math.cos(angle), abs=1e-5)
    assert InstanceConfig().spatial_dim == 1024


def test_the_visual_feature_goes_from_clip_to_dino_with_a_gradient_in_alpha():
    """Section 1.3: a blend, not a switch."""
    torch.manual_seed(0)
    encoder, boxes = InstanceEncoder(OWN, 32), torch.tensor(BOXES)
    clip, dino = torch.randn(2, 3, 12), torch.randn(2, 3, 16)
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert torch.equal(encoder(boxes, clip, dino, zero), encoder(boxes, clip, dino + 1, zero))
    assert torch.equal(encoder(boxes, clip, dino, one), encoder(boxes, clip + 1, dino, one))
    alpha = torch.full((2, 3), 0.5, requires_grad=True)
    encoder(boxes, clip, dino, alpha)[..., 0].sum().backward()
    assert (alpha.grad.abs() > 0).all()


def test_nulls_stand_in_where_a_crop_is_missing_and_learn_there_only():
    nulls, clip, dino = NullReferences(OWN), torch.randn(1, 2, 12), torch.randn(1, 2, 16)
    given = torch.tensor([[True, False]])
    found_clip, found_dino = nulls(clip, dino, given, torch.ones_like(given))
    assert torch.equal(found_clip[0, 0], clip[0, 0])
    assert torch.equal(found_clip[0, 1], nulls.clip)
    assert torch.equal(found_dino, dino)
    (found_clip.sum() + found_dino.sum()).backward()
    assert nulls.clip.grad.sum() == 12
    assert not nulls.dino.grad.any()


def test_text_adds_nothing_at_first_and_nothing_where_there_is_none():
    text = TextContent(20, 32)
    given = torch.tensor([[True, False]])
    assert not text(torch.randn(1, 2, 20), given).any()
    torch.nn.init.normal_(text.projection.weight)
    torch.nn.init.normal_(text.projection.bias)
    found = text(torch.randn(1, 2, 20), given)
    assert found[0, 0].any()
    assert not found[0, 1].any()


def test_the_layout_head_starts_as_the_identity_and_weights_fall_with_alpha():
    z = torch.randn(2, 3, 32)
    assert torch.equal(LayoutHead(32)(z), z)
    torch.testing.assert_close(layout_weight(torch.tensor([0.0, 0.5, 1.0]), 0.2), torch.tensor([1.0, 0.6, 0.2]))
