"""Plain pictures become MoviePostProduction's raw layout: captions and boxes."""

import json

import numpy as np
from PIL import Image

from stagecoach.data.annotation.boxes import BoxDetector, FoundObject, PhraseDetector, box_entry
from stagecoach.data.annotation.captions import Captioner
from stagecoach.data.annotation.run import AnnotateOptions, annotate
from stagecoach.data.movie_post_production.annotate import AnnotateMoviePostProduction, AnnotatePictures
from stagecoach.data.movie_post_production.captions import read_captions
from tests.data.building.toy_job import hashes
from tests.tiny_annotators import write_blip, write_owlv2


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
