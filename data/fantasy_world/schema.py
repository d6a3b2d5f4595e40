"""What a FantasyWorld sample holds. Point maps are not stored: they follow from depth, intrinsics and extrinsics."""

from stagecoach.data.format.schema import Field, SampleSchema

NAME = "fantasy_world"
VERSION = 1
MASK_CHANNELS = 4
"""Channels that Wan2.1's image-to-video model puts before the image latent: which frames are given."""
CLIP_TOKENS = 257
LATENT_STRIDE = 8
FRAMES_PER_LATENT = 4


def latent_frames(frames: int) -> int:
    """Latent frames f of a clip of F = 4 (f - 1) + 1 frames. Raises ``ValueError`` for an F of another form."""
    if frames < 1 or (frames - 1) % FRAMES_PER_LATENT:
        lower = max(frames - 1, 0) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
        raise ValueError(
            f"a clip of {frames} frames does not fill the VAE's latent frames; take {lower} or "
            f"{lower + FRAMES_PER_LATENT} (4k + 1)"
        )
    return (frames - 1) // FRAMES_PER_LATENT + 1


def fantasy_world_schema(
    latent_channels: int = 16, text_dim: int = 4096, image_to_video: bool = False, clip_dim: int = 1280
) -> SampleSchema:
    """Fields of a clip of F frames of H x W pixels; f = (F - 1) / 4 + 1, h = H / 8, w = W / 8.

    - ``latent``: normalised Wan VAE latent (posterior mode, mean and deviation of the VAE's config applied).
    - ``text``: umT5 states of the L real tokens; the network pads them with zeros to its text length.
    - ``depth``: z-depth divided by the scene scale; 0 marks an invalid pixel.
    - ``extrinsics``: world-to-camera relative to frame 0, translation divided by the scene scale.
    - ``intrinsics``: fx fy cx cy in pixels of the clip; the image spans [0, W] x [0, H], see ``cameras``.
    - ``frame``: first frame, for previews.
    - ``image_latent``, ``clip``: only for image-to-video backbones; 4 mask channels and the latent of the first frame
      followed by grey, and the penultimate CLIP states of the first frame.
    """
    fields = [
        Field("latent", "bf16", (latent_channels, "f", "h", "w")),
        Field("text", "bf16", ("L", text_dim), pad=0),
        Field("depth", "f16", ("F", "H", "W")),
        Field("extrinsics", "f32", ("F", 3, 4)),
        Field("intrinsics", "f32", ("F", 4)),
        Field("frame", "image", ("H", "W", 3), optional=True),
    ]
    if image_to_video:
        fields += [
            Field("image_latent", "bf16", (MASK_CHANNELS + latent_channels, "f", "h", "w")),
            Field("clip", "bf16", (CLIP_TOKENS, clip_dim)),
        ]
    return SampleSchema(NAME, VERSION, tuple(fields))
