"""Boxes to tokens, shares of overlapping references, segments; the cases R3, R6 and R8 of the design page."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.models.movie_post_production.layout.regions import (
    box_centres,
    make_segments,
    owners,
    row_weights,
    shares,
    token_cover,
    token_rectangles,
)
from stagecoach.models.movie_post_production.modulation import spread
from stagecoach.models.movie_post_production.network import pack, unpack


def tokens(box, h=4, w=4):
    cover = token_cover(torch.tensor([[box]]), torch.tensor([[True]]), h, w)
    return cover[0, 0].nonzero().flatten().tolist()


def test_boxes_cover_the_tokens_of_the_reference_case():
    """R3."""
    assert tokens([0.25, 0.25, 0.75, 0.75]) == [5, 6, 9, 10]
    assert tokens([0.0, 0.0, 1.0, 1.0]) == list(range(16))
    assert tokens([0.5, 0.0, 1.0, 0.5], 2, 6) == [3, 4, 5]


def test_a_box_in_the_far_corner_has_a_token():
    """R3: InstanceAssemble's release gives it none."""
    assert tokens([1.0, 1.0, 1.0, 1.0]) == [15]
    assert tokens([0.3, 0.3, 0.31, 0.31]) == [5]


@given(st.tuples(*[st.floats(0, 1, width=32)] * 4), st.integers(1, 9), st.integers(1, 9))
def test_any_box_is_a_rectangle_of_at_least_one_token_inside_the_picture(corners, h, w):
    xs, ys = sorted(corners[:2]), sorted(corners[2:])
    x1, y1, x2, y2 = token_rectangles(torch.tensor([xs[0], ys[0], xs[1], ys[1]]), h, w).tolist()
    assert 0 <= x1 < x2 <= w
    assert 0 <= y1 < y2 <= h


def test_padding_covers_nothing():
    """D9."""
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])
    assert token_cover(boxes, torch.tensor([[True, False]]), 4, 4).sum(-1).tolist() == [[16, 0]]


def test_layout_tokens_stand_in_the_middle_of_their_boxes():
    boxes = torch.tensor([[0.25, 0.25, 0.75, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert box_centres(boxes, 4, 4).tolist() == [[0.0, 2.5, 2.0], [0.0, 3.5, 3.5]]


def test_overlapping_references_are_averaged():
    """R8."""
    owned = torch.zeros(1, 2, 6, dtype=torch.bool)
    owned[0, 0, :4] = owned[0, 1, 2:5] = True
    share, strength = shares(torch.ones(1, 2), owned)
    assert spread(share, torch.tensor([[[2.0], [6.0]]])).flatten().tolist() == [2, 2, 4, 4, 6, 0]
    assert strength.flatten().tolist() == [1, 1, 1, 1, 1, 0]


def test_share_times_strength_is_the_average_of_weighted_references():
    g = torch.Generator().manual_seed(0)
    owned, weight = torch.rand(2, 5, 30, generator=g) < 0.4, torch.rand(2, 5, generator=g)
    weight[0, 0] = 0.0
    share, strength = shares(weight, owned)
    expected = weight.unsqueeze(-1) * owned / owned.sum(1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(share * strength.transpose(1, 2), expected)
    nobody = shares(torch.zeros(2, 5), owned)
    assert not nobody[0].any()
    assert not nobody[1].any()


def test_with_depth_the_nearest_reference_owns_a_token():
    cover = torch.ones(1, 3, 4, dtype=torch.bool)
    cover[0, 0, 2:] = False
    depth = torch.tensor([[0, 1, 1]])
    assert owners(cover, depth, "depth")[0].int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert torch.equal(owners(cover, depth, "average"), cover)


@pytest.mark.parametrize("packed", [False, True])
def test_segments_are_each_reference_followed_by_its_tokens(packed):
    cover = torch.zeros(2, 2, 5, dtype=torch.bool)
    cover[0, 0, [1, 3]] = cover[0, 1, 4] = cover[1, 1, :4] = True
    segments = make_segments(cover, packed, "cpu")
    index = segments["index"]
    if packed:
        assert segments["starts"].dtype == torch.int32
        pieces = index.tensor_split(segments["starts"][1:-1].tolist())
        assert int(segments["longest"]) == 5
    else:
        pieces = [row[keep] for row, keep in zip(index, segments["keep"], strict=True)]
    # A table of four references, then the tokens of both pictures.
    assert [piece.tolist() for piece in pieces] == [[0, 4 + 1, 4 + 3], [1, 4 + 4], [2], [3, 9, 10, 11, 12]]
    share = torch.arange(20.0).view(2, 2, 5)
    weights = row_weights(segments, share)
    kept = weights if packed else weights[segments["keep"]]
    assert kept.tolist() == [1, 1, 3, 1, 9, 1, 1, 15, 16, 17, 18]
    assert packed or not weights[~segments["keep"]].any()


def test_a_picture_without_any_box_has_segments_of_one():
    for packed in (False, True):
        segments = make_segments(torch.zeros(1, 1, 4, dtype=torch.bool), packed, "cpu")
        assert segments["index"].flatten().tolist() == [0]


def test_latents_are_packed_as_in_the_reference_case():
    """R6."""
    latent = torch.arange(32.0).view(1, 2, 4, 4)
    assert pack(latent)[0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    assert torch.equal(unpack(pack(latent), 2, 2), latent)
    wide = torch.randn(2, 3, 4, 10)
    assert torch.equal(unpack(pack(wide), 2, 5), wide)
