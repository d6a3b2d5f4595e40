"""Networks that annotate, small and made on the spot: closed-form ones as .onnx, which find what a test has drawn, and
tiny random ones of transformers."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

CELL = 64 + 2 * 4 + 3
"""Of a 64 x 64 YOLOX: stride 16, column 3, row 2, behind the 8 x 8 cells of stride 8."""


class GreenDetector(nn.Module):
    """YOLOX's raw grid [1, 84, 7] with one box: what is green in [1, 3, 64, 64] (BGR)."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        green = (image[:, 1:2] > 115).float() * (image[:, 2:3] < 250).float() * (image[:, :1] < 250).float()
        green = torch.nn.functional.max_pool2d(green, 7, 1, 3)
        green = 1 - torch.nn.functional.max_pool2d(1 - green, 7, 1, 3)
        place = torch.arange(64.0)
        ends = []
        for profile in (green.amax((1, 2)), green.amax((1, 3))):
            ends += [64 - (profile * (64 - place)).amax(1), (profile * (place + 1)).amax(1)]
        left, right, top, bottom = ends
        there = green.amax((1, 2, 3))
        size = torch.stack([right - left, bottom - top], 1).clamp(min=1)
        middle = torch.stack([left + right, top + bottom], 1) / 2 / 16 - torch.tensor([[3.0, 2.0]])
        box = torch.cat([middle, (size / 16).log(), there[:, None], torch.tensor([[0.9, 0.1]])], 1)
        rest = torch.zeros(1, 84, 7)
        return torch.cat([rest[:, :CELL], box[:, None], rest[:, CELL + 1 :]], 1)


class DotPoses(nn.Module):
    """SimCC of 133 points: the even ones where red is brightest, the odd ones where blue is; from the hips to the feet
    (11 to 22) all in blue's row, so that a person stands whose blue spot is below the red one."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = []
        for axis in (2, 3):
            peaks = torch.stack([image[:, 0], image[:, 2]], 1).amax(axis) / 2.2
            fine = torch.stack([peaks, peaks - 1], -1).flatten(-2)
            every = fine.repeat(1, 67, 1)[:, :133]
            low = torch.cat([every[:, :11], every[:, 1:2].repeat(1, 12, 1), every[:, 23:]], 1)
            parts.append(low if axis == 3 else every)
        return parts[0], parts[1]


def write_onnx_poses(folder: Path, height: int = 96, width: int = 72) -> tuple[Path, Path]:
    """Detector and pose network as .onnx in ``folder``: yolox.onnx and pose.onnx."""
    folder.mkdir(parents=True, exist_ok=True)
    detector, pose = folder / "yolox.onnx", folder / "pose.onnx"
    torch.onnx.export(GreenDetector(), (torch.zeros(1, 3, 64, 64),), str(detector), opset_version=17, dynamo=False)
    torch.onnx.export(
        DotPoses(),
        (torch.zeros(2, 3, height, width),),
        str(pose),
        input_names=["input"],
        output_names=["x", "y"],
        dynamic_axes={"input": {0: "n"}, "x": {0: "n"}, "y": {0: "n"}},
        opset_version=17,
        dynamo=False,
    )
    return detector, pose


def draw_person(height: int, width: int, box: tuple[int, int, int, int], red: tuple, blue: tuple) -> np.ndarray:
    """uint8 [H, W, 3]: a green box (x0, y0, x1, y1) with a red and a blue spot at (x, y), pixel indices."""
    image = np.zeros((height, width, 3))
    image[box[1] : box[3], box[0] : box[2], 1] = 230
    y, x = np.mgrid[:height, :width]
    for channel, (u, v) in ((0, red), (2, blue)):
        image[..., channel] = 249 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 2 / 4)
    return image.round().astype(np.uint8)


class SuppressedDetector(nn.Module):
    """``GreenDetector`` as published with the suppression of overlaps inside: corners and score [1, 2, 5] and classes
    [1, 2], the surer box being no person."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = GreenDetector()(image)[:, CELL]
        middle = (found[:, :2] + torch.tensor([[3.0, 2.0]])) * 16
        half = found[:, 2:4].exp() * 8
        box = torch.cat([middle - half, middle + half, found[:, 4:5] * 0.8], 1)
        other = box * 0 + torch.tensor([[0.0, 0.0, 9.0, 9.0, 0.95]])
        return torch.stack([other, box], 1), torch.tensor([[1, 0]]) + (box[:, :1] * 0).long()


def write_suppressed_detector(path: Path) -> None:
    torch.onnx.export(SuppressedDetector(), (torch.zeros(1, 3, 64, 64),), str(path), opset_version=17, dynamo=False)


def write_vitpose(folder: Path, points: int = 17, experts: int = 1) -> None:
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    backbone = VitPoseBackboneConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=(64, 48),
        patch_size=(16, 16),
        out_features=["stage2"],
        num_experts=experts,
        part_features=8 if experts > 1 else 0,
    )
    torch.manual_seed(0)
    VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=points)).save_pretrained(folder)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)


def write_depth(folder: Path, metric: bool = True) -> None:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    kind = {"depth_estimation_type": "metric", "max_depth": 20} if metric else {}
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
        **kind,
    )
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 56, "width": 84}, ensure_multiple_of=14).save_pretrained(folder)


def write_blip(folder: Path) -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    from stagecoach.data.encoding.tiny_encoders import tiny_tokenizer

    tokenizer = tiny_tokenizer(["a red ball in a room"], "clip")
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.eos_token_id}
    text = {**size, **ends, "vocab_size": len(tokenizer), "encoder_hidden_size": 32, "projection_dim": 16}
    config = BlipConfig(
        text_config=text | {"pad_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id},
        vision_config={**size, "image_size": 32, "patch_size": 16, "projection_dim": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)


def write_owlv2(folder: Path) -> None:
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    from stagecoach.data.encoding.tiny_encoders import tiny_tokenizer

    tokenizer = tiny_tokenizer(["a red ball in a room"], "clip")
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Owlv2Config(
        text_config={**size, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 77},
        vision_config={**size, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    torch.manual_seed(0)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)
