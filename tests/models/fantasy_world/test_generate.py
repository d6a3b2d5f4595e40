"""Requests answered with files: what is in them, and what is refused before anything is loaded."""

import json
import re

import numpy as np
import pytest
from diffusers import WanTransformer3DModel
from PIL import Image

from stagecoach.data.encoding.tiny_encoders import write_wan_encoders
from stagecoach.data.fantasy_world.camera_files import load_cameras
from stagecoach.data.fantasy_world.readers import read_frames
from stagecoach.data.outputs.point_cloud import read_ply
from stagecoach.models import get_family
from stagecoach.models.generation import GenerationOptions, Source
from stagecoach.models.weights import open_weights
from tests.models.fantasy_world.conftest import with_base
from tests.models.fantasy_world.test_pipeline import image_to_video
from tests.models.weights.held import hold

PROMPT = "a red ball on a table"
HERE = Source("here")
PARTS = ("vae", "text_encoder", "tokenizer", "image_encoder")
FILES = {"video.mp4", "depth.mp4", "depth.npz", "points.ply", "cameras.json", "cameras_given.json", "contact.png"}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan") / "encoders"
    frames = np.random.default_rng(1).integers(0, 256, (6, 64, 96, 3), np.uint8)
    write_wan_encoders(folder, frames, [PROMPT], 0)
    return folder


@pytest.fixture(scope="module")
def generation(tiny, encoders, tmp_path_factory):
    held = hold(tmp_path_factory.mktemp("run"), "fantasy_world", config=tiny)

    def make(stage=2):
        weights = open_weights(held.run / f"stage{stage}" / "adapter")
        options = GenerationOptions(components={name: encoders / name for name in PARTS}, steps=2)
        return get_family("fantasy_world").generation(weights, options)

    return make


def answer(generation, folder, entry, source=HERE):
    request = generation.parse(entry, source)
    folder.mkdir()
    return request, generation.answer(request, folder), {path.name for path in folder.iterdir()}


def test_a_request_becomes_a_video_with_depth_points_and_cameras(generation, tmp_path):
    drawing = generation()
    drawing.load()
    entry = {"id": "ball", "prompt": PROMPT, "camera": "pan:degrees=20", "seed": 3}
    request, facts, files = answer(drawing, tmp_path / "a", entry)
    assert files - {"points.glb"} == FILES
    video = np.stack(list(read_frames(tmp_path / "a" / "video.mp4")))
    assert video.shape == (9, 64, 96, 3)
    assert len(read_ply(tmp_path / "a" / "points.ply").points) == facts["points"]
    assert np.load(tmp_path / "a" / "depth.npz")["depth"].shape == (9, 64, 96)
    given = load_cameras(tmp_path / "a" / "cameras_given.json", 9, 64, 96, 16)
    np.testing.assert_allclose(given.extrinsics, request.camera.extrinsics, atol=1e-9)
    predicted = [frame["w2c"] for frame in json.loads((tmp_path / "a" / "cameras.json").read_text())["frames"]]
    assert not np.allclose(predicted, given.extrinsics, atol=1e-3)
    answer(drawing, tmp_path / "b", entry)
    assert (tmp_path / "b" / "video.mp4").read_bytes() == (tmp_path / "a" / "video.mp4").read_bytes()
    answer(drawing, tmp_path / "c", entry | {"seed": 4})
    assert (tmp_path / "c" / "video.mp4").read_bytes() != (tmp_path / "a" / "video.mp4").read_bytes()

    # The geometry of that video, by the weights of the first stage.
    reading = generation(stage=1)
    reading.load()
    _, facts, files = answer(reading, tmp_path / "d", {"video": "a/video.mp4"}, Source("here", tmp_path))
    assert facts["video"] == "given"
    assert files - {"points.glb"} == FILES - {"cameras_given.json"}
    again = np.stack(list(read_frames(tmp_path / "d" / "video.mp4"))).astype(int)
    assert np.abs(again - video).mean() < 4


def test_a_picture_and_a_longer_path_become_a_row_of_clips(encoders, tmp_path):
    config, base = image_to_video(), tmp_path / "base"
    WanTransformer3DModel(**config.backbone.diffusers()).save_pretrained(base)
    held = hold(tmp_path / "run", "fantasy_world", config=with_base(config, base))
    options = GenerationOptions(components={name: encoders / name for name in PARTS}, steps=1, guidance=1.0)
    drawing = get_family("fantasy_world").generation(open_weights(held.adapter), options)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)).save(tmp_path / "first.png")
    entry = {"prompt": PROMPT, "image": "first.png", "camera": "push", "frames": 17}
    source = Source("here", tmp_path)
    drawing.load()
    _, facts, _ = answer(drawing, tmp_path / "long", entry, source)
    assert facts["frames"] == len(list(read_frames(tmp_path / "long" / "video.mp4"))) == 17
    for wrong, reason in (
        ({"frames": 16}, "frames is 16, expected n 8 + 1, such as 17"),
        ({"camera": None}, "frames is 17, expected at most 9"),
        ({"image": None}, "image is None, and this network is image-to-video"),
        ({"image": "second.png"}, "second.png is not there"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            drawing.parse(entry | wrong, source)


def test_what_is_wrong_with_a_request_is_said_before_anything_is_loaded(generation, encoders):
    drawing = generation()
    for entry, reason in (
        ({}, "line 3: no prompt, expected one, or a video"),
        ({"prompt": 3}, "line 3: prompt: Input should be a valid string, found 3"),
        ({"prompt": PROMPT, "promt": "x"}, "line 3: promt: Extra inputs are not permitted, found 'x', expected"),
        ({"prompt": PROMPT, "id": "../up"}, "line 3: id is '../up', expected up to"),
        ({"prompt": PROMPT, "camera": "sideways"}, "line 3: sideways: found no such file, expected cameras"),
        ({"prompt": PROMPT, "height": 70}, "line 3: height is 70, expected a multiple of 16"),
        ({"prompt": PROMPT, "frames": 8}, "line 3: "),
        ({"prompt": PROMPT, "frames": 17, "camera": "push"}, "line 3: frames is 17, expected at most 9"),
        ({"prompt": PROMPT, "seed": -1}, "line 3: seed: Input should be greater"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            drawing.parse(entry, Source("line 3"))
    assert not hasattr(drawing, "pipeline")
    for parts, reason in (({}, "no vae is given"), ({"dino": encoders / "vae"}, "component 'dino' is none of family")):
        with pytest.raises(ValueError, match=reason):
            get_family("fantasy_world").generation(drawing.weights, GenerationOptions(components=parts))


def test_the_identity_changes_with_all_that_decides_a_video(generation, tmp_path, encoders):
    first, picture = generation(), tmp_path / "cameras.json"
    picture.write_text('{"keyframes": [{"frame": 0, "position": [0, 0, 0]}, {"frame": 8, "position": [0, 0, 1]}]}')
    entry, source = {"prompt": PROMPT, "camera": str(picture)}, Source("here", tmp_path, "one")
    before = first.parse(entry, source).identity()
    assert first.parse(entry, source).identity() == before
    for other in ({"seed": 1}, {"steps": 3}, {"guidance": 2.0}, {"id": "two"}, {"fps": 8.0}):
        assert first.parse(entry | other, source).identity() != before
    picture.write_text(picture.read_text().replace("[0, 0, 1]", "[0, 0, 2]"))
    assert first.parse(entry, source).identity() != before
    assert generation(1).identity() != first.identity()
    assert first.identity()["components"].keys() == set(PARTS)
