"""A request is answered by the kit as diffusers' pipeline with the exported LoRA answers it."""

import re

import numpy as np
import pytest
from PIL import Image

from stagecoach.models import get_family
from stagecoach.models.common.keyed import request_generators
from stagecoach.models.generation import GenerationOptions, Source
from stagecoach.models.weights import open_weights
from stagecoach.trainer.export import export_adapter
from tests.models.weights.held import hold

STEPS, PROMPT, SOURCE = 3, "a red ball", Source("here", name="ball")


def test_the_picture_is_that_of_the_pipeline_of_diffusers_with_the_lora(config, tiny, tmp_path):
    held = hold(tmp_path / "run", "stable_diffusion_3", config=config)
    options = GenerationOptions(parts=tiny.base, steps=STEPS)
    generation = get_family("stable_diffusion_3").generation(open_weights(held.adapter), options)
    for entry, reason in (
        ({}, "here: prompt: Field required"),
        ({"prompt": PROMPT, "width": 72}, "here: width 72 found, expected a multiple of 16"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            generation.parse(entry, SOURCE)
    generation.load()
    (tmp_path / "out").mkdir()
    generation.answer(generation.parse({"prompt": PROMPT, "negative_prompt": "blurred"}, SOURCE), tmp_path / "out")
    found = np.asarray(Image.open(tmp_path / "out" / "picture.png")).astype(int)

    export_adapter(held.adapter, tmp_path / "lora.safetensors", "fp32", "diffusers-lora")
    theirs = tiny.pipeline()
    theirs.set_progress_bar_config(disable=True)
    asked = {
        "negative_prompt": "blurred",
        "height": 64,
        "width": 64,
        "num_inference_steps": STEPS,
        "sigmas": np.linspace(1, 1 / STEPS, STEPS).tolist(),
        "guidance_scale": 5.0,
        "output_type": "np",
    }
    base = theirs(PROMPT, **asked, generator=request_generators(0, "ball", [0])).images[0]
    theirs.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    expected = theirs(PROMPT, **asked, generator=request_generators(0, "ball", [0])).images[0]
    assert np.abs(expected * 255 - found).max() < 0.52  # of rounding
    assert np.abs(base * 255 - found).max() > 1


def test_a_family_folder_is_needed_for_its_encoders(config, tmp_path):
    held = hold(tmp_path / "run", "stable_diffusion_3", config=config)
    with pytest.raises(ValueError, match="no --components is given"):
        get_family("stable_diffusion_3").generation(open_weights(held.adapter), GenerationOptions())
