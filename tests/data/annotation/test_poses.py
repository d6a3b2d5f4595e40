"""Poses from local networks: closed-form ones find what was drawn, so that every crop and every number is checked."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stagecoach.data.annotation.people import PersonDetector, TransformersDetector, YoloxDetector, track_person
from stagecoach.data.annotation.poses import PoseEstimator, SimccModel, VitPoseModel, open_pose_estimator, pose_entries
from stagecoach.data.dance_with_music.skeleton import BODY
from stagecoach.data.encoding.encoders import EncoderError
from stagecoach.data.files import sha256_file
from tests.tiny_annotators import draw_person, write_onnx_poses, write_suppressed_detector, write_vitpose
from tests.tiny_vision_language import write_rt_detr

BOXES = [(40, 20, 100, 150), (44, 22, 104, 152), (50, 22, 110, 152)]
RED, BLUE = [(60, 50), (64, 52), (70, 52)], [(80, 120), (84, 122), (90, 122)]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return write_onnx_poses(tmp_path_factory.mktemp("networks"))


def frames():
    return [draw_person(180, 160, *found) for found in zip(BOXES, RED, BLUE, strict=True)]


def test_yolox_finds_the_box_through_letterbox_and_grid(networks):
    """180 x 160 into 64 x 64: a pixel of the square is 2.8 of the picture."""
    for image, box in zip(frames(), BOXES, strict=True):
        (found,) = YoloxDetector(networks[0]).boxes(image)
        assert np.abs(found[:4] - box).max() <= 3
        assert found[4] == pytest.approx(0.9)
    assert YoloxDetector(networks[0]).boxes(np.zeros((180, 160, 3), np.uint8)).shape == (0, 5)


def test_yolox_with_its_suppression_inside_gives_the_same_box_and_persons_alone(tmp_path):
    write_suppressed_detector(tmp_path / "yolox.onnx")
    for image, box in zip(frames(), BOXES, strict=True):
        (found,) = YoloxDetector(tmp_path / "yolox.onnx").boxes(image)
        assert np.abs(found[:4] - box).max() <= 3
        assert found[4] == pytest.approx(0.8)


def test_rt_detr_gives_the_persons_among_its_boxes_in_pixels(tmp_path, monkeypatch):
    write_rt_detr(tmp_path)
    detector = TransformersDetector(tmp_path)
    boxes = detector.boxes(frames()[0])
    assert len(boxes)
    assert (boxes[:, 4] > 0.3).all()
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.2, 0.42]]])
    logits = torch.tensor([[[3.0, -3.0], [-3.0, 4.0], [2.0, -3.0]]])
    made = SimpleNamespace(logits=logits, pred_boxes=boxes)
    monkeypatch.setattr(detector, "_model", lambda **given: made)
    detector._model.dtype = torch.float32
    (found,) = detector.boxes(frames()[0])  # 180 x 160; the second is a bicycle, the third nearly the first
    np.testing.assert_allclose(found, [64, 54, 96, 126, 1 / (1 + np.exp(-3))], rtol=1e-5)
    with pytest.raises(EncoderError, match=r"a detector of \['bicycle', 'car'\] ... found, expected one that"):
        TransformersDetector(without_persons(tmp_path))


def without_persons(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "car", "1": "bicycle"}, "label2id": {"car": 0, "bicycle": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_simcc_points_come_back_to_the_pixels_they_were_drawn_at(networks):
    """Crops of 96 x 72 of boxes 1.25 times as large: a pixel of the crop is 1.7, half a pixel of SimCC 0.85."""
    points = SimccModel(networks[1]).points(frames(), [np.array(box, float) for box in BOXES])
    assert points.shape == (3, 133, 3)
    for found, red, blue in zip(points, RED, BLUE, strict=True):
        upper = np.delete(found[:, :2], np.s_[11:23], 0)  # both spots are seen; below, the row is always blue's
        assert np.abs(upper[0:11:2] - red).max() <= 1.0
        assert np.abs(upper[11::2] - blue).max() <= 1.0
        assert np.abs(found[11:23, 1] - blue[1]).max() <= 1.0
    assert points[..., 2].min() > 0.8


def test_estimate_gives_dwpose_points_as_fractions_and_zeros_where_nobody_is(networks):
    empty = np.zeros((180, 160, 3), np.uint8)
    poses = open_pose_estimator(networks[1], networks[0]).estimate(iter([empty, *frames()]))
    assert poses.shape == (4, 134, 3)
    assert poses.dtype == np.float32
    assert not poses[0].any()
    for found, red, blue in zip(poses[1:], RED, BLUE, strict=True):
        size = np.array([160, 180])
        assert np.abs(found[0, :2] * size - red).max() <= 2  # the nose is COCO's 0
        assert np.abs(found[2, :2] * size - red).max() <= 2  # the right shoulder is COCO's 6
        assert np.abs(found[5, :2] * size - blue).max() <= 2  # the left one COCO's 5
        middle = (np.array(red) + blue) / 2
        assert np.abs(found[1, :2] * size - middle).max() <= 2  # the neck
    assert poses[1:, :, 2].min() > 0.7


def test_entries_name_the_hash_of_each_file(networks, tmp_path):
    entries = pose_entries(networks[1], networks[0])
    assert entries["pose"]["sha256"] == sha256_file(networks[1])
    assert entries["person_detector"]["path_name"] == "yolox.onnx"
    with pytest.raises(EncoderError, match=r"none.onnx: missing, expected a pose network"):
        pose_entries(tmp_path / "none.onnx", networks[0])
    with pytest.raises(EncoderError, match=r"expected one from \[N, 3, H, W\] to 133 points"):
        SimccModel(networks[0]).points(frames()[:1], [np.array(BOXES[0], float)])
    with pytest.raises(EncoderError, match="expected YOLOX's"):
        YoloxDetector(networks[1])


class Listed(PersonDetector):
    """A detector that has been told what to find."""

    def __init__(self, found):
        self._found = iter(found)

    def boxes(self, image):
        return np.array(next(self._found), float).reshape(-1, 5)


def test_the_largest_person_is_followed_and_short_gaps_are_bridged():
    large, small = [0, 0, 40, 80, 0.5], [100, 0, 120, 40, 0.9]
    moved = [6, 0, 46, 80, 0.4]
    larger = [100, 0, 160, 120, 0.9]
    found = [[small, large], [small], [], [larger, moved], *[[]] * 6, [small]]
    boxes = [box for _, box in track_person(list(range(len(found))), Listed(found))]
    np.testing.assert_allclose(boxes[:4], [large[:4], [2, 0, 42, 80], [4, 0, 44, 80], moved[:4]])
    assert boxes[4:10] == [None] * 6
    np.testing.assert_allclose(boxes[10], small[:4])


@pytest.mark.parametrize("count", [17, 133])
def test_vitpose_runs_from_its_folder(count, tmp_path):
    write_vitpose(tmp_path, count)
    estimator = PoseEstimator(VitPoseModel(tmp_path), Listed([[[*box, 0.9]] for box in BOXES]))
    poses = estimator.estimate(frames())
    assert poses.shape == (3, 134, 3)
    shown = poses[..., 2] > 0
    assert shown[:, BODY].any()
    assert shown[:, 24:].any() == (count == 133)


@pytest.mark.parametrize(("count", "expert"), [(17, 0), (133, 5)])
def test_vitpose_with_experts_asks_the_one_of_its_points(count, expert, tmp_path):
    """Changed weights change the points of that expert's network alone; 0 is COCO's, 5 the whole body's."""
    write_vitpose(tmp_path, count, experts=6)
    box = [np.array(BOXES[0], float)]

    def points(changed=None):
        model = VitPoseModel(tmp_path)
        for layer in model._model.backbone.encoder.layer if changed is not None else ():
            layer.mlp.experts[changed].weight.mul_(-40)
        return model.points(frames()[:1], box)

    plain = points()
    assert plain.shape == (1, count, 3)
    np.testing.assert_array_equal(points(1), plain)
    assert np.abs(points(expert) - plain).max() > 1e-3


def test_peaks_of_vitpose_heatmaps_come_back_to_their_pixels(tmp_path, monkeypatch):
    """The crop is the box at 3 : 4, 1.25 times as large; its corners are the middles of a heatmap's corner cells."""
    write_vitpose(tmp_path)
    model = VitPoseModel(tmp_path)
    y, x = np.mgrid[:16, :12]
    peak = np.exp(-((x - 3.5) ** 2 + (y - 9) ** 2) / 2 / 4)
    heatmaps = torch.from_numpy(np.broadcast_to(peak, (1, 17, 16, 12)).astype(np.float32).copy())
    monkeypatch.setattr(model, "_model", lambda **given: SimpleNamespace(heatmaps=heatmaps))
    model._model.dtype = torch.float32
    (found,) = model.points(frames()[:1], [np.array(BOXES[0], float)])
    middle, size = np.array([70, 85]), 1.25 * 130 * np.array([0.75, 1])
    wanted = middle + (np.array([3.5, 9]) - [5.5, 7.5]) / [11, 15] * size
    np.testing.assert_allclose(found[:, :2], np.broadcast_to(wanted, (17, 2)), atol=1.0)
