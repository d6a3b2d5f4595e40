"""Metrics over held-out pictures, with the references and, as the baseline, without."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.data.movie_post_production.schema import LATENT_STRIDE
from stagecoach.models.common.reduce import sum_count
from stagecoach.models.family import Batch, Progress
from stagecoach.models.movie_post_production.identity.tiles import crop_weights, pixel_boxes, resample
from stagecoach.models.movie_post_production.layout.instances import Instances, make_instances
from stagecoach.models.movie_post_production.losses import Metrics, make_process, reference_metrics
from stagecoach.models.movie_post_production.step import covered_latents, predict, token_count, without_references

LEVELS = (0.2, 0.4, 0.6, 0.8)
"""t at which the errors are measured."""
DECODED_LEVEL = 0.6
"""The one at which the estimate of the picture is decoded: the noisiest at which identity is asked for by default."""


@torch.no_grad()
def validate(network: torch.nn.Module, batch: Batch, progress: Progress, statistics: Mapping[str, Any]) -> Metrics:
    """Sums and counts (fp32 scalars) by name, with noise fixed per sample and level, nothing withheld.

    - ``val_flow_loss``: flow-matching error over the pictures at ``LEVELS``.
    - ``val_in_box_error``: mean squared error of the estimated latent over the boxes, over ``LEVELS``.
    - ``val_in_box_colour_error``: mean absolute error of the decoded estimate over the boxes at ``DECODED_LEVEL``, in
      parts of full brightness.
    - ``val_dino_similarity``, where the stage has DINOv2: cosine of each valid object in that picture with its
      reference.
    - ``val_alpha_mean``, ``val_alpha_fg_ratio``.

    With ``_baseline`` appended: the same network, noise and levels without any reference, which is FLUX's prediction
    (of its LoRA, where ``lora.scope`` is global). With ``_swapped``: each box with the reference of another object of
    the picture. What the boxes alone teach, where something stands, is the same there; what the references say is not.
    """
    config = network.config
    latent = batch["latent"].float()
    instances = make_instances(batch, config, progress)
    covered = covered_latents(instances, latent)
    vae, dino = progress.helpers["vae"], progress.helpers.get("dino")
    truth = vae(latent)
    process = make_process(config.losses.flow_matching, token_count(latent))
    metrics: Metrics = {}
    for suffix, shown in (
        ("", instances),
        ("_baseline", without_references(instances)),
        ("_swapped", swapped_references(instances)),
    ):
        flow, in_box = [], []
        for level in LEVELS:
            t = latent.new_full((len(latent),), level)
            noised = process.noised(batch, latent, t, f"val_noise/{level}")
            prediction = predict(
                network, batch, shown, noised.x, t, config.losses.flow_matching.guidance_scale, progress
            )
            velocity = prediction["velocity"]
            flow.append(noised.error(velocity))
            estimate = noised.estimate(velocity)
            in_box.append((estimate - latent).square().mean(1))
            if level == DECODED_LEVEL:
                picture = vae(estimate)
                metrics[f"val_in_box_colour_error{suffix}"] = sum_count(
                    (picture - truth).abs().mean(1) / 2, _pixels(covered)
                )
                if dino is not None:
                    metrics[f"val_dino_similarity{suffix}"] = _similarity(dino, picture, instances)
                if not suffix:
                    found = reference_metrics(prediction, instances["valid"])
                    metrics |= {f"val_{name}": found[name] for name in ("alpha_mean", "alpha_fg_ratio")}
        metrics[f"val_flow_loss{suffix}"] = sum_count(torch.cat(flow))
        errors = torch.stack(in_box)
        metrics[f"val_in_box_error{suffix}"] = sum_count(errors, covered.expand_as(errors))
    return metrics


def swapped_references(instances: Instances) -> Instances:
    """Each valid slot with the content of the next valid one of its picture, boxes and depth labels as they were. A
    picture with one object keeps it."""
    valid = instances["valid"]
    count, slots = valid.sum(1, keepdim=True), valid.shape[1]
    # Valid slots in their order, the others behind them, as a cycle of the former.
    order = (~valid).int().argsort(dim=1, stable=True)
    rank = valid.cumsum(1) - 1
    following = order.gather(1, torch.where(valid, (rank + 1) % count.clamp_min(1), 0))
    source = torch.where(valid, following, torch.arange(slots, device=valid.device))
    moved = dict(instances)
    for name in ("clip", "dino", "text", "clip_given", "dino_given", "text_given"):
        if name in instances:
            value = instances[name]
            index = source.view(*source.shape, *[1] * (value.ndim - 2)).expand(*source.shape, *value.shape[2:])
            moved[name] = value.gather(1, index)
    return moved


def _pixels(covered: Tensor) -> Tensor:
    return covered.repeat_interleave(LATENT_STRIDE, 1).repeat_interleave(LATENT_STRIDE, 2)


def _similarity(dino: torch.nn.Module, picture: Tensor, instances: Instances) -> tuple[Tensor, Tensor]:
    size = picture.shape[-2:]
    crops = resample(picture, *crop_weights(pixel_boxes(instances["boxes"], *size), *size, dino.size))
    features = dino(crops.flatten(0, 1)).unflatten(0, crops.shape[:2])
    cosine = F.cosine_similarity(features, instances["dino"].float(), dim=-1)
    return sum_count(cosine, instances["valid"] & instances["dino_given"])
