"""Encoders small enough for tests and the demo, in the folders and files of the real ones.

The VAE is computed (``data.encoding.tiny_vae``). The others are random, keyed by a seed: their states tell words and
pictures apart, which is all that is asked of them here. Vectors of crops and faces are centred on the pictures at hand:
otherwise all would point one way, as those of random networks do, and no identity would differ from another.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stagecoach.data.encoding.face_encoder import FACE_DIM, SIZE
from stagecoach.data.encoding.image_encoders import ClipEncoder, CropEncoder, DinoEncoder, standardise
from stagecoach.data.encoding.text_encoders import CLIP_LENGTH
from stagecoach.data.encoding.tiny_vae import Layout, tiny_vae
from stagecoach.data.files import import_extra, replaced_directory, write_json

MARKER = "tiny_encoders.json"
VOCABULARY = 512
CROP_SIZE = 28
FACE_GRID = 14
"""Cells per side that a face is averaged over."""
START, PAD, END, UNKNOWN = "<|startoftext|>", "<pad>", "</s>", "<unk>"
SPECIAL = {"clip": [START, END], "t5": [PAD, END], "umt5": [PAD, END, UNKNOWN]}


def write_wan_encoders(directory: str | Path, frames: np.ndarray, prompts: Sequence[str], seed: int) -> None:
    """Write ``vae``, ``text_encoder``, ``tokenizer``, ``image_encoder`` and ``image_processor`` as of Wan2.1.

    The VAE is fitted to ``frames`` uint8 [N, H, W, 3], the tokenizer's words come from ``prompts``. The folder appears
    when it is complete, and replaces older tiny encoders; ``ValueError`` where it holds anything else.
    """
    with replaced_directory(Path(directory), MARKER) as base:
        chosen, tokenizer = _spread(frames, 128), tiny_tokenizer(prompts, "umt5")
        text = UMT5Config(vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
        components = {
            "vae": tiny_vae(_pixels(chosen), seed, "wan"),
            "tokenizer": tokenizer,
            "text_encoder": seeded(UMT5EncoderModel, text, seed),
            # 224 pixels in patches of 14, so that there are 257 tokens as in the real one.
            "image_encoder": seeded(CLIPVisionModel, _vision(64, 128, 4, 224, 14), seed),
            "image_processor": CLIPImageProcessorPil(),
        }
        save_components(base, components, {"seed": seed, "frames": len(chosen)})


def write_flux_encoders(
    directory: str | Path, pictures: Sequence[np.ndarray], crops: np.ndarray, texts: Sequence[str], seed: int
) -> None:
    """Write FLUX's ``vae``, ``text_encoder``, ``tokenizer``, ``text_encoder_2``, ``tokenizer_2``, and ``image_encoder``
    and ``dino`` for crops.

    The VAE is fitted to ``pictures`` uint8 [H, W, 3] of any sizes, the vectors are centred on ``crops`` uint8
    [M, 28, 28, 3], the tokenizers' words come from ``texts``. For the folder see ``write_wan_encoders``.
    """
    with replaced_directory(Path(directory), MARKER) as base:
        chosen = _spread(pictures, 96)
        clip_tokenizer, t5_tokenizer = tiny_tokenizer(texts, "clip"), tiny_tokenizer(texts, "t5")
        components = {
            "vae": tiny_vae(_tiles(chosen), seed, "flux"),
            "tokenizer": clip_tokenizer,
            "text_encoder": seeded(CLIPTextModel, tiny_clip_text_config(clip_tokenizer, 20), seed),
            "tokenizer_2": t5_tokenizer,
            "text_encoder_2": seeded(T5EncoderModel, _t5(t5_tokenizer), seed),
            "image_encoder": _crop_clip(crops, seed),
            "dino": _crop_dino(crops, seed),
        }
        save_components(base, components, {"seed": seed, "pictures": len(chosen), "crops": len(crops)})


def write_sd_encoders(directory: str | Path, frames: np.ndarray, faces: np.ndarray, seed: int) -> None:
    """Write Stable Diffusion's ``vae``, CLIP's ``image_encoder`` and ``image_processor``, and ``arcface.onnx``.

    The VAE is fitted to ``frames`` uint8 [N, H, W, 3], the mean face to ``faces`` uint8 [M, 112, 112, 3]. For the
    folder see ``write_wan_encoders``.
    """
    if not len(faces):
        raise ValueError(f"no face found to fit the tiny face encoder {directory} to, expected at least one")
    with replaced_directory(Path(directory), MARKER) as base:
        chosen = _spread(frames, 128)
        vision = _vision(64, 128, 4, 224, 32, projection_dim=64)
        components = {
            "vae": tiny_vae(_pixels(chosen), seed, "sd"),
            "image_encoder": seeded(CLIPVisionModelWithProjection, vision, seed),
            "image_processor": CLIPImageProcessorPil(),
        }
        _save_face_model(base / "arcface.onnx", faces, seed)
        save_components(base, components, {"seed": seed, "frames": len(chosen), "faces": len(faces)})


def write_pipeline_encoders(
    directory: str | Path, kind: str, layout: Layout, pictures: Sequence[np.ndarray], texts: Sequence[str], seed: int
) -> None:
    """Write the ``vae`` in ``layout``, the text encoders and tokenizers of the diffusers pipeline ``kind``, and its
    ``model_index.json``. T5's states have as many numbers as those of two CLIPs side by side.

    The VAE is fitted to ``pictures`` uint8 [H, W, 3] of any sizes, the tokenizers' words come from ``texts``. For the
    folder see ``write_wan_encoders``.
    """
    roles = getattr(diffusers, kind)._get_signature_types()
    with replaced_directory(Path(directory), MARKER) as base:
        chosen = _spread(pictures, 96)
        components: dict[str, Any] = {"vae": tiny_vae(_tiles(chosen), seed, layout)}
        for number, role in enumerate(role for role in roles if role.startswith("text_encoder")):
            model = roles[role][0]
            tokenizer = tiny_tokenizer(texts, "t5" if model is T5EncoderModel else "clip")
            config = _t5(tokenizer) if model is T5EncoderModel else tiny_clip_text_config(tokenizer, 12)
            components |= {
                role: seeded(model, config, seed + number),
                role.replace("text_encoder", "tokenizer"): tokenizer,
            }
        save_components(base, components, {"seed": seed, "pictures": len(chosen)})
        index: dict[str, Any] = {role: [None, None] for role in roles}
        for role, component in components.items():
            index[role] = [type(component).__module__.split(".")[0], type(component).__name__]
        write_json(base / "model_index.json", {"_class_name": kind, **index})


def save_components(base: Path, components: Mapping[str, Any], described: dict[str, Any]) -> None:
    """Save models, tokenizers and processors by folder, and ``described`` in ``tiny_encoders.json``."""
    transformers.utils.logging.disable_progress_bar()
    for name, component in components.items():
        component.save_pretrained(base / name)
    write_json(base / MARKER, described)


def tiny_tokenizer(texts: Sequence[str], kind: Literal["clip", "t5", "umt5"]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text has tokens. CLIP's starts and ends each text and pads with the end token to 77;
    the others end each text and pad with a token of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL[kind], show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    around = [START, END] if kind == "clip" else [END]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}" if kind == "clip" else f"$A {END}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in around],
    )
    more = {
        "clip": {"pad_token": END, "bos_token": START, "model_max_length": CLIP_LENGTH},
        "t5": {"pad_token": PAD},
        "umt5": {"pad_token": PAD, "unk_token": UNKNOWN},
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, **more[kind])


def _t5(tokenizer: PreTrainedTokenizerFast) -> T5Config:
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return T5Config(vocab_size=len(tokenizer), **sizes, feed_forward_proj="gated-gelu")


def tiny_clip_text_config(tokenizer: PreTrainedTokenizerFast, width: int) -> CLIPTextConfig:
    """Two layers of ``width``, with a projection of the same width."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def seeded(kind: type, config: transformers.PretrainedConfig, seed: int) -> Any:
    """A model of random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config).eval()


def _vision(width: int, inner: int, heads: int, size: int, patch: int, **more: Any) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=heads,
        image_size=size,
        patch_size=patch,
        **more,
    )


def _crop_clip(crops: np.ndarray, seed: int) -> CLIPVisionModelWithProjection:
    config = _vision(24, 48, 2, CROP_SIZE, 14, projection_dim=12)
    model = seeded(CLIPVisionModelWithProjection, config, seed)
    vision = model.vision_model
    _see(vision.embeddings.patch_embedding, seed)
    _centre(vision.post_layernorm, lambda pixels: vision(pixels).pooler_output, crops, ClipEncoder)
    return model


def _crop_dino(crops: np.ndarray, seed: int) -> Dinov2Model:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    model = seeded(Dinov2Model, Dinov2Config(**sizes, image_size=CROP_SIZE, patch_size=14), seed)
    _see(model.embeddings.patch_embeddings.projection, seed)
    _centre(model.layernorm, lambda pixels: model(pixels).last_hidden_state[:, 0], crops, DinoEncoder)
    return model


@torch.no_grad()
def _see(patches: nn.Conv2d, seed: int) -> None:
    """Smooth random filters for the patches: what a patch shows outweighs where it is, and small shifts do no harm."""
    width = patches.weight.shape[-1]
    coarse = torch.randn(*patches.weight.shape[:2], 2, 2, generator=torch.Generator().manual_seed(seed))
    patches.weight.copy_(nn.functional.interpolate(coarse, size=(width, width), mode="bilinear") / width)


@torch.no_grad()
def _centre(
    norm: nn.LayerNorm, vectors: Callable[[Tensor], Tensor], crops: np.ndarray, encoder: type[CropEncoder]
) -> None:
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    norm.bias -= vectors(standardise(pixels, encoder.MEAN, encoder.STD)).mean(0)


def _spread(pictures: Any, most: int) -> Any:
    """At most ``most`` of an array or a list, from the first to the last."""
    chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), most)).astype(int)
    return pictures[chosen] if isinstance(pictures, np.ndarray) else [pictures[i] for i in chosen]


def _pixels(pictures: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] -> fp32 [N, 3, H, W] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _tiles(pictures: Sequence[np.ndarray]) -> Tensor:
    """The middles of pictures, of one size with sides of multiples of 8: fp32 [N, 3, H, W] in -1..1."""
    height, width = (min(picture.shape[axis] for picture in pictures) // 8 * 8 for axis in (0, 1))
    tiles = []
    for picture in pictures:
        top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
        tiles.append(picture[top : top + height, left : left + width])
    return _pixels(np.stack(tiles))


def _save_face_model(path: Path, faces: np.ndarray, seed: int) -> None:
    """Means over cells, less those of all the faces, through a random projection: the same person's faces are alike,
    and two persons' are not, as no two differ from the mean in the same way."""
    onnx = import_extra("onnx", "a tiny ArcFace", "dev")
    helper, numpy_helper, number = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    cell = SIZE // FACE_GRID
    scaled = (faces.astype(np.float32) - 127.5) / 127.5
    cells = scaled.reshape(len(faces), FACE_GRID, cell, FACE_GRID, cell, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    mean = cells.reshape(len(faces), -1).mean(0)
    random = np.random.default_rng([seed, 4])
    projection = (random.normal(size=(len(mean), FACE_DIM)) / np.sqrt(FACE_DIM)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["face"], ["cells"], kernel_shape=[cell] * 2, strides=[cell] * 2),
        helper.make_node("Flatten", ["cells"], ["flat"]),
        helper.make_node("Sub", ["flat", "mean"], ["centred"]),
        helper.make_node("MatMul", ["centred", "projection"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_face",
        [helper.make_tensor_value_info("face", number, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embedding", number, ["N", FACE_DIM])],
        [numpy_helper.from_array(mean[None], "mean"), numpy_helper.from_array(projection, "projection")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
