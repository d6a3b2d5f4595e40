"""What a MoviePostProduction sample holds: all that the three stages need, so that none of them reads a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagecoach.data.format.schema import Field, SampleSchema

if TYPE_CHECKING:
    from torch import Tensor

NAME = "movie_post_production"
VERSION = 1
LATENT_STRIDE = 8
PATCH_STRIDE = 2 * LATENT_STRIDE
"""Pixels per token of FLUX, which packs 2 x 2 latents into one."""
DEPTH_LABELS = ("foreground", "midground", "background")
"""In the order of their codes 0, 1, 2."""

FOREGROUND = 0.5
"""The least alpha of an object that stands in front."""


def movie_post_production_schema(
    latent_channels: int = 16,
    text_dim: int = 4096,
    pooled_dim: int = 768,
    clip_dim: int = 768,
    dino_dim: int = 1024,
    object_text: bool = True,
    image: bool = True,
) -> SampleSchema:
    """Fields of a picture of 8h x 8w pixels with N objects.

    - ``latent``: mode of the VAE's posterior, less its shift, times its scale, as FLUX's transformer takes it.
    - ``t5``: states of all L tokens of the global caption, padding included: FLUX masks none, so they may not be cut.
    - ``pooled``: pooled CLIP text state of the global caption.
    - ``boxes``: x1 y1 x2 y2 of each object as fractions of the width and height, inside [0, 1], x1 < x2 and y1 < y2.
      Collation pads with zeros; ``valid_objects`` tells which are real.
    - ``depth``: 0 foreground, 1 midground, 2 background (``DEPTH_LABELS``).
    - ``clip``, ``dino``: unit vectors of the object's reference crop: CLIP's projected image embedding, DINOv2's class
      token.
    - ``object_text``: pooled CLIP text state of the object's category and caption, where the builder encoded text.
    - ``image``: the picture, made small, for previews.
    """
    fields = [
        Field("latent", "bf16", (latent_channels, "h", "w")),
        Field("t5", "bf16", ("L", text_dim)),
        Field("pooled", "bf16", (pooled_dim,)),
        Field("boxes", "f32", ("N", 4), pad=0),
        Field("depth", "u8", ("N",), pad=0),
        Field("clip", "f16", ("N", clip_dim), pad=0),
        Field("dino", "f16", ("N", dino_dim), pad=0),
    ]
    if object_text:
        fields.append(Field("object_text", "bf16", ("N", pooled_dim), pad=0, optional=True))
    if image:
        fields.append(Field("image", "image", ("H", "W", 3), optional=True))
    return SampleSchema(NAME, VERSION, tuple(fields))


def valid_objects(boxes: Tensor) -> Tensor:
    """Which rows of boxes [..., N, 4] are objects, bool [..., N]: padding is an empty box, which no object has."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)
