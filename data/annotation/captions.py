"""Captions of pictures and of the frames of a shot, by image-text networks of transformers from local folders."""

from __future__ import annotations

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


class Captioner(ABC):
    @abstractmethod
    def caption(self, frames: Sequence[np.ndarray]) -> str:
        """What uint8 [H, W, 3] frames of one shot, or one picture, show; one line."""


class TransformersCaptioner(Captioner):
    """BLIP, Florence-2, or a network with a chat template (Qwen-VL). Raises ``EncoderError``."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForImageTextToText

        from stagecoach.data.encoding.encoders import default_device, load_model, load_processor

        self._path, self._device = path, default_device()
        self._processor = load_processor(path)
        self._model = load_model(AutoModelForImageTextToText, path, self._device)
        self._florence = self._model.config.model_type == "florence2"
        self._chats = not self._florence and bool(getattr(self._processor, "chat_template", None))

    def caption(self, frames: Sequence[np.ndarray]) -> str:
        import torch
        from PIL import Image

        from stagecoach.data.encoding.encoders import EncoderError

        chosen = np.linspace(0, len(frames) - 1, SHOWN).round().astype(int) if self._chats else [len(frames) // 2]
        pictures = [Image.fromarray(frames[k]) for k in dict.fromkeys(int(k) for k in chosen)]
        text = {"text": TASK} if self._florence else {"text": self._chat(len(pictures))} if self._chats else {}
        given = self._processor(images=pictures, **text, return_tensors="pt").to(self._device, self._model.dtype)
        with torch.inference_mode():
            made = self._model.generate(**given, max_new_tokens=MOST_TOKENS, do_sample=False)
        if self._chats:
            made = made[:, given["input_ids"].shape[1] :]
        words = self._processor.batch_decode(made, skip_special_tokens=True)[0].split()
        if not words:
            raise EncoderError(f"{self._path}: the network has no words for a picture, expected a caption")
        return " ".join(words)

    def _chat(self, pictures: int) -> str:
        content: list[dict[str, Any]] = [*({"type": "image"} for _ in range(pictures))]
        content.append({"type": "text", "text": INSTRUCTION})
        return self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def caption_entry(path: Path) -> Mapping[str, Any]:
    """What manifests say of the network in a folder, without loading it. Raises ``EncoderError``."""
    from transformers import AutoModelForImageTextToText

    from stagecoach.data.encoding.encoders import model_entry

    return model_entry(AutoModelForImageTextToText, path)
