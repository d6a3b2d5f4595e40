"""What the network is given of a picture's references, made of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.data.movie_post_production.schema import valid_objects
from stagecoach.models.common.keyed import draws_on, keyed_drop
from stagecoach.models.family import Batch, Progress
from stagecoach.models.movie_post_production.config import MoviePostConfig

Instances = dict[str, Tensor]
"""References of B pictures, padded to N >= 1 slots:

- ``boxes`` fp32 ``[B, N, 4]``, x1 y1 x2 y2 in fractions of the picture; ``valid`` bool ``[B, N]``; ``depth`` int64
  ``[B, N]``, codes of ``DEPTH_LABELS``;
- ``clip`` ``[B, N, Dc]``, ``dino`` ``[B, N, Dd]``, unit vectors of the crops, and ``clip_given``, ``dino_given`` bool
  ``[B, N]``: where False a learned null stands in;
- with ``instance.text``: ``text`` ``[B, N, pooled_dim]`` and ``text_given`` bool ``[B, N]``;
- ``layout_given`` bool ``[B]``: where False the picture is made as if it had no references.
"""


def make_instances(batch: Batch, config: MoviePostConfig, progress: Progress) -> Instances:
    """The references of a micro-batch. What is withheld is keyed by the sample, and nothing is outside of training.
    ``boxes`` may be on the CPU no matter which device the rest is on; ``valid`` and ``layout_given`` are where they
    are.

    A batch without objects gets one empty slot, so that every rank calls the same modules. Raises ``ValueError`` for
    more objects than ``instance.max_refs`` and for vectors of another width than the recipe's.
    """
    own = config.instance
    boxes = batch["boxes"].float()
    count = boxes.shape[1]
    if count > own.max_refs:
        raise ValueError(
            f"a picture with {count} objects was given, expected at most instance.max_refs = "
            f"{own.max_refs}; raise it or build the shards with fewer"
        )
    valid = valid_objects(boxes)
    instances = {
        "boxes": boxes,
        "valid": valid,
        "depth": batch["depth"].long(),
        "clip": batch["clip"],
        "dino": batch["dino"],
    }
    for name, width in (("clip", own.clip_dim), ("dino", own.dino_dim)):
        check_width(name, batch[name], width)
    # As many draws as there may be objects: a sample's do not depend on how far it is padded.
    training, most = progress.training, (own.max_refs,)
    dropped = keyed_drop(batch, "reference_dropout", own.reference_dropout, training, most)[:, :count]
    for name in ("clip", "dino"):
        instances[f"{name}_given"] = (batch[name] != 0).any(-1) & ~dropped
    if own.text:
        text = batch.get("object_text")
        if text is None:
            text = batch["clip"].new_zeros(*valid.shape, config.backbone.pooled_dim)
        withheld = keyed_drop(batch, "object_text_dropout", own.text_dropout, training, most)[:, :count]
        instances["text"], instances["text_given"] = text, (text != 0).any(-1) & ~withheld
    if count == 0:
        instances = {name: F.pad(value, (0,) * (2 * value.ndim - 3) + (1,)) for name, value in instances.items()}
    # Segments are made where the boxes are, of the references of pictures that show them.
    draws = draws_on(batch, boxes.device)
    instances["layout_given"] = ~keyed_drop(draws, "layout_dropout", own.layout_dropout, training, (1,))[:, 0]
    return instances


def on_device(instances: Instances, device: torch.device) -> Instances:
    """The same, all on ``device``."""
    return {name: value.to(device) for name, value in instances.items()}


def check_width(name: str, vectors: Tensor, expected: int) -> None:
    """Raise ``ValueError`` where reference vectors ``[B, N, D]`` are not ``expected`` wide."""
    if vectors.shape[-1] != expected:
        raise ValueError(
            f"{name} vectors of {vectors.shape[-1]} numbers were given, expected instance.{name}_dim = "
            f"{expected}; set it to what the shards were built with"
        )
