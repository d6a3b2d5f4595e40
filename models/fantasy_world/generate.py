"""Requests of FantasyWorld answered with files: video, depth, points, cameras."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from stagecoach.data.fantasy_world.camera_files import Pace, load_cameras, write_cameras
from stagecoach.data.fantasy_world.camera_track import Cameras
from stagecoach.data.fantasy_world.readers import Clock, IntrinsicsUnit, read_frames
from stagecoach.data.outputs.depth import write_depth, write_depth_video
from stagecoach.data.outputs.point_cloud import make_cloud, write_glb, write_ply
from stagecoach.data.outputs.sheet import contact_sheet, write_picture
from stagecoach.data.outputs.video import write_video
from stagecoach.data.pictures import depth_colours, read_picture
from stagecoach.models.common.keyed import request_generators
from stagecoach.models.fantasy_world.inputs import FantasyWorldOutput, check_size
from stagecoach.models.fantasy_world.long_clips import sample_long
from stagecoach.models.fantasy_world.pipeline import FantasyWorldPipeline, load_drawing
from stagecoach.models.fantasy_world.sampler import INFERENCE_STEPS
from stagecoach.models.generation import (
    Generation,
    GenerationOptions,
    Request,
    RequestFields,
    Source,
    find_file,
    to_device,
)
from stagecoach.models.weights import Weights

RATE = 16.0
"""Frames per second of Wan2.1."""


class WorldFields(RequestFields):
    prompt: str | None = None
    negative_prompt: str | None = None
    image: str | None = None
    """First frame, for image-to-video sizes."""
    video: str | None = None
    """A video whose geometry is read; none is made."""
    camera: str | None = None
    """A preset or a file, as ``load_cameras`` takes it with the next four; None withholds the camera."""
    pace: Pace = "time"
    clock: Clock = "auto"
    unit: IntrinsicsUnit = "normalised"
    scale: float = Field(1.0, gt=0)
    """Translations are divided by it: the mean distance of the scene from camera 0, for a path in metres."""
    camera_guidance: float | None = None
    frames: int | None = Field(None, ge=1)
    """Beyond those of the network's clip: n (clip - 1) + 1, for a row of n clips of an image-to-video network."""
    height: int | None = Field(None, ge=16)
    width: int | None = Field(None, ge=16)
    fps: float = Field(RATE, gt=0)
    scheduler: str | None = None


@dataclass(frozen=True)
class WorldRequest(Request):
    """``camera``: of each frame, None where it is withheld; ``clip``: frames of one clip of the row."""

    given: WorldFields
    camera: Cameras | None
    image: Path | None
    video: Path | None
    frames: int
    clip: int
    height: int
    width: int


class FantasyWorldGeneration(Generation):
    """Weights of stage 1 read the geometry of a given video, or of the one that the base makes."""

    components = ("vae", "text_encoder", "tokenizer", "image_encoder")
    fields = WorldFields
    shown = ("video.mp4", "depth.mp4")
    steps = INFERENCE_STEPS
    guidance = 5.0
    pipeline: FantasyWorldPipeline

    def __init__(self, weights: Weights, options: GenerationOptions) -> None:
        super().__init__(weights, options)
        self.require("vae", *(["image_encoder"] if self.config.image_to_video else []))

    def parse(self, entry: Mapping[str, Any], source: Source) -> WorldRequest:
        given, where, clip = self.read(entry, source), source.where, self.config.clip
        frames, height, width = given.frames or clip.frames, given.height or clip.height, given.width or clip.width
        files = {
            name: find_file(text, name, source)
            for name in ("image", "video")
            if (text := getattr(given, name)) is not None
        }
        if given.video is None:
            self._check_drawing(given, frames, where)
        if given.prompt is not None and not {"text_encoder", "tokenizer"} <= set(self.options.components):
            raise ValueError(f"{where}: prompt is given without text_encoder and tokenizer, expected their folders")
        try:
            check_size(min(frames, clip.frames), height, width)
            path, camera = self._camera(given, frames, height, width, source)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return WorldRequest(
            **self.common(given, entry, source),
            files=(*files.values(), *([path] if path is not None else [])),
            given=given,
            camera=camera,
            image=files.get("image"),
            video=files.get("video"),
            frames=frames,
            clip=min(frames, clip.frames),
            height=height,
            width=width,
        )

    def _check_drawing(self, given: WorldFields, frames: int, where: str) -> None:
        """Raise ``ValueError`` for what a video cannot be made of."""
        if given.prompt is None:
            raise ValueError(f"{where}: no prompt, expected one, or a video whose geometry is read")
        if (given.image is None) == self.config.image_to_video:
            kind = "image-to-video and takes" if self.config.image_to_video else "text-to-video and takes no"
            raise ValueError(f"{where}: image is {given.image!r}, and this network is {kind} first frame")
        step = self.config.clip.frames - 1
        if frames > step + 1:
            if not self.config.image_to_video or given.camera is None:
                raise ValueError(
                    f"{where}: frames is {frames}, expected at most {step + 1}, those of this network's clips; longer "
                    "videos are rows of clips along a camera path, made by an image-to-video network"
                )
            if (frames - 1) % step:
                more = -(-(frames - 1) // step) * step + 1
                raise ValueError(f"{where}: frames is {frames}, expected n {step} + 1, such as {more}")

    def _camera(
        self, given: WorldFields, frames: int, height: int, width: int, source: Source
    ) -> tuple[Path | None, Cameras | None]:
        """The camera's file, if it is one, and the cameras."""
        if given.camera is None:
            return None, None
        path = source.folder / given.camera
        place = path if path.exists() else given.camera
        found = load_cameras(place, frames, height, width, given.fps, given.pace, given.unit, given.clock)
        return (path if path.exists() else None), found.scaled(given.scale)

    def load(self) -> None:
        own = self.options
        network = load_drawing(self.weights, own.base, own.dtype, own.quantize)
        pipeline = FantasyWorldPipeline.from_network(network, **own.components)
        if own.vae_tiling:
            pipeline.enable_vae_tiling()
        self.pipeline = to_device(pipeline, own)

    def answer(self, request: WorldRequest, folder: Path) -> dict[str, Any]:
        found = self._sample(request)
        video = (np.asarray(found.frames[0]) * 255).round().astype(np.uint8)
        depth, confidence = (x[0].numpy() for x in (found.depth, found.depth_confidence))
        extrinsics, intrinsics = (x[0].double().numpy() for x in (found.extrinsics, found.intrinsics))
        rate = request.given.fps
        write_video(folder / "video.mp4", video, rate)
        limits = write_depth_video(folder / "depth.mp4", depth, rate)
        write_depth(folder / "depth.npz", depth, confidence)
        cloud = make_cloud(depth, video, intrinsics, extrinsics, confidence)
        write_ply(folder / "points.ply", cloud)
        if len(cloud.points):  # glTF has no empty cloud
            write_glb(folder / "points.glb", cloud)
        write_cameras(folder / "cameras.json", Cameras(extrinsics, intrinsics, request.height, request.width), rate)
        if request.camera is not None:
            write_cameras(folder / "cameras_given.json", request.camera, rate)
        colours = np.stack([depth_colours(frame, limits) for frame in depth])
        write_picture(folder / "contact.png", contact_sheet({"video": video, "depth": colours}))
        return {
            "frames": len(video),
            "fps": rate,
            "height": request.height,
            "width": request.width,
            "points": len(cloud.points),
            "sigma_read": found.sigma_read,
            "video": "given" if request.video is not None else "sampled",
        }

    def _sample(self, request: WorldRequest) -> FantasyWorldOutput:
        given, generator = request.given, request_generators(request.seed, request.id, [0])
        camera: dict[str, Any] = {}
        if request.camera is not None:
            camera = {"cameras": request.camera.extrinsics, "intrinsics": request.camera.intrinsics}
        shape = {"height": request.height, "width": request.width, "generator": generator}
        if request.video is not None:
            clip = list(read_frames(request.video, request.frames))
            return self.pipeline.read_geometry(clip, given.prompt, **camera, **shape)  # type: ignore[return-value]

        def on_step(*_: Any) -> dict[str, Any]:
            self.options.on_step()
            return {}

        asked = {
            "prompt": given.prompt,
            "negative_prompt": given.negative_prompt,
            "image": None if request.image is None else np.asarray(read_picture(request.image)),
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance,
            "camera_guidance_scale": given.camera_guidance,
            "scheduler": given.scheduler,
            "callback_on_step_end": on_step,
            **camera,
            **shape,
        }
        if request.frames > request.clip:
            return sample_long(self.pipeline, num_frames=request.clip, **asked)
        return self.pipeline(num_frames=request.frames, **asked)  # type: ignore[return-value]
