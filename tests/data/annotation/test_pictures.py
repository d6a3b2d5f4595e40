"""Plain pictures become MoviePostProduction's raw layout: captions and boxes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from stagecoach.data.annotation.boxes import BoxDetector, FoundObject, PhraseDetector, box_entry
from stagecoach.data.annotation.captions import Captioner
from stagecoach.data.annotation.run import AnnotateOptions, annotate
from stagecoach.data.encoding.encoders import EncoderError
from stagecoach.data.movie_post_production.annotate import AnnotateMoviePostProduction, AnnotatePictures
from stagecoach.data.movie_post_production.captions import read_captions
from tests.data.building.toy_job import hashes
from tests.tiny_annotators import write_blip, write_owlv2
from tests.tiny_vision_language import write_grounding_dino


class Brightest(BoxDetector):
    """An oracle: the box of what is white."""

    def find(self, image, phrases):
        rows, columns = (image > 200).all(2).nonzero()
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / (image.shape[1::-1] * 2)
        return [FoundObject(tuple(box.tolist()), phrases[0], 0.8)]


class Named(Captioner):
    def caption(self, frames):
        return f"{len(frames)} picture of {frames[0].shape[1]} columns"


def pictures(folder):
    folder.mkdir()
    for number, width in enumerate((80, 100)):
        image = np.zeros((60, width, 3), np.uint8)
        image[10:40, 20:60] = 255
        Image.fromarray(image).save(folder / f"p{number}.png")
    return folder


def test_pictures_get_captions_and_the_true_boxes_which_the_reader_takes(tmp_path):
    raw, output = pictures(tmp_path / "plain"), tmp_path / "raw"
    options = AnnotatePictures(captioner=tmp_path, detector=tmp_path, phrases=("screen",))
    job = AnnotateMoviePostProduction(raw, output, options)
    job.use(Named(), Brightest())
    job.start, job.models = (lambda: None), (dict)
    assert annotate(job, AnnotateOptions()).annotated == 2
    described, bad, _ = read_captions(output)
    assert not bad
    assert [picture.caption for picture in described] == ["1 picture of 80 columns", "1 picture of 100 columns"]
    for picture, width in zip(described, (80, 100), strict=True):
        (one,) = picture.objects
        np.testing.assert_allclose(one.box, np.array([20, 10, 60, 40]) / [width, 60, width, 60], atol=1e-6)
        assert one.category == "screen"
    before = hashes(output)
    assert annotate(job, AnnotateOptions()).annotated == 0
    assert hashes(output) == before
    assert job.preview(job.items()[0]).shape == (384, 512, 3)


def test_tiny_owlv2_and_blip_annotate_pictures_in_place(tmp_path):
    raw = pictures(tmp_path / "plain")
    write_owlv2(tmp_path / "owlv2")
    write_blip(tmp_path / "blip")
    options = AnnotatePictures(tmp_path / "blip", tmp_path / "owlv2", ("ball", "room"), threshold=0.0)
    job = AnnotateMoviePostProduction(raw, raw, options)
    assert annotate(job, AnnotateOptions()).annotated == 2
    noted = json.loads((raw / "annotations.json").read_text())
    assert {entry["name"] for entry in noted["models"].values()} == {
        "BlipForConditionalGeneration",
        "Owlv2ForObjectDetection",
    }
    described, bad, _ = read_captions(raw)
    assert (len(described), bad) == (2, [])
    for picture in described:
        assert {one.category for one in picture.objects} <= {"ball", "room"}
        for one in picture.objects:
            assert 0 <= one.box[0] < one.box[2] <= 1
    assert job.items()[0].record == raw / "p0.png"
    assert annotate(job, AnnotateOptions()).annotated == 0
    assert box_entry(tmp_path / "owlv2")["name"] == "Owlv2ForObjectDetection"
    found = PhraseDetector(tmp_path / "owlv2", 0.0).find(np.zeros((60, 80, 3), np.uint8), ["ball", "room"])
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_grounding_dino_names_each_box_by_the_phrase_whose_token_is_surest(tmp_path, monkeypatch):
    phrases = ["red ball", "room", "dog"]
    write_grounding_dino(tmp_path, phrases)
    detector = PhraseDetector(tmp_path, 0.0)
    image = np.zeros((60, 80, 3), np.uint8)
    assert {one.phrase for one in detector.find(image, phrases)} <= set(phrases)
    assert box_entry(tmp_path)["name"] == "GroundingDinoForObjectDetection"

    # [CLS] red ball . room . dog . [SEP]; the first query is sure of the start and a full stop too, which say nothing
    logits = torch.full((1, 3, 32), -torch.inf)
    logits[..., :9] = -4.0
    logits[0, 0, [0, 2, 3]] = torch.tensor([9.0, 1.0, 9.0])
    logits[0, 1, [4, 6]] = torch.tensor([2.0, 1.9])
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.2], [0.2, 0.3, 0.2, 0.4], [0.8, 0.8, 0.2, 0.2]]])
    made = SimpleNamespace(logits=logits, pred_boxes=boxes)
    monkeypatch.setattr(detector, "_model", lambda **given: made)
    detector._model.dtype, detector._model.config = torch.float32, SimpleNamespace(max_text_len=32)
    detector._threshold = 0.3
    found = detector.find(image, phrases)
    assert [one.phrase for one in found] == ["room", "red ball"]
    np.testing.assert_allclose([one.box for one in found], [[0.1, 0.1, 0.3, 0.5], [0.3, 0.4, 0.7, 0.6]], atol=1e-6)
    np.testing.assert_allclose([one.score for one in found], 1 / (1 + np.exp([-2.0, -1.0])), atol=1e-4)
    assert detector.find(image, ["red. ball", "room", "dog"])[1].phrase == "red. ball"
    detector._model.config.max_text_len = 8
    with pytest.raises(EncoderError, match=r"3 phrases as 9 tokens with 3 full stops found, expected at most 8 tokens"):
        detector.find(image, phrases)


def test_boxes_of_owlv2_come_back_from_the_square_that_it_pads_pictures_to(tmp_path, monkeypatch):
    """80 x 60 lies in the upper left of 80 x 80."""
    write_owlv2(tmp_path)
    detector = PhraseDetector(tmp_path, 0.3)
    logits = torch.tensor([[[2.0, -2.0], [-2.0, -1.0]]])
    made = SimpleNamespace(logits=logits, pred_boxes=torch.tensor([[[0.5, 0.375, 0.25, 0.375], [0.5, 0.5, 0.1, 0.1]]]))
    monkeypatch.setattr(detector, "_model", lambda **given: made)
    detector._model.dtype = torch.float32
    (one,) = detector.find(np.zeros((60, 80, 3), np.uint8), ["ball", "room"])
    assert one.phrase == "ball"
    np.testing.assert_allclose(one.box, [0.375, 0.25, 0.625, 0.75], atol=1e-6)
