"""Frozen text encoders of FLUX: T5's states and CLIP's pooled state, from local folders in the Hugging Face layout.

They give what diffusers' ``FluxPipeline.encode_prompt`` gives. On a GPU they compute in bf16, on a CPU in fp32; results
are fp32 on the CPU. One thread may use an encoder at a time.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from stagecoach.data.encoding.encoders import EncoderError, load_model, load_tokenizer

T5_LENGTH = 512
"""Tokens that FLUX.1-dev was trained with (schnell: 256)."""
CLIP_LENGTH = 77
T5_AT_ONCE = 16
CLIP_AT_ONCE = 64


class T5TextEncoder:
    """States of all ``length`` tokens, padding included. FLUX attends to the padding too: nothing is masked, and the
    states may neither be cut nor filled up afterwards. A longer text is cut."""

    def __init__(self, path: Path, tokenizer: Path, device: torch.device, length: int = T5_LENGTH) -> None:
        self._model = load_model(T5EncoderModel, path, device)
        self._tokenizer, _ = load_tokenizer(tokenizer, self._model.config.vocab_size)
        self.dim: int = self._model.config.d_model
        self.length = length

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """-> fp32 [length, dim] each."""
        out: list[Tensor] = []
        for start in range(0, len(texts), T5_AT_ONCE):
            tokens = self._tokenizer(
                list(texts[start : start + T5_AT_ONCE]),
                padding="max_length",
                truncation=True,
                max_length=self.length,
                return_tensors="pt",
            ).input_ids
            out += self._model(tokens.to(self._model.device)).last_hidden_state.float().cpu().unbind(0)
        return out


class PooledTextEncoder:
    """CLIP's state of the end token. A longer text than 77 tokens is cut."""

    def __init__(self, path: Path, tokenizer: Path, device: torch.device) -> None:
        self._model = load_model(CLIPTextModel, path, device)
        config = self._model.config
        self._tokenizer, _ = load_tokenizer(tokenizer, config.vocab_size)
        self.dim: int = config.hidden_size
        if config.max_position_embeddings < CLIP_LENGTH:
            raise EncoderError(
                f"{path}: a text encoder of {config.max_position_embeddings} tokens found, expected "
                f"{CLIP_LENGTH} as CLIP's"
            )

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """-> fp32 [dim] each."""
        out: list[Tensor] = []
        for start in range(0, len(texts), CLIP_AT_ONCE):
            tokens = self._tokenizer(
                list(texts[start : start + CLIP_AT_ONCE]),
                padding="max_length",
                truncation=True,
                max_length=CLIP_LENGTH,
                return_tensors="pt",
            ).input_ids
            out += self._model(tokens.to(self._model.device)).pooler_output.float().cpu().unbind(0)
        return out
