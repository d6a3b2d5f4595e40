"""Captions of pictures and of the frames of a shot, by image-text networks of transformers from local folders."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHOWN = 8
"""Frames of a shot that a network which takes several pictures sees; others see the middle one."""
TASK = "<MORE_DETAILED_CAPTION>"
"""Florence-2's."""
INSTRUCTION = (
    "Describe in one or two sentences what is seen here, its surroundings, and how the camera moves if it does. Give "
    "the description alone."
)
MOST_TOKENS = 256
CHATS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


class Captioner(ABC):
    @abstractmethod
    def caption(self, frames: Sequence[np.ndarray]) -> str:
        """What uint8 [H, W, 3] frames of one shot, or one picture, show; one line."""


class TransformersCaptioner(Captioner):
    """BLIP, Florence-2 or Qwen-VL. Raises ``EncoderError``."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForImageTextToText

        from stagecoach.data.encoding.encoders import default_device, load_model, load_processor

        self._path, self._device = path, default_device()
        self._model = load_model(AutoModelForImageTextToText, path, self._device)
        kind = self._model.config.model_type
        self._chats = kind in CHATS
        self._text = {"text": TASK} if kind == "florence2" else {}
        self._processor = (
            QwenProcessor(path, self._model.config.image_token_id) if self._chats else load_processor(path)
        )

    def caption(self, frames: Sequence[np.ndarray]) -> str:
        import torch
        from PIL import Image

        from stagecoach.data.encoding.encoders import EncoderError

        chosen = np.linspace(0, len(frames) - 1, SHOWN).round().astype(int) if self._chats else [len(frames) // 2]
        pictures = [Image.fromarray(frames[k]) for k in dict.fromkeys(int(k) for k in chosen)]
        given = self._processor(images=pictures, **self._text, return_tensors="pt").to(self._device, self._model.dtype)
        with torch.inference_mode():
            made = self._model.generate(**given, max_new_tokens=MOST_TOKENS, do_sample=False)
        if self._chats:
            made = made[:, given["input_ids"].shape[1] :]
        words = self._processor.batch_decode(made, skip_special_tokens=True)[0].split()
        if not words:
            raise EncoderError(f"{self._path}: the network has no words for a picture, expected a caption")
        return " ".join(words)


class QwenProcessor:
    """What turns pictures into the input of Qwen-VL, with ``INSTRUCTION`` behind them, by the tokenizer and the picture
    processor in its folder: transformers' own processor wants one of videos too, which needs torchvision. Raises
    ``EncoderError``."""

    def __init__(self, path: Path, image_token: int) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        from stagecoach.data.encoding.encoders import EncoderError, short_error

        self._path, self._image = path, image_token
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            self._pictures = AutoImageProcessor.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise EncoderError(
                f"{path}: no tokenizer and picture processor can be loaded from it ({short_error(error)}), expected "
                "tokenizer.json and preprocessor_config.json next to the weights"
            ) from error
        older = path / "chat_template.json"  # where older folders have it
        self._template = json.loads(older.read_text())["chat_template"] if older.exists() else None
        self.batch_decode = self._tokenizer.batch_decode

    def __call__(self, images: Sequence[Any], return_tensors: str) -> Any:
        """``input_ids``, ``attention_mask``, ``mm_token_type_ids`` [1, L] (1 for pictures' tokens), ``pixel_values``
        and ``image_grid_thw``: the template's one token of each picture, as many times as the network will see of
        it."""
        import torch

        from stagecoach.data.encoding.encoders import EncoderError

        content = [*({"type": "image"} for _ in images), {"type": "text", "text": INSTRUCTION}]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self._template,
            add_generation_prompt=True,
            tokenize=False,
        )
        tokens = torch.tensor(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        given = self._pictures(images=list(images), return_tensors=return_tensors)
        places = tokens == self._image
        if int(places.sum()) != len(images):
            raise EncoderError(
                f"{self._path}: a chat template with {int(places.sum())} tokens for {len(images)} pictures found, "
                "expected one for each, as Qwen-VL's has"
            )
        repeats = torch.ones_like(tokens)
        repeats[places] = given["image_grid_thw"].prod(1) // self._pictures.merge_size**2
        given["input_ids"] = tokens.repeat_interleave(repeats)[None]
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        given["mm_token_type_ids"] = (given["input_ids"] == self._image).long()
        return given


def caption_entry(path: Path) -> Mapping[str, Any]:
    """What manifests say of the network in a folder, without loading it. Raises ``EncoderError``."""
    from transformers import AutoModelForImageTextToText

    from stagecoach.data.encoding.encoders import model_entry

    return model_entry(AutoModelForImageTextToText, path)
