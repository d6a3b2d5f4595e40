"""Tiny random networks of transformers, saved to a folder and read from it as real ones are."""

import numpy as np
import pytest

from stagecoach.data.annotation.captions import TransformersCaptioner, caption_entry
from stagecoach.data.annotation.depth import TransformersDepth, depth_entry
from stagecoach.data.encoding.encoders import EncoderError
from tests.tiny_annotators import write_blip, write_depth

FRAMES = list(np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3), dtype=np.uint8))


def test_blip_gives_one_line_of_words(tmp_path):
    write_blip(tmp_path)
    caption = TransformersCaptioner(tmp_path).caption(FRAMES)
    assert caption == TransformersCaptioner(tmp_path).caption(FRAMES)
    assert caption.strip() == caption
    assert "\n" not in caption
    assert caption_entry(tmp_path)["name"] == "BlipForConditionalGeneration"


@pytest.mark.parametrize("metric", [True, False])
def test_depth_anything_gives_maps_of_the_frames(metric, tmp_path):
    write_depth(tmp_path, metric)
    network = TransformersDepth(tmp_path)
    assert network.metric == metric
    maps = network.estimate([*FRAMES, *FRAMES])
    assert maps.shape == (6, 40, 60)
    np.testing.assert_allclose(maps[:3], maps[3:], atol=1e-5)
    assert depth_entry(tmp_path)["name"] == "DepthAnythingForDepthEstimation"


def test_a_folder_without_its_processor_is_refused(tmp_path):
    write_depth(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(EncoderError, match="no processor can be loaded from it"):
        TransformersDepth(tmp_path)
