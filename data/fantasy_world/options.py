"""What a build of FantasyWorld's clips asks: their size, and how the raw files are to be read."""

from dataclasses import dataclass
from typing import Annotated, Literal

from stagecoach.data.building.options import Argument
from stagecoach.data.fantasy_world.readers import Clock, IntrinsicsUnit
from stagecoach.data.fantasy_world.schema import LATENT_STRIDE, latent_frames
from stagecoach.data.pictures import check_sides

PATCH_STRIDE = 2 * LATENT_STRIDE
"""Pixels per token of the Wan transformer, which takes 2 x 2 latents as one."""

DepthKind = Literal["depth", "disparity"]
Convention = Literal["w2c", "c2w"]
Axes = Literal["opencv", "opengl", "ned"]


def _numbers(words: list[str]) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"--depth-invalid {','.join(words)} found, expected numbers with commas between") from error


@dataclass(frozen=True)
class ClipOptions:
    """Raises ``ValueError`` for a size that the backbone cannot take, and for numbers out of range."""

    frames: Annotated[int, Argument("frames per clip, 4k + 1")] = 81
    height: Annotated[int, Argument("pixels")] = 336
    width: Annotated[int, Argument("pixels")] = 592
    intrinsics: Annotated[
        IntrinsicsUnit, Argument("unit in the camera files: divided by width and height (default), or pixels")
    ] = "normalised"
    camera_convention: Annotated[
        Convention, Argument("matrices of the camera files: world to camera (default), or camera to world")
    ] = "w2c"
    camera_axes: Annotated[
        Axes,
        Argument(
            "a camera's axes: opencv (default; x right, y down, z forward), opengl (y up, z backward, also Blender and "
            "NeRF) or ned (x forward, y right, z down, as TartanAir)"
        ),
    ] = "opencv"
    camera_clock: Annotated[
        Clock,
        Argument(
            "what the first column of camera files counts (default: auto; fractions are seconds, whole numbers in "
            "steps below 1,000 are frames, others are microseconds, as in RealEstate10K)"
        ),
    ] = "auto"
    start: Annotated[int, Argument("the first camera of a video's (first) clip, in the order of time", metavar="N")] = 0
    stride: Annotated[int, Argument("take every N-th camera, and its frame", metavar="N")] = 1
    fps: Annotated[
        float | None, Argument("choose cameras and frames by their times, so many per second (default: one by one)")
    ] = None
    clips_per_video: Annotated[
        int, Argument("clips that are made of one video, one after the other; 0: as many as there are", metavar="N")
    ] = 1
    depth_kind: Annotated[DepthKind, Argument("what depth files hold: z-depth (default) or its inverse")] = "depth"
    depth_scale: Annotated[
        float | None,
        Argument(
            "what depth is multiplied by to be in the unit of the camera translations (default: 0.001 for files of "
            "whole numbers, which are taken for millimetres, 1 for others)",
            metavar="X",
        ),
    ] = None
    depth_invalid: Annotated[
        tuple[float, ...],
        Argument(
            "numbers in depth files that mark a pixel without depth, besides 0, negative and not finite ones "
            "(default: 65535 in files of whole numbers)",
            metavar="X",
            parse=_numbers,
        ),
    ] = ()
    depth_max: Annotated[
        float | None,
        Argument(
            "in the unit of the camera translations; what is farther is sky, without depth (default: 100 times the "
            "clip's median depth)",
            metavar="X",
        ),
    ] = None
    scale_quantile: Annotated[
        float,
        Argument(
            "part of the points, the nearest first, whose mean distance is the scale; published: 0.95", metavar="Q"
        ),
    ] = 1.0
    max_warp_error: Annotated[
        float,
        Argument(
            "median relative error of depth, frame 0 warped into the last frame, above which a clip is refused; from "
            "1 on it is written down only",
            metavar="X",
        ),
    ] = 0.02

    def __post_init__(self) -> None:
        latent_frames(self.frames)
        check_sides(self.height, self.width, PATCH_STRIDE, "VAE stride 8, patch 2")
        for name in ("depth_scale", "depth_max", "max_warp_error"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name.replace('_', ' ')} {value} found, expected a number above 0")
        for name, least in (("start", 0), ("stride", 1), ("clips_per_video", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name.replace('_', ' ')} {getattr(self, name)} found, expected at least {least}")
        if self.fps is not None and (not self.fps > 0 or self.stride != 1):
            raise ValueError(
                f"fps {self.fps:g} with stride {self.stride} found, expected a number above 0, and one of the two"
            )
        if not 0 < self.scale_quantile <= 1:
            raise ValueError(f"scale quantile {self.scale_quantile} found, expected a part above 0, at most 1")
