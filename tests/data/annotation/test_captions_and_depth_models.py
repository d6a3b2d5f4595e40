"""Tiny random networks of transformers, saved to a folder and read from it as real ones are."""

import numpy as np
import pytest
from PIL import Image

from stagecoach.data.annotation.captions import INSTRUCTION, QwenProcessor, TransformersCaptioner, caption_entry
from stagecoach.data.annotation.depth import TransformersDepth, depth_entry
from stagecoach.data.encoding.encoders import EncoderError
from tests.tiny_annotators import write_blip, write_depth
from tests.tiny_vision_language import write_florence, write_qwen

FRAMES = list(np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3), dtype=np.uint8))


def test_blip_gives_one_line_of_words(tmp_path):
    write_blip(tmp_path)
    caption = TransformersCaptioner(tmp_path).caption(FRAMES)
    assert caption == TransformersCaptioner(tmp_path).caption(FRAMES)
    assert caption.strip() == caption
    assert "\n" not in caption
    assert caption_entry(tmp_path)["name"] == "BlipForConditionalGeneration"


def test_florence_answers_its_task_for_the_middle_frame(tmp_path):
    write_florence(tmp_path)
    captioner = TransformersCaptioner(tmp_path)
    asked = []
    plain, captioner._processor = captioner._processor, Asked(captioner._processor, asked)
    caption = captioner.caption(FRAMES)
    (given,) = asked
    assert np.array_equal(np.asarray(given["images"][0]), FRAMES[1])
    tokens = plain(images=given["images"], text=given["text"], return_tensors="pt")["input_ids"]
    assert "Describe with a paragraph what is shown in the image." in plain.batch_decode(tokens)[0]
    assert caption == TransformersCaptioner(tmp_path).caption(FRAMES)
    assert caption_entry(tmp_path)["name"] == "Florence2ForConditionalGeneration"


class Asked:
    def __init__(self, processor, asked):
        self._processor, self._asked, self.batch_decode = processor, asked, processor.batch_decode

    def __call__(self, **given):
        self._asked.append(given)
        return self._processor(**given)


@pytest.mark.parametrize(
    ("generation", "name"), [("2.5", "Qwen2_5_VLForConditionalGeneration"), ("3", "Qwen3VLForConditionalGeneration")]
)
def test_qwen_sees_every_frame_and_gives_one_line_of_words(generation, name, tmp_path):
    write_qwen(tmp_path, generation)
    caption = TransformersCaptioner(tmp_path).caption(FRAMES)
    assert caption == TransformersCaptioner(tmp_path).caption(FRAMES)
    assert caption.split("\n") == [caption.strip()]
    assert caption_entry(tmp_path)["name"] == name

    processor = QwenProcessor(tmp_path, TransformersCaptioner(tmp_path)._model.config.image_token_id)
    given = processor(images=[Image.fromarray(frame) for frame in FRAMES], return_tensors="pt")
    side = 14 if generation == "2.5" else 16
    cells = [round(size / (2 * side)) for size in (40, 60)]  # four patches are one token
    assert given["image_grid_thw"].tolist() == [[1, 2 * cells[0], 2 * cells[1]]] * 3
    assert int(given["mm_token_type_ids"].sum()) == 3 * cells[0] * cells[1]
    (text,) = processor.batch_decode(given["input_ids"])
    picture = "<|vision_start|>" + "<|image_pad|>" * (cells[0] * cells[1]) + "<|vision_end|>"
    assert text == f"<|im_start|>user\n{picture * 3}{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"


def test_a_chat_template_without_pictures_is_refused(tmp_path):
    write_qwen(tmp_path, "3")
    (tmp_path / "chat_template.json").write_text('{"chat_template": "{{ messages[0].role }}"}')
    with pytest.raises(EncoderError, match="a chat template with 0 tokens for 3 pictures found, expected one for each"):
        TransformersCaptioner(tmp_path).caption(FRAMES)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(EncoderError, match="no tokenizer and picture processor can be loaded from it"):
        TransformersCaptioner(tmp_path)


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
