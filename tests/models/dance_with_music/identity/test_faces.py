"""Face crops: those that made the references, with gradients."""

import numpy as np
import pytest
import torch

from stagecoach.data.dance_with_music.skeleton import face_boxes, five_points
from stagecoach.data.dance_with_music.synthetic import render_dance
from stagecoach.data.encoding.face_encoder import TEMPLATE, align_face
from stagecoach.models.dance_with_music.identity.faces import crop_faces

SIZE = 256


@pytest.fixture(scope="module")
def dance():
    return render_dance(3, 0, 4, SIZE, SIZE)


def _tensors(dance):
    frames = torch.from_numpy(dance.video.copy()).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
    xy = torch.from_numpy(dance.points)[None].float()
    conf = torch.ones(xy.shape[:3])
    boxes, valid = face_boxes(dance.points, np.ones(dance.points.shape[:2]))
    assert valid.all()
    return frames, torch.from_numpy(boxes)[None], xy, conf


def test_faces_with_points_are_aligned_as_the_references_were(dance):
    frames, boxes, xy, conf = _tensors(dance)
    found = crop_faces(frames, boxes, xy, conf)[0]
    for k, image in enumerate(dance.video):
        expected = align_face(image, five_points(dance.points[k], np.ones(134)) * SIZE).astype(np.float32)
        assert np.abs((found[k].permute(1, 2, 0).numpy() + 1) * 127.5 - expected).max() < 2


def test_a_box_alone_puts_the_face_about_where_the_template_has_it():
    """Colours that are coordinates show where each pixel of the crop comes from."""
    dance = render_dance(3, 0, 4, SIZE, SIZE)
    boxes = _tensors(dance)[1]
    place = (torch.arange(SIZE) + 0.5) / SIZE
    y, x = torch.meshgrid(place, place, indexing="ij")
    frames = torch.stack([x, y, torch.zeros_like(x)]).expand(1, 4, 3, SIZE, SIZE)
    crops = crop_faces(frames, boxes)[0]
    for k in range(4):
        five = five_points(dance.points[k], np.ones(134))
        for point, (u, v) in zip(five, TEMPLATE, strict=True):
            seen = crops[k, :2, round(v), round(u)].numpy()
            face = float((boxes[0, k, 2:] - boxes[0, k, :2]).max())
            assert np.abs(seen - point).max() < 0.2 * face


def test_a_box_is_taken_as_a_square_of_its_longer_side():
    frames = torch.full((1, 1, 3, 64, 128), -1.0)
    frames[..., 16:48, 48:80] = 1.0
    side = 32 / 64
    box = torch.tensor([[[48 / 128, 0.25 + 0.12 * side, 80 / 128, 0.75 + 0.12 * side]]])
    crop = crop_faces(frames, box)
    assert crop.shape == (1, 1, 3, 112, 112)
    assert crop[..., 2:-2, 2:-2].min().item() == pytest.approx(1.0, abs=1e-5)
    wider = crop_faces(frames, box + torch.tensor([-8 / 128, 0, 8 / 128, 0]))
    assert wider[0, 0, 0, 56, 0].item() == pytest.approx(-1.0, abs=1e-5)
    assert crop_faces(frames, torch.tensor([[[-0.5, 0, -0.25, 1]]])).max().item() == pytest.approx(-1.0)


def test_what_was_not_found_falls_back_to_the_box(dance):
    frames, boxes, xy, conf = _tensors(dance)
    conf = conf.clone()
    conf[:, 1, 24 + 30] = 0.2
    xy = xy.clone()
    xy[:, 1, 24 + 30] = 0
    found = crop_faces(frames, boxes, xy, conf)
    assert torch.equal(found[:, 1], crop_faces(frames, boxes)[:, 1])
    assert torch.isfinite(found).all()


def test_gradients_reach_the_pixels_of_the_face_only(dance):
    frames, boxes, xy, conf = _tensors(dance)
    frames.requires_grad_()
    crop_faces(frames, boxes, xy, conf).square().sum().backward()
    assert frames.grad.abs().sum((0, 1, 2))[-20:].max() == 0
    middle = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2 * SIZE
    for k, (x, y) in enumerate(middle.round().long().tolist()):
        assert frames.grad[0, k, :, y, x].abs().max() > 0
