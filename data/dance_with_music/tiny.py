"""Encoders small enough for tests and the demo, in the folders and files of the real ones: a VAE as Stable Diffusion's,
CLIP's vision model at random, and a projection of aligned faces in place of ArcFace."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stagecoach.data.dance_with_music.tiny_vae import tiny_picture_vae
from stagecoach.data.encoding.face_encoder import FACE_DIM, SIZE
from stagecoach.data.files import commit_directory, refuse_foreign, temporary_name, write_json

CLIP_DIM = 64
FACE_GRID = 14
"""Cells per side that a face is averaged over."""
MAX_FIT_FRAMES = 128
MARKER = "tiny_encoders.json"


def write_tiny_encoders(directory: str | Path, frames: np.ndarray, faces: np.ndarray, seed: int) -> None:
    """Write ``vae``, ``image_encoder``, ``image_processor`` and ``arcface.onnx`` below ``directory``.

    The VAE is fitted to ``frames`` uint8 [N, H, W, 3], the mean face to ``faces`` uint8 [M, 112, 112, 3]. The folder
    appears when it is complete, and replaces older tiny encoders; ``ValueError`` where it holds anything else.
    """
    directory = Path(directory)
    refuse_foreign(directory, MARKER)
    if not len(faces):
        raise ValueError(f"no face found to fit the tiny face encoder {directory} to, expected at least one")
    transformers.utils.logging.disable_progress_bar()
    temporary = temporary_name(directory)
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), MAX_FIT_FRAMES)).astype(int)]
    pixels = torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 127.5 - 1
    try:
        tiny_picture_vae(pixels, seed).save_pretrained(temporary / "vae")
        _image_encoder(seed).save_pretrained(temporary / "image_encoder")
        CLIPImageProcessorPil().save_pretrained(temporary / "image_processor")
        onnx.save(_face_model(faces, seed), temporary / "arcface.onnx")
        write_json(temporary / MARKER, {"seed": seed, "frames": len(chosen), "faces": len(faces)})
        commit_directory(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _image_encoder(seed: int) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=224,
        patch_size=32,
        projection_dim=CLIP_DIM,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPVisionModelWithProjection(config).eval()


def _face_model(faces: np.ndarray, seed: int) -> onnx.ModelProto:
    """Means over cells, less those of all the faces, through a random projection: the same person's faces are alike,
    and two persons' are not, as no two differ from the mean in the same way."""
    window = SIZE // FACE_GRID
    scaled = (faces.astype(np.float32) - 127.5) / 127.5
    cells = scaled.reshape(len(faces), FACE_GRID, window, FACE_GRID, window, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    mean = cells.reshape(len(faces), -1).mean(0)
    random = np.random.default_rng([seed, 4])
    projection = (random.normal(size=(len(mean), FACE_DIM)) / np.sqrt(FACE_DIM)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["face"], ["cells"], kernel_shape=[window] * 2, strides=[window] * 2),
        helper.make_node("Flatten", ["cells"], ["flat"]),
        helper.make_node("Sub", ["flat", "mean"], ["centred"]),
        helper.make_node("MatMul", ["centred", "projection"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_face",
        [helper.make_tensor_value_info("face", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", FACE_DIM])],
        [numpy_helper.from_array(mean[None], "mean"), numpy_helper.from_array(projection, "projection")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model
