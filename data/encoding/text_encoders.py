"""Frozen text encoders, from local folders in the Hugging Face layout: umT5's and T5's states and CLIP's pooled state.

They give what ``encode_prompt`` of diffusers' Wan and FLUX pipelines gives.
"""

import html
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor
from transformers import (
    BatchEncoding,
    CLIPTextModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    UMT5EncoderModel,
)

from stagecoach.data.encoding.encoders import EncoderError, load_model, load_tokenizer

UMT5_LENGTH = 512
"""Tokens that Wan's text cross-attention takes."""
CLIP_LENGTH = 77


class TokenEncoder(ABC):
    """A text encoder and its tokenizer, in folders ``path`` and ``tokenizer``. A text of more than ``length`` tokens is
    cut. Raises ``EncoderError``."""

    KIND: type
    PADDING = "max_length"
    AT_ONCE = 16

    def __init__(self, path: Path, tokenizer: Path, device: torch.device, length: int) -> None:
        self._model = load_model(self.KIND, path, device)
        self._tokenizer, _ = load_tokenizer(tokenizer, self._model.config.vocab_size)
        self._length = length

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int) -> Self:
        """An encoder of a model and a tokenizer that are loaded, as pipelines hold them."""
        encoder = cls.__new__(cls)
        encoder._model, encoder._tokenizer, encoder._length = model, tokenizer, length
        return encoder

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """The states of each text, fp32 on the CPU."""
        out: list[Tensor] = []
        for start in range(0, len(texts), self.AT_ONCE):
            tokens = self._tokenizer(
                list(texts[start : start + self.AT_ONCE]),
                padding=self.PADDING,
                truncation=True,
                max_length=self._length,
                return_attention_mask=True,
                return_tensors="pt",
            )
            out += self._states(tokens.to(get_module_execution_device(self._model)))
        return out

    @abstractmethod
    def _states(self, tokens: BatchEncoding) -> Sequence[Tensor]: ...


class TextEncoder(TokenEncoder):
    """umT5, with the states of the real tokens only, [L, dim] each: padding is masked in the attention and cut off
    after it."""

    KIND = UMT5EncoderModel
    PADDING = "longest"

    def __init__(self, path: Path, tokenizer: Path, device: torch.device) -> None:
        super().__init__(path, tokenizer, device, UMT5_LENGTH)

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        return super().encode([clean_prompt(text) for text in texts])

    def _states(self, tokens: BatchEncoding) -> list[Tensor]:
        states = self._model(tokens.input_ids, tokens.attention_mask).last_hidden_state.float().cpu()
        return [s[:n] for s, n in zip(states, tokens.attention_mask.sum(1).tolist(), strict=True)]


class T5TextEncoder(TokenEncoder):
    """States of all ``length`` tokens (512 for FLUX.1-dev, 256 for schnell), [length, dim] each, padding included. FLUX
    attends to the padding too: nothing is masked, and the states may neither be cut nor filled up afterwards."""

    KIND = T5EncoderModel

    def _states(self, tokens: BatchEncoding) -> tuple[Tensor, ...]:
        return self._model(tokens.input_ids).last_hidden_state.float().cpu().unbind(0)


class PooledTextEncoder(TokenEncoder):
    """CLIP's state of the end token, [dim] each."""

    KIND = CLIPTextModel
    AT_ONCE = 64

    def __init__(self, path: Path, tokenizer: Path, device: torch.device) -> None:
        super().__init__(path, tokenizer, device, CLIP_LENGTH)
        found = self._model.config.max_position_embeddings
        if found < CLIP_LENGTH:
            raise EncoderError(f"{path}: a text encoder of {found} tokens found, expected {CLIP_LENGTH} as CLIP's")

    def _states(self, tokens: BatchEncoding) -> tuple[Tensor, ...]:
        return self._model(tokens.input_ids).pooler_output.float().cpu().unbind(0)


def clean_prompt(prompt: str) -> str:
    """One line without character references. Diffusers' pipelines do so too; they also mend wrongly decoded characters
    where ftfy is installed, which is left to whoever writes the prompts."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()
