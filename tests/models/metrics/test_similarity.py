"""CLIP and DINOv2 from folders, faces that were detected."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stagecoach.data.encoding.face_encoder import TEMPLATE
from stagecoach.data.encoding.tiny_encoders import seeded, tiny_clip_text_config, tiny_tokenizer
from stagecoach.models.metrics.identity import (
    face_detection_rate,
    face_recall,
    face_similarity,
    face_vectors,
    pose_faces,
)
from stagecoach.models.metrics.metric import Unavailable, measured
from stagecoach.models.metrics.similarity import ClipModel as Clip
from stagecoach.models.metrics.similarity import DinoModel, crop, reference_similarity, similarity

CPU = torch.device("cpu")
TEXTS = ["a red ball", "a blue chair in the rain"]


def _pictures() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (40, 56, 3), np.uint8), random.integers(0, 90, (64, 48, 3), np.uint8)]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = tiny_tokenizer(TEXTS, "clip")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=tiny_clip_text_config(tokenizer, 16).to_dict() | {"projection_dim": 12},
        vision_config={**sizes, "image_size": 28, "patch_size": 14, "projection_dim": 12},
        projection_dim=12,
    )
    seeded(CLIPModel, config, 3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    return folder


def test_clip_scores_equal_the_cosines_of_the_library(clip_folder):
    clip = Clip(clip_folder, CPU)
    pictures, texts = clip.pictures(_pictures()), clip.texts(TEXTS)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    pixels = processor(images=[Image.fromarray(p) for p in _pictures()], return_tensors="pt").pixel_values
    tokens = tiny_tokenizer(TEXTS, "clip")(TEXTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    cosines = expected.logits_per_image / model.logit_scale.exp()
    found = F.normalize(pictures, dim=-1) @ F.normalize(texts, dim=-1).T
    assert torch.allclose(found, cosines, atol=1e-5)
    total, count = similarity(pictures, texts)
    assert total.item() == pytest.approx(100 * cosines.trace().item(), abs=1e-3)
    assert count.item() == 2
    assert similarity(pictures, pictures)[0].item() == pytest.approx(200, abs=1e-3)


def test_dino_looks_at_the_whole_picture_squashed(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    model = seeded(Dinov2Model, Dinov2Config(**sizes, image_size=28, patch_size=14), 1)
    model.save_pretrained(tmp_path)
    dino = DinoModel(tmp_path, CPU)
    found = dino.pictures(_pictures())
    pixels = []
    for picture in _pictures():
        square = np.asarray(Image.fromarray(picture).resize((28, 28), Image.Resampling.BICUBIC)) / 255
        pixels.append(((square - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1))
    with torch.no_grad():
        tokens = model(torch.from_numpy(np.stack(pixels)).float()).last_hidden_state[:, 0]
    assert torch.allclose(found, F.normalize(tokens, dim=-1), atol=1e-4)


def test_folders_of_something_else_make_the_score_absent(tmp_path, clip_folder):
    assert "no such folder" in measured(Clip, tmp_path / "clip", CPU).reason
    (tmp_path / "config.json").write_text("{}")
    assert measured(Clip, tmp_path, CPU).reason.startswith(f"{tmp_path}: ")
    with pytest.raises(Unavailable, match=f"{tmp_path}: "):
        DinoModel(tmp_path, CPU)
    with pytest.raises(Unavailable, match=r"no weights found|cannot be loaded"):
        DinoModel(clip_folder, CPU)


def test_a_reference_is_looked_for_among_the_three_best_detections():
    references = torch.eye(4)[:3]
    candidates = [
        torch.tensor([[0.0, 1, 0, 0], [3, 4, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]),
        torch.zeros(0, 4),
        torch.eye(4),
    ]
    total, count = reference_similarity(candidates, references)
    assert total.item() == pytest.approx(60 + 0 + 100)
    assert count.item() == 3


def test_a_crop_has_at_least_a_pixel_and_stays_inside():
    picture = np.arange(20 * 10 * 3).reshape(20, 10, 3)
    assert np.array_equal(crop(picture, (0.2, 0.25, 0.5, 0.5)), picture[5:10, 2:5])
    assert crop(picture, (1.0, 1.0, 1.0, 1.0)).shape == (1, 1, 3)
    assert crop(picture, (-0.5, -0.5, 2.0, 2.0)).shape == (20, 10, 3)


def test_identity_is_the_best_detected_face_and_the_rate_says_how_many_frames_had_one():
    reference = torch.tensor([1.0, 0.0])
    faces = [torch.tensor([[0.0, 2.0], [3.0, 4.0]]), torch.zeros(0, 2), torch.tensor([[5.0, 0.0]]), torch.zeros(0, 2)]
    total, count = face_similarity(reference, faces)
    assert total.item() == pytest.approx(1.6)
    assert count.item() == 2
    assert [x.item() for x in face_detection_rate(faces)] == [2, 4]
    assert [x.item() for x in face_similarity(reference, faces[1:2])] == [0, 0]
    total, count = face_recall(torch.eye(2), faces[0])
    assert total.item() == pytest.approx(60 + 100)
    assert [x.item() for x in face_recall(torch.eye(2), faces[1])] == [0, 2]


class _Means:
    def encode(self, faces):
        return np.array([[f.mean(), f[:20].mean()] for f in faces], np.float32).reshape(-1, 2)


def test_faces_are_aligned_by_the_points_of_a_pose():
    picture = np.zeros((224, 336, 3), np.uint8)
    picture[112:, 168:280] = 200
    points = np.zeros((134, 2))
    conf = np.zeros(134)
    face = slice(24, 92)
    conf[face] = 1.0
    eyes, corners = TEMPLATE + np.array([168, 112]), (48, 54)
    points[24 + 36 : 24 + 42], points[24 + 42 : 24 + 48] = eyes[0], eyes[1]
    points[24 + 30], points[24 + corners[0]], points[24 + corners[1]] = eyes[2:]
    found = pose_faces(points / [336, 224], conf, 224, 336)
    assert np.allclose(found[0], eyes)
    assert torch.allclose(face_vectors(_Means(), picture, found), torch.tensor([[200.0, 200.0]]), atol=3)
    assert pose_faces(points, np.zeros(134), 224, 336) == []
    assert face_vectors(_Means(), picture, []).shape == (0, 2)
