"""Encoders small enough for tests and the demo, in the folders and files of the real ones.

Text and image encoder are random, keyed by a seed: their states tell words and pictures apart, which is all that is
asked of them here. The VAE is not random (``data.encoding.tiny_vae``).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stagecoach.data.encoding.tiny_vae import tiny_vae
from stagecoach.data.files import commit_directory, refuse_foreign, temporary_name, write_json

TEXT_DIM = 64
IMAGE_DIM = 64
VOCABULARY = 512
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
MAX_FIT_FRAMES = 128
MARKER = "tiny_encoders.json"


def write_tiny_encoders(directory: str | Path, frames: np.ndarray, prompts: Sequence[str], seed: int) -> None:
    """Write ``vae``, ``text_encoder``, ``tokenizer``, ``image_encoder`` and ``image_processor`` below ``directory``.

    ``frames`` uint8 [N, H, W, 3] are what the VAE is fitted to, ``prompts`` what the tokenizer's words come from. The
    folder appears when it is complete, and replaces older tiny encoders; ``ValueError`` where it holds anything else.
    """
    directory = Path(directory)
    refuse_foreign(directory, MARKER)
    transformers.utils.logging.disable_progress_bar()
    temporary = temporary_name(directory)
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), MAX_FIT_FRAMES)).astype(int)]
    pixels = torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 127.5 - 1
    tokenizer = _tokenizer(prompts)
    try:
        tiny_vae(pixels, seed).save_pretrained(temporary / "vae")
        tokenizer.save_pretrained(temporary / "tokenizer")
        _text_encoder(len(tokenizer), seed).save_pretrained(temporary / "text_encoder")
        _image_encoder(seed).save_pretrained(temporary / "image_encoder")
        CLIPImageProcessorPil().save_pretrained(temporary / "image_processor")
        write_json(temporary / MARKER, {"seed": seed, "frames": len(chosen)})
        commit_directory(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _tokenizer(prompts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text has tokens; like umT5's it ends each text with an end token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, UNKNOWN],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(prompts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def _text_encoder(vocabulary: int, seed: int) -> UMT5EncoderModel:
    config = UMT5Config(vocab_size=vocabulary, d_model=TEXT_DIM, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UMT5EncoderModel(config).eval()


def _image_encoder(seed: int) -> CLIPVisionModel:
    """224 pixels in patches of 14, so that there are 257 tokens as in the real one."""
    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=224,
        patch_size=14,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPVisionModel(config).eval()
