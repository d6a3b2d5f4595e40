"""Pictures of a held-out clip: what was there, what the geometry heads say of it, and where the camera went."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from stagecoach.data.fantasy_world.cameras import centres, decode_pose
from stagecoach.data.pictures import INVALID, turbo
from stagecoach.models.common.keyed import keyed_randn
from stagecoach.models.common.pictures import resized, titled
from stagecoach.models.family import Batch, Progress
from stagecoach.models.fantasy_world.heads.targets import all_frames, make_targets
from stagecoach.models.fantasy_world.sampler import read_geometry
from stagecoach.models.fantasy_world.step import conditions, make_process
from stagecoach.models.metrics import cameras, depth
from stagecoach.models.metrics.record import Record

PANEL_WIDTH = 240
_TRUE, _PREDICTED = (40, 160, 60), (220, 90, 20)


@torch.no_grad()
def preview(network: torch.nn.Module, batch: Batch, progress: Progress) -> dict[str, np.ndarray]:
    """One picture per sample, uint8 ``[height, width, 3]``, by the sample's key. Geometry is read at the sigma of
    inference's last step, and no camera is given to the network, so that the path it draws is its own.

    Upper row: first frame, its true depth, predicted depth, confidence. Lower row: the camera paths from above (green:
    true, orange: predicted), then the same of the last frame. Colours of depth run over 1 / depth, near is red, in the
    range of the true depth; grey is invalid.
    """
    count, total = batch["depth"].shape[:2]
    device = batch["uid"].device
    frames = torch.tensor([0, total - 1], device=device).expand(count, 2)
    prediction = read(network, batch, frames)
    targets = make_targets(batch, frames)
    height, width = targets.depth.shape[-2:]
    true_path = centres(batch["extrinsics"].float())
    path = centres(decode_pose(prediction["poses"][-1].float(), height, width)[0])
    pictures = {}
    for b, key in enumerate(batch["key"]):
        first = batch["frame"][b].cpu().numpy() if "frame" in batch else np.full((height, width, 3), 255, np.uint8)
        first = _panel(first, "first frame")
        plan = draw_paths(true_path[b].cpu().numpy(), path[b].cpu().numpy(), PANEL_WIDTH, first.shape[0])
        maps = [
            x[b].float().cpu().numpy() for x in (targets.depth, prediction["depth"], prediction["depth_confidence"])
        ]
        rows = []
        for k, (left, which) in enumerate(((first, "first frame"), (plan, "last frame"))):
            titles = [f"{name}, {which}" for name in ("true depth", "predicted depth", "confidence")]
            panels = _depth_panels(*(x[k] for x in maps))
            rows.append(np.concatenate([left, *map(_panel, panels, titles)], 1))
        pictures[key] = np.concatenate(rows, 0)
    return pictures


def read(network: torch.nn.Module, batch: Batch, frames: Tensor) -> dict[str, Any]:
    """The geometry of ``frames`` ``[B, K]`` of the true videos, the camera withheld."""
    withheld = torch.zeros(len(frames), dtype=torch.bool, device=frames.device)
    latent, process = batch["latent"], make_process(network.config.losses)
    noise = keyed_randn(batch, "val_noise", latent.shape[1:])
    return read_geometry(network.predict, conditions(batch, withheld), latent, noise, process, frames)


SAMPLED = (*(m.name for m in cameras.METRICS), *(m.name for m in depth.METRICS), "reprojection_depth")


@torch.no_grad()
def sampled(network: torch.nn.Module, batch: Batch, progress: Progress) -> list[tuple[Record, Record]]:
    """Depth and cameras of all frames, as a preview reads them of two, and the true ones."""
    frames = all_frames(batch, batch["depth"].shape[1])
    prediction, targets = read(network, batch, frames), make_targets(batch, frames)
    size = targets.depth.shape[-2:]
    path = decode_pose(prediction["poses"][-1].float(), *size)
    true_path = batch["extrinsics"].float(), batch["intrinsics"].float()

    def record(b: int, key: str, maps: Tensor, cameras: tuple[Tensor, Tensor]) -> Record:
        return Record(key, depth=maps[b].float(), cameras=(cameras[0][b], cameras[1][b]))

    return [
        (record(b, key, prediction["depth"], path), record(b, key, targets.depth, true_path))
        for b, key in enumerate(batch["key"])
    ]


def draw_paths(true: np.ndarray, predicted: np.ndarray, width: int, height: int) -> np.ndarray:
    """Two paths ``[F, 3]`` from above (x to the right, z up) on one scale, uint8 ``[height, width, 3]``. The dot is
    frame 0; the bar is one fifth of the scene's scale."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    points = np.nan_to_num(np.concatenate([true, predicted])[:, [0, 2]].astype(np.float64))
    middle = (points.max(0) + points.min(0)) / 2
    margin = 22
    scale = min(np.array([width, height]) - 2 * margin) / max(np.ptp(points, axis=0).max(), 0.2)
    for path, colour, title, line in ((true, _TRUE, "true camera path", 2), (predicted, _PREDICTED, "predicted", 14)):
        flat = np.nan_to_num(path[:, [0, 2]].astype(np.float64))
        at = (flat - middle) * scale * [1, -1] + [width / 2, height / 2]
        draw.line([tuple(p) for p in at], fill=colour, width=2)
        x, y = at[0]
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        draw.text((4, line), title, fill=colour)
    draw.line([(4, height - 6), (4 + 0.2 * scale, height - 6)], fill="black", width=2)
    draw.text((4, height - 20), "0.2", fill="black")
    return np.asarray(image)


def _depth_panels(truth: np.ndarray, prediction: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, ...]:
    """Coloured maps ``[H, W, 3]`` of one frame."""
    valid = truth > 0
    reference = 1 / truth[valid] if valid.any() else 1 / np.maximum(prediction, 1e-6)
    low, high = np.percentile(reference, (2, 98))
    span = max(high - low, 1e-6)
    true_colours = turbo((1 / np.where(valid, truth, 1) - low) / span)
    true_colours[~valid] = INVALID
    log_confidence = np.log(np.maximum(confidence, 1))
    return (
        true_colours,
        turbo((1 / np.maximum(prediction, 1e-6) - low) / span),
        turbo(log_confidence / max(log_confidence.max(), 1e-6)),
    )


def _panel(picture: np.ndarray, title: str) -> np.ndarray:
    return titled(resized(picture, width=PANEL_WIDTH, nearest=True), title)
