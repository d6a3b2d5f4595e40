"""Pictures of held-out samples: what was there and what the network paints instead, with boxes."""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from stagecoach.data.movie_post_production.crops import cut
from stagecoach.models.common.keyed import keyed_randn
from stagecoach.models.common.noise import FlowMatching, denoise, resolution_shift
from stagecoach.models.common.pictures import column, resized, titled, to_uint8
from stagecoach.models.family import Batch, Progress
from stagecoach.models.movie_post_production.identity.loss import FOREGROUND
from stagecoach.models.movie_post_production.layout.instances import make_instances
from stagecoach.models.movie_post_production.stages import IDENTITY_STAGE
from stagecoach.models.movie_post_production.step import predict, token_count, without_references

PANEL_HEIGHT = 384
CROP = 96
MOST_CROPS = 8
RED, BLUE = (220, 30, 30), (40, 80, 230)


@torch.no_grad()
def preview(network: torch.nn.Module, batch: Batch, progress: Progress) -> dict[str, np.ndarray]:
    """One picture per sample, uint8 ``[height, width, 3]``, by the sample's key: the ground truth as the VAE decodes it
    next to a sample drawn from noise that is fixed per sample. Boxes are red where alpha >= 0.5, else blue, with alpha
    next to them. From stage 2 on the objects follow below, each as it was and as it is painted."""
    config = network.config
    vae = progress.helpers["vae"]
    sample, alpha = draw(network, batch, progress)
    truth, painted = (to_uint8(vae(latent)) for latent in (batch["latent"].float(), sample))
    valid = make_instances(batch, config, progress)["valid"].cpu()
    pictures = {}
    for b, key in enumerate(batch["key"]):
        rows = valid[b].nonzero()[:, 0]
        boxes = batch["boxes"][b].cpu().float()[rows].tolist()
        weights = alpha[b].cpu()[rows].tolist()
        both = [truth[b], painted[b]]
        panels = [
            titled(draw_boxes(picture, boxes, weights), title)
            for picture, title in zip(both, ("ground truth", "predicted"), strict=True)
        ]
        picture = np.concatenate(panels, 1)
        if network.stage >= IDENTITY_STAGE:
            picture = column([picture, _crops(both, boxes)])
        pictures[key] = picture
    return pictures


@torch.no_grad()
def draw(network: torch.nn.Module, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
    """A sample for each caption and its references: latent fp32 ``[B, 16, h, w]``, and alpha ``[B, N]`` at the first
    step. References are shown in the first ``sampling.layout_fraction`` of the steps."""
    config = network.config
    settings, latent = config.sampling, batch["latent"]
    instances = make_instances(batch, config, progress)
    shown = max(round(settings.layout_fraction * settings.steps), 1)
    alphas = []

    def velocity(x: Tensor, t: Tensor, k: int) -> Tensor:
        given = instances if k < shown else without_references(instances)
        prediction = predict(network, batch, given, x, t, settings.guidance_scale, progress)
        alphas.append(prediction["alpha"])
        return prediction["velocity"]

    noise = keyed_randn(batch, "preview_noise", latent.shape[1:])
    process = FlowMatching(resolution_shift(token_count(latent)), timesteps=1.0)
    sample = denoise(process, velocity, noise, settings.steps)
    return sample, alphas[0].float()


def draw_boxes(picture: np.ndarray, boxes: list[list[float]], alpha: list[float]) -> np.ndarray:
    """uint8 ``[H, W, 3]`` -> the same at ``PANEL_HEIGHT`` with boxes x1 y1 x2 y2 in fractions of it: red for alpha >=
    0.5, else blue."""
    image = Image.fromarray(resized(picture, height=PANEL_HEIGHT))
    width, pen = image.width, ImageDraw.Draw(image)
    for (x1, y1, x2, y2), weight in zip(boxes, alpha, strict=True):
        colour = RED if weight >= FOREGROUND else BLUE
        at = int(x1 * width), int(y1 * PANEL_HEIGHT), int(x2 * width), int(y2 * PANEL_HEIGHT)
        pen.rectangle((at[0], at[1], max(at[2] - 1, at[0]), max(at[3] - 1, at[1])), outline=colour, width=2)
        pen.text((at[0] + 4, at[1] + 3), f"alpha={weight:.2f}", fill="white", stroke_width=2, stroke_fill=colour)
    return np.asarray(image)


def _crops(pictures: list[np.ndarray], boxes: list[list[float]]) -> np.ndarray:
    """The first objects, those of the first picture above those of the second."""
    rows = [
        [cut(Image.fromarray(picture), tuple(box), (CROP, CROP)) for box in boxes[:MOST_CROPS]] for picture in pictures
    ]
    return np.concatenate([np.concatenate(row, 1) for row in rows if row] or [np.zeros((0, CROP, 3), np.uint8)])
