"""Encoders of a MoviePostProduction build small enough for tests and the demo, in the folders and files of the real
ones: FLUX's ``vae``, ``text_encoder``, ``tokenizer``, ``text_encoder_2``, ``tokenizer_2``; ``image_encoder``, ``dino``.

The VAE is computed (``tiny_vae``). The others are random, keyed by a seed, but the vectors of crops are centred on
those of the pictures at hand: otherwise all would point one way, as those of random networks do, and no identity could
be told from another.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from stagecoach.data.encoding.image_encoders import ClipEncoder, CropEncoder, DinoEncoder, standardise
from stagecoach.data.encoding.text_encoders import CLIP_LENGTH
from stagecoach.data.files import commit_directory, refuse_foreign, temporary_name, write_json
from stagecoach.data.movie_post_production.tiny_vae import tiny_flux_vae

TEXT_DIM, POOLED_DIM, CLIP_DIM, DINO_DIM = 24, 20, 12, 16
CROP_SIZE = 28
VOCABULARY = 512
MAX_FIT_PICTURES = 96
MARKER = "tiny_encoders.json"


def write_tiny_encoders(
    directory: str | Path, pictures: Sequence[np.ndarray], crops: np.ndarray, texts: Sequence[str], seed: int
) -> None:
    """``pictures`` uint8 [H, W, 3] of any sizes are what the VAE is fitted to, ``crops`` uint8 [M, 28, 28, 3] what the
    vectors are centred on, ``texts`` what the tokenizers' words come from.

    The folder appears when it is complete, and replaces older tiny encoders; ``ValueError`` where it holds anything
    else.
    """
    directory = Path(directory)
    refuse_foreign(directory, MARKER)
    transformers.utils.logging.disable_progress_bar()
    temporary = temporary_name(directory)
    chosen = [pictures[i] for i in np.linspace(0, len(pictures) - 1, min(len(pictures), MAX_FIT_PICTURES)).astype(int)]
    clip_tokenizer, t5_tokenizer = tiny_tokenizer(texts, starts=True), tiny_tokenizer(texts, starts=False)
    try:
        parts = {
            "vae": tiny_flux_vae(_tiles(chosen), seed),
            "tokenizer": clip_tokenizer,
            "text_encoder": _pooled_encoder(clip_tokenizer, seed),
            "tokenizer_2": t5_tokenizer,
            "text_encoder_2": _t5_encoder(t5_tokenizer, seed),
            "image_encoder": _image_encoder(crops, seed),
            "dino": _dino(crops, seed),
        }
        for name, part in parts.items():
            part.save_pretrained(temporary / name)
        write_json(temporary / MARKER, {"seed": seed, "pictures": len(chosen), "crops": len(crops)})
        commit_directory(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def tiny_tokenizer(texts: Sequence[str], starts: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text has tokens. Like CLIP's it starts and ends each text and pads with the end token
    to 77; or, without ``starts``, like T5's it ends each text and pads with a token of its own."""
    start, end, pad = "<|startoftext|>", "</s>", "<pad>"
    special = [start, end] if starts else [pad, end]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}" if starts else f"$A {end}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in special if token != pad],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token=end if starts else pad,
        **({"bos_token": start, "model_max_length": CLIP_LENGTH} if starts else {}),
    )


def _t5_encoder(tokenizer: PreTrainedTokenizerFast, seed: int) -> T5EncoderModel:
    return _seeded(
        T5EncoderModel,
        T5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_DIM,
            d_kv=6,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        ),
        seed,
    )


def _pooled_encoder(tokenizer: PreTrainedTokenizerFast, seed: int) -> CLIPTextModel:
    return _seeded(
        CLIPTextModel,
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=POOLED_DIM,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CLIP_LENGTH,
            projection_dim=POOLED_DIM,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        seed,
    )


def _image_encoder(crops: np.ndarray, seed: int) -> CLIPVisionModelWithProjection:
    model = _seeded(
        CLIPVisionModelWithProjection,
        CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=CROP_SIZE,
            patch_size=14,
            projection_dim=CLIP_DIM,
        ),
        seed,
    )
    embeddings = model.vision_model.embeddings
    _see(embeddings.patch_embedding, seed)
    _centre(
        model.vision_model.post_layernorm,
        lambda pixels: model.vision_model(pixels).pooler_output,
        _pixels(crops, ClipEncoder),
    )
    return model


def _dino(crops: np.ndarray, seed: int) -> Dinov2Model:
    model = _seeded(
        Dinov2Model,
        Dinov2Config(
            hidden_size=DINO_DIM,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=CROP_SIZE,
            patch_size=14,
        ),
        seed,
    )
    _see(model.embeddings.patch_embeddings.projection, seed)
    _centre(model.layernorm, lambda pixels: model(pixels).last_hidden_state[:, 0], _pixels(crops, DinoEncoder))
    return model


def _seeded(kind: type, config: transformers.PretrainedConfig, seed: int):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config).eval()


@torch.no_grad()
def _see(patches: nn.Conv2d, seed: int) -> None:
    """Smooth random filters for the patches: what a patch shows outweighs where it is, and small shifts do no harm."""
    width = patches.weight.shape[-1]
    coarse = torch.randn(*patches.weight.shape[:2], 2, 2, generator=torch.Generator().manual_seed(seed))
    patches.weight.copy_(nn.functional.interpolate(coarse, size=(width, width), mode="bilinear") / width)


@torch.no_grad()
def _centre(norm: nn.LayerNorm, vectors, pixels: Tensor) -> None:
    norm.bias -= vectors(pixels).mean(0)


def _pixels(crops: np.ndarray, encoder: type[CropEncoder]) -> Tensor:
    return standardise(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255, encoder.MEAN, encoder.STD)


def _tiles(pictures: Sequence[np.ndarray]) -> Tensor:
    """The middles of pictures, of one size with sides of multiples of 8: fp32 [N, 3, H, W] in -1..1."""
    height, width = (min(picture.shape[axis] for picture in pictures) // 8 * 8 for axis in (0, 1))
    tiles = []
    for picture in pictures:
        top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
        tiles.append(picture[top : top + height, left : left + width])
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 127.5 - 1
