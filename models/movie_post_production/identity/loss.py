"""The identity loss: what the network says of the picture is decoded around the boxes and seen by DINOv2, and compared
with the references, with gradients all the way back to the velocity.

Nothing is per reference in Python: each sample has ``crops`` slots, some of them empty, so that every rank makes the
same calls for any boxes.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from stagecoach.models.common.decoder import Decoder
from stagecoach.models.common.keyed import keyed_rand
from stagecoach.models.common.reduce import masked_mean
from stagecoach.models.family import Batch
from stagecoach.models.movie_post_production.config import IdentityConfig
from stagecoach.models.movie_post_production.helpers import CropFeatures
from stagecoach.models.movie_post_production.identity.tiles import crop_weights, pixel_boxes, resample, tiles


@dataclass(frozen=True)
class Slots:
    """References that were drawn: ``index`` int64 ``[B, K]`` into the padded references, ``used`` bool ``[B, K]``."""

    index: Tensor
    used: Tensor

    def take(self, values: Tensor) -> Tensor:
        """``[B, N, ...]`` -> ``[B, K, ...]``."""
        index = self.index.view(*self.index.shape, *[1] * (values.ndim - 2))
        return values.gather(1, index.expand(*self.index.shape, *values.shape[2:]))


def draw_slots(batch: Batch, purpose: str, candidates: Tensor, count: int, most: int) -> Slots:
    """``count`` of each sample's ``candidates`` (bool ``[B, N]``), uniformly without repetition, keyed by the sample;
    fewer where there are fewer. ``most``: the largest N there may be; so many numbers are drawn for each sample, and
    the choice does not depend on the references of others in the batch."""
    score = keyed_rand(batch, purpose, (most,))[:, : candidates.shape[1]].masked_fill(~candidates, -1.0)
    score = F.pad(score, (0, max(count - score.shape[1], 0)), value=-1.0)
    best, index = score.topk(count, dim=1)
    return Slots(index.clamp_max(candidates.shape[1] - 1), best >= 0)


def similarity(
    latent: Tensor, boxes: Tensor, references: Tensor, decoder: Decoder, dino: CropFeatures, config: IdentityConfig
) -> Tensor:
    """Cosine fp32 ``[B, K]`` between DINOv2's view of ``boxes`` ``[B, K, 4]`` in the decoded ``latent``
    ``[B, C, h, w]`` and ``references`` ``[B, K, dim]``."""
    features = dino(decoded_crops(latent, boxes, decoder, dino.size, config).flatten(0, 1))
    return F.cosine_similarity(features.view(*boxes.shape[:2], -1), references.float(), dim=-1)


def decoded_crops(latent: Tensor, boxes: Tensor, decoder: Decoder, size: int, config: IdentityConfig) -> Tensor:
    """What ``boxes`` ``[B, K, 4]`` show, pixels fp32 ``[B, K, 3, size, size]``, cut and resized as the references were.

    Around each box a tile of the latent is decoded, or (``decode: full``) the picture as a whole. The two differ near
    the tile's border and by the decoder's group norms, whose statistics are then the tile's.
    """
    height, width = latent.shape[-2:]
    if config.decode == "full":
        picture = decoder(latent)
        at = pixel_boxes(boxes, *picture.shape[-2:])
        return resample(picture, *crop_weights(at, *picture.shape[-2:], size))
    found = tiles(boxes, height, width, config.tile, config.margin)
    latents = resample(latent.float(), found.rows, found.columns).flatten(0, 1)
    pixels = decoder(latents)
    weights = crop_weights(found.boxes.flatten(0, 1)[:, None], *pixels.shape[-2:], size)
    return resample(pixels, *weights).view(*boxes.shape[:2], 3, size, size)


def identity_loss(cosine: Tensor, alpha: Tensor, used: Tensor) -> Tensor:
    """``[B]``: mean over a sample's slots in use of alpha (1 - cos), 0 where none is. All are ``[B, K]``. alpha is a
    weight here and gets no gradient: the loss could be lowered by lowering it."""
    return masked_mean(alpha.detach().float() * (1 - cosine), used)
