"""What a DanceWithMusic sample holds: one contiguous segment of a dance, without its video.

Heatmaps, skeletons and face masks are not stored: they follow from poses and boxes, and are drawn on the device.
"""

from stagecoach.data.format.schema import Field, SampleSchema

NAME = "dance_with_music"
VERSION = 1
FRAME_RATE = 30
KEYPOINTS = 134
FACE_DIM = 512
LATENT_CHANNELS = 4
LATENT_STRIDE = 8


def dance_schema(music_dim: int = 35, clip_dim: int = 768, map_channels: int | None = None) -> SampleSchema:
    """Fields of a segment of F frames of H x W pixels at 30 per second, with R references; h = H / 8, w = W / 8.

    - ``latents``: mean of the VAE's posterior, times its scaling factor (which ``meta`` names).
    - ``ref_latents``, ``ref_clip``, ``ref_arcface``: the references through VAE and CLIP (projected embedding), and
      their faces through ArcFace, as unit vectors; ``ref_arcface_norm`` is the length that each had,
      ``ref_face_valid`` 0 where no face was found (then vector and length are 0).
    - ``ref_frame``: the frame of this segment that the reference is; -1 where it is a picture of its own.
    - ``pose_xy``: 134 DWPose points (``data.dance_with_music.skeleton``), 65535 is the picture's width or height;
      ``pose_conf``: 255 is 1, 0 a point that is not there or outside of the picture.
    - ``face_box``: x0 y0 x1 y1 divided by width and height; 0 where ``face_valid`` is 0.
    - ``music``: row k is frame k; EDGE's 35 numbers (``data.encoding.audio``), 4800 of Jukebox, or any others.
    - ``music_map``, where ``map_channels`` are given: pictures that another program has made of the music.
    - ``beat``: 1 at the frames of beats; ``onset``: strength of the onset in each frame.
    - ``frame``: the middle frame, for previews.
    """
    maps = () if map_channels is None else (Field("music_map", "f16", ("F", map_channels, "hm", "wm")),)
    return SampleSchema(
        NAME,
        VERSION,
        (
            Field("latents", "f16", ("F", LATENT_CHANNELS, "h", "w")),
            Field("ref_latents", "f16", ("R", LATENT_CHANNELS, "h", "w")),
            Field("ref_frame", "i64", ("R",)),
            Field("ref_clip", "f16", ("R", clip_dim)),
            Field("ref_arcface", "f32", ("R", FACE_DIM)),
            Field("ref_arcface_norm", "f32", ("R",)),
            Field("ref_face_valid", "u8", ("R",)),
            Field("pose_xy", "u16", ("F", KEYPOINTS, 2)),
            Field("pose_conf", "u8", ("F", KEYPOINTS)),
            Field("face_box", "f16", ("F", 4)),
            Field("face_valid", "u8", ("F",)),
            Field("music", "f16", ("F", music_dim)),
            Field("beat", "u8", ("F",)),
            Field("onset", "f16", ("F",)),
            *maps,
            Field("frame", "image", ("H", "W", 3), optional=True),
        ),
        window="F",
    )
