"""The layout grounding score by hand and by a detector from a folder."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from stagecoach.data.encoding.tiny_encoders import seeded
from stagecoach.models.metrics.layout import GroundingDino, detected, iou, layout_grounding_score, read_detections
from stagecoach.models.metrics.metric import Absent, Unavailable, measured
from stagecoach.models.metrics.statistics import summarise

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "red", "ball", "chair")


def test_boxes_weigh_alike_and_count_from_an_overlap_of_a_half(tmp_path):
    found = {
        "a": [
            {"category": "ball", "box": [0.0, 0.0, 0.2, 0.8], "score": 0.9},  # IoU 0.5 and a bit more
            {"category": "ball", "box": [0.5, 0.5, 0.9, 0.9], "score": 0.4},
            {"category": "chair", "box": [0.6, 0.0, 1.0, 0.4], "score": 0.5},
        ],
        "b": [],
    }
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(found))
    read = read_detections(path)
    boxes = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.0, 0.0, 0.2, 0.7], [0.6, 0.0, 1.0, 0.3]])
    categories = ["ball", "ball", "chair"]
    one = layout_grounding_score(boxes, detected(read, "a", categories))
    # 0.08 / 0.24 is below a half; 0.14 / 0.16; 0.12 / 0.16.
    assert one[0].item() == pytest.approx(0.0 + 0.875 + 0.75)
    two = layout_grounding_score(boxes[:1], detected(read, "b", categories[:1]))
    assert [x.item() for x in two] == [0, 1]
    sums, counts = zip(*([x.item() for x in pair] for pair in (one, two)), strict=True)
    assert summarise(sums, counts).mean == pytest.approx(1.625 / 4)
    with pytest.raises(Unavailable, match="the detections name no picture 'c'"):
        detected(read, "c", categories)
    assert [x.item() for x in layout_grounding_score(torch.zeros(0, 4), [])] == [0, 0]


def test_an_overlap_of_exactly_a_half_counts_and_an_empty_box_has_none():
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    half = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.2, 0.2, 0.2, 0.9], [2.0, 2.0, 3.0, 3.0]])
    assert iou(box, half).tolist() == [0.5, 0.0, 0.0]
    assert layout_grounding_score(box, [half])[0].item() == 0.5


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"a": [{"category": "ball", "box": [0.5, 0.1, 0.2, 0.4], "score": 1.0}]}', "a: box .* found, expected x1"),
        ('{"a": [{"category": "ball", "box": [0.5, 0.1], "score": 1.0}]}', "a: box .* found, expected x1"),
        ('{"a": [{"category": "ball", "box": [10, 10, 200, 300], "score": 1.0}]}', "expected x1 y1 x2 y2 in 0..1"),
        ('{"a": [{"box": [0, 0, 1, 1]}]}', "not the JSON expected"),
        ("[]", "not the JSON expected"),
    ],
)
def test_a_file_that_is_none_of_detections_is_refused(tmp_path, content, reason):
    path = tmp_path / "detections.json"
    path.write_text(content)
    with pytest.raises(Unavailable, match=reason):
        read_detections(path)
    assert isinstance(measured(read_detections, tmp_path / "none.json"), Absent)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A tiny GroundingDINO of random weights: what it finds means nothing, that its boxes are read right does."""
    folder = tmp_path_factory.mktemp("detector")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            image_size=128,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(vocab_size=len(WORDS), hidden_size=16, **sizes),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=9,
        max_text_len=16,
    )
    seeded(GroundingDinoForObjectDetection, config, 0).save_pretrained(folder)
    tokenizer = BertTokenizerFast(vocab={word: k for k, word in enumerate(WORDS)}, model_max_length=16)
    size = {"shortest_edge": 160, "longest_edge": 256}
    GroundingDinoProcessor(GroundingDinoImageProcessorPil(size=size), tokenizer).save_pretrained(folder)
    return folder


def test_a_detector_from_a_folder_gives_boxes_of_the_picture_best_first(detector):
    picture = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    found = GroundingDino(detector, torch.device("cpu")).detect(picture, ["red ball", "Chair.", "red ball"])
    assert len(found) == 3
    assert torch.equal(found[0], found[2])
    processor = GroundingDinoProcessor.from_pretrained(detector)
    model = GroundingDinoForObjectDetection.from_pretrained(detector).eval()
    with torch.no_grad():
        inputs = processor(images=picture, text="chair.", return_tensors="pt")
        output = model(**inputs)
    scores = output.logits[0].sigmoid().amax(-1)
    kept = scores > 0.35
    x, y, w, h = output.pred_boxes[0][kept][scores[kept].argsort(descending=True)].unbind(-1)
    expected = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
    assert len(expected) > 0
    assert torch.allclose(found[1], expected, atol=1e-5)


def test_a_folder_without_a_detector_makes_the_score_absent(tmp_path):
    absent = measured(GroundingDino, tmp_path / "none", torch.device("cpu"))
    assert isinstance(absent, Absent)
    assert "no such folder" in absent.reason
