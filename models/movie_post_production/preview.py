"""Pictures of held-out samples: what was there and what the network paints instead, with boxes."""

import numpy as np
import torch

from stagecoach.data.movie_post_production.painted import MOST_CROPS, crop_rows, cut_object, draw_boxes
from stagecoach.models.common.keyed import keyed_randn
from stagecoach.models.common.pictures import column, titled, to_uint8
from stagecoach.models.family import Batch, Progress
from stagecoach.models.metrics.record import Record
from stagecoach.models.movie_post_production.layout.instances import make_instances
from stagecoach.models.movie_post_production.sampler import Guidance, Sample, sample
from stagecoach.models.movie_post_production.stages import IDENTITY_STAGE
from stagecoach.models.movie_post_production.step import layout_weight

PANEL_HEIGHT = 384


@torch.no_grad()
def preview(network: torch.nn.Module, batch: Batch, progress: Progress) -> dict[str, np.ndarray]:
    """One picture per sample, uint8 ``[height, width, 3]``, by the sample's key: the ground truth as the VAE decodes it
    next to a sample drawn from noise that is fixed per sample. Boxes are red where alpha >= 0.5, else blue, with alpha
    next to them. From stage 2 on the objects follow below, each as it was and as it is painted."""
    config = network.config
    vae = progress.helpers["vae"]
    found = draw(network, batch, progress)
    truth, painted = (to_uint8(vae(latent)) for latent in (batch["latent"].float(), found.latents))
    valid = make_instances(batch, config, progress)["valid"].cpu()
    pictures = {}
    for b, key in enumerate(batch["key"]):
        rows = valid[b].nonzero()[:, 0]
        boxes = batch["boxes"][b].cpu().float()[rows].tolist()
        weights = found.alpha[b].cpu()[rows].tolist()
        both = [truth[b], painted[b]]
        panels = [
            titled(draw_boxes(picture, boxes, weights, PANEL_HEIGHT), title)
            for picture, title in zip(both, ("ground truth", "predicted"), strict=True)
        ]
        picture = np.concatenate(panels, 1)
        if network.stage >= IDENTITY_STAGE:
            rows = [[cut_object(shown, box) for box in boxes[:MOST_CROPS]] for shown in both]
            picture = column([picture, crop_rows(rows)])
        pictures[key] = picture
    return pictures


SAMPLED = ("psnr", "ssim", "ms_ssim", "lpips")


@torch.no_grad()
def sampled(network: torch.nn.Module, batch: Batch, progress: Progress) -> list[tuple[Record, Record]]:
    """The pictures of a preview, and the true ones as the VAE decodes them."""
    vae = progress.helpers["vae"]
    both = (
        ((vae(x) + 1) / 2).float().clamp(0, 1)
        for x in (draw(network, batch, progress).latents, batch["latent"].float())
    )
    pairs = zip(batch["key"], *both, strict=True)
    return [(Record(key, frames=painted[None]), Record(key, frames=true[None])) for key, painted, true in pairs]


@torch.no_grad()
def draw(network: torch.nn.Module, batch: Batch, progress: Progress) -> Sample:
    """A sample for each caption and its references, shown in the first ``sampling.layout_fraction`` of the steps."""
    settings = network.config.sampling
    return sample(
        network.predict,
        {"t5": batch["t5"], "pooled": batch["pooled"], "instances": make_instances(batch, network.config, progress)},
        keyed_randn(batch, "preview_noise", batch["latent"].shape[1:]),
        settings.steps,
        Guidance(settings.guidance_scale),
        settings.layout_fraction,
        layout_weight(network.config, progress),
    )
