"""Requests in both formats answered with pictures."""

import re

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

from stagecoach.data.movie_post_production.requests import parse_request
from stagecoach.models import get_family
from stagecoach.models.common.keyed import request_generators
from stagecoach.models.generation import GenerationOptions, Source
from stagecoach.models.weights import open_weights
from tests.models.weights.held import hold

GUIDE = {
    "global_caption": "a red ball on a table",
    "objects": [
        {"bbox": [0.1, 0.1, 0.6, 0.7], "category_name": "ball", "caption": "red", "reference": "look.png#0,0,1,0.5"},
        {"bbox": [0.5, 0.4, 1.0, 1.0], "caption": "a table", "depth_label": "background"},
    ],
}
PUBLISHED = {
    "prompt": "a red ball on a table",
    "width": 64,
    "height": 64,
    "annos": [
        {**GUIDE["objects"][0], "bbox": [6.4, 6.4, 38.4, 44.8]},
        {**GUIDE["objects"][1], "bbox": [32.0, 25.6, 64.0, 64.0]},
    ],
}


@pytest.fixture(scope="module")
def generation(movie, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        FluxTransformer2DModel(**config.backbone.diffusers()).save_pretrained(folder / "transformer")
    based = config.model_copy(update={"base": str(folder / "transformer"), "allow_random_init": False})
    held = hold(folder / "run", "movie_post_production", config=based)
    weights = open_weights(held.adapter)
    return get_family("movie_post_production").generation(weights, GenerationOptions(parts=movie.encoders, steps=2))


@pytest.fixture
def source(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "look.png")
    return Source("requests.jsonl: line 2", tmp_path, "ball")


def test_both_formats_become_the_same_picture_with_boxes_and_references(generation, source, tmp_path):
    generation.load()
    pictures = {}
    for name, entry in (("guide", GUIDE), ("published", PUBLISHED)):
        request = generation.parse(entry, source)
        (tmp_path / name).mkdir()
        facts = generation.answer(request, tmp_path / name)
        assert facts == {"width": 64, "height": 64, "objects": 2}
        assert {path.name for path in (tmp_path / name).iterdir()} == set(generation.shown)
        pictures[name] = np.asarray(Image.open(tmp_path / name / "picture.png")).astype(int)
    assert np.abs(pictures["guide"] - pictures["published"]).max() <= 1
    overlay = np.asarray(Image.open(tmp_path / "guide" / "overlay.png")).astype(int)
    assert overlay.shape == pictures["guide"].shape
    assert np.abs(overlay - pictures["guide"]).max() > 50

    picture = parse_request(GUIDE, "here", tmp_path)
    expected = generation.pipeline(
        picture.caption,
        objects=list(picture.objects),
        num_inference_steps=2,
        generator=request_generators(0, "ball", [0]),
        output_type="np",
    ).images[0]
    assert np.array_equal((expected * 255).round(), pictures["guide"])

    (tmp_path / "alone").mkdir()
    generation.answer(generation.parse({"prompt": "a ball", "id": 7, "seed": 1}, source), tmp_path / "alone")
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["picture.png"]


def test_what_is_wrong_with_a_request_is_said_with_its_line(generation, source, movie):
    for entry, reason in (
        ({}, "'global_caption' is None, expected a text"),
        (GUIDE | {"steps": 0}, "steps: Input should be greater than or equal to 1, found 0"),
        (GUIDE | {"width": 70, "height": 64}, "width 70 found, expected a multiple of 16"),
        ({**GUIDE, "objects": [{**GUIDE["objects"][0], "bbox": [3, 3, 9, 9]}]}, "object 0: 'bbox' is [3, 3, 9, 9]"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)) as caught:
            generation.parse(entry, source)
        assert "requests.jsonl: line 2" in str(caught.value)
    with pytest.raises(ValueError, match=r"nowhere.png: missing, expected the picture that requests.jsonl: line 2"):
        generation.parse({**GUIDE, "objects": [{**GUIDE["objects"][0], "reference": "nowhere.png"}]}, source)
    parts = {name: movie.encoders / name for name in generation.components[:5]}
    blind = get_family("movie_post_production").generation(generation.weights, GenerationOptions(components=parts))
    with pytest.raises(ValueError, match="an object has a reference, and image_encoder and dino are not given"):
        blind.parse(GUIDE, source)


def test_another_reference_is_another_request(generation, source, tmp_path):
    before = generation.parse(GUIDE, source).identity()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "look.png")
    assert generation.parse(GUIDE, source).identity() != before
