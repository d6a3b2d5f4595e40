"""Faces are aligned as insightface aligns them, and go through any ONNX model of ArcFace's shape."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stagecoach.data.encoding.encoders import EncoderError
from stagecoach.data.encoding.face_encoder import SIZE, TEMPLATE, FaceEncoder, align_face, face_entry, similarity


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Equations 38 to 43 of the paper, by singular values, as scikit-image has them."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a / len(a))
    sign = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    turn = u @ sign @ vt
    turn *= (s * np.diag(sign)).sum() / a.var(0).sum()
    return np.concatenate([turn, (target.mean(0) - turn @ source.mean(0))[:, None]], 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_similarity_is_umeyamas(seed):
    random = np.random.default_rng(seed)
    points = TEMPLATE * random.uniform(0.5, 4) + random.normal(size=(5, 2)) * 4 + random.uniform(0, 300, 2)
    np.testing.assert_allclose(similarity(points, TEMPLATE), umeyama(points, TEMPLATE), rtol=1e-9, atol=1e-9)


def test_points_at_one_position_have_no_similarity():
    with pytest.raises(ValueError, match="5 points at one position"):
        similarity(np.ones((5, 2)), TEMPLATE)


def test_the_five_points_come_to_lie_on_the_template():
    """Dots at the points of a turned and enlarged face are found again where ArcFace wants them."""
    angle, scale = 0.4, 2.0
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = TEMPLATE @ turn.T + [120, 40]
    rows, columns = np.mgrid[:400, :500]
    image = np.zeros((400, 500, 3), np.uint8)
    for k, (x, y) in enumerate(points):
        spot = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 4.0**2))
        image[..., k % 3] = np.maximum(image[..., k % 3], spot)
    aligned = align_face(image, points).astype(float)
    assert aligned.shape == (SIZE, SIZE, 3)
    for k, (x, y) in enumerate(TEMPLATE):
        low, left = round(y) - 6, round(x) - 6
        part = aligned[low : low + 13, left : left + 13, k % 3]
        mass = part.sum()
        found = left + (part.sum(0) @ np.arange(13)) / mass, low + (part.sum(1) @ np.arange(13)) / mass
        assert found == pytest.approx((x, y), abs=0.15)


def test_an_upright_template_is_cut_out_as_it_is():
    image = np.random.default_rng(0).integers(0, 255, (130, 140, 3)).astype(np.uint8)
    aligned = align_face(image, TEMPLATE + np.array([7, 3])).astype(int)
    assert np.abs(aligned - image[3 : 3 + SIZE, 7 : 7 + SIZE]).max() <= 1, "but for rounding"


def mean_model(path, size=SIZE, out=512):
    """Mean of each channel, repeated: tells normalisation and the order of the channels."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["in"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["out"]),
    ]
    weight = np.zeros((3, out), np.float32)
    weight[[0, 1, 2], [0, 1, 2]] = 1
    given = helper.make_tensor_value_info("in", TensorProto.FLOAT, ["N", 3, size, size])
    graph = helper.make_graph(
        nodes,
        "g",
        [given],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", out])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_pixels_are_normalised_as_insightface_does_it(tmp_path):
    """RGB, (x - 127.5) / 127.5."""
    face = np.zeros((SIZE, SIZE, 3), np.uint8) + np.array([255, 0, 51], np.uint8)
    encoder = FaceEncoder(mean_model(tmp_path / "arc.onnx"))
    made = encoder.encode([face] * 70)
    assert made.shape == (70, 512)
    np.testing.assert_allclose(made[69, :3], [1.0, -1.0, -0.6], atol=1e-4)
    assert encoder.encode([]).shape == (0, 512)
    assert face_entry(tmp_path / "arc.onnx")["path_name"] == "arc.onnx"


def test_other_files_are_refused(tmp_path):
    with pytest.raises(EncoderError, match=r"none\.onnx: no such file"):
        FaceEncoder(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    with pytest.raises(EncoderError, match=r"bad\.onnx: not loadable as an ONNX model"):
        FaceEncoder(tmp_path / "bad.onnx")
    with pytest.raises(EncoderError, match=r"small\.onnx: a model from \[3, 64, 64\] to \[512\] found"):
        FaceEncoder(mean_model(tmp_path / "small.onnx", size=64))
