"""Requests of DanceWithMusic answered with files: a video with its song, skeleton, poses, beats."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from stagecoach.data.annotation.poses import PoseEstimator, open_pose_estimator
from stagecoach.data.dance_with_music.footage import nearest_frames, open_footage
from stagecoach.data.dance_with_music.music import TAIL, music_shape
from stagecoach.data.dance_with_music.pose_checks import PoseUnit
from stagecoach.data.dance_with_music.poses import PoseReading, pose_count, read_poses
from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.data.dance_with_music.track import Track, read_track
from stagecoach.data.encoding.audio import EDGE_DIM, has_audio
from stagecoach.data.files import write_json
from stagecoach.data.outputs.dance import write_dance, write_poses, write_skeleton
from stagecoach.data.outputs.video import Sound
from stagecoach.data.pictures import check_sides, read_picture
from stagecoach.models.common.keyed import request_generators
from stagecoach.models.common.pictures import to_uint8
from stagecoach.models.dance_with_music.components import base_paths, open_music_to_pose
from stagecoach.models.dance_with_music.estimating import estimate_photo, estimate_video
from stagecoach.models.dance_with_music.inputs import move_pose, prepare_photos
from stagecoach.models.dance_with_music.pipeline import DanceWithMusicPipeline
from stagecoach.models.dance_with_music.sampler import make_windows
from stagecoach.models.generation import (
    Generation,
    GenerationOptions,
    Request,
    RequestFields,
    Source,
    find_file,
    to_device,
)
from stagecoach.models.metrics.dance import beat_alignment
from stagecoach.models.weights import Weights, load_network


class DanceFields(RequestFields):
    song: str
    """A sound or video file."""
    start: float = Field(0.0, ge=0)
    duration: float | None = Field(None, gt=0)
    """Seconds of the song that are danced; None for the rest."""
    photo: str | list[str] = Field(min_length=1)
    """Of the dancer; the first of several shows the face."""
    photo_pose: str | None = None
    """JSON of the pose in the first photo: its face, and where a predicted dance starts. None: what the pose estimator
    finds there, if there is one."""
    pose: str | None = None
    """File or folder of poses that are danced; None lets MusicToPose make them."""
    pose_video: str | None = None
    """Video or folder of pictures of a dancer, whose poses the pose estimator finds."""
    pose_rate: float = Field(float(FRAME_RATE), gt=0)
    pose_size: tuple[int, int] | None = None
    """Height and width of the pictures that the poses are of, where their shape is not the video's."""
    unit: PoseUnit | None = None
    """Of both poses; None for what their files say, or else divided by width and height."""
    rows: str | None = None
    """Rows of music for a network that hears others than the song's 35 numbers."""
    maps: str | None = None
    """Pictures of the music, for a network that is guided by such."""
    height: int | None = Field(None, ge=64)
    width: int | None = Field(None, ge=64)
    min_guidance: float | None = Field(None, ge=0)
    withhold_pose: bool | None = None
    context_length: int | None = Field(None, ge=1)
    context_overlap: int | None = Field(None, ge=0)
    scheduler: str | None = None


ESTIMATORS = ("pose_estimator", "person_detector")


@dataclass(frozen=True)
class DanceRequest(Request):
    given: DanceFields
    song: Path
    photos: tuple[Path, ...]
    photo_pose: Path | None
    pose: Path | None
    pose_video: Path | None
    rows: Path | None
    maps: Path | None
    height: int
    width: int


class DanceGeneration(Generation):
    """Weights of stage A alone make the skeleton."""

    components = ("vae", "image_encoder", "arcface", "music_to_pose", *ESTIMATORS)
    fields = DanceFields
    shown = ("video.mp4", "side_by_side.mp4")
    steps = 20
    guidance = 3.5
    pipeline: DanceWithMusicPipeline
    _estimator: PoseEstimator | None

    def __init__(self, weights: Weights, options: GenerationOptions) -> None:
        super().__init__(weights, replace(options, base=base_paths(options.base)))
        self.draws = self.config.phase(weights.stage) != "m2p"
        self.steps, self.guidance = self.config.sampling.steps, self.config.sampling.guidance_scale
        needed = ["image_encoder"]
        if self.draws and self.config.weights.vae is None:
            needed.append("vae")
        if not self.draws:
            self.shown = ("skeleton.mp4",)
        if any(name in self.options.components for name in ESTIMATORS):
            needed += ESTIMATORS
        self.require(*needed)

    def parse(self, entry: Mapping[str, Any], source: Source) -> DanceRequest:
        given, where, config = self.read(entry, source), source.where, self.config
        height, width = given.height or config.picture.height, given.width or config.picture.width
        photos = [given.photo] if isinstance(given.photo, str) else given.photo
        song = find_file(given.song, "song", source)
        found = {
            name: None if (text := getattr(given, name)) is None else find_file(text, name, source)
            for name in ("photo_pose", "pose", "pose_video", "rows", "maps")
        }
        files = tuple(find_file(text, "photo", source) for text in photos)
        try:
            check_sides(height, width, config.picture.multiple, "levels of the UNet and stride of the VAE")
            make_windows(config, given.context_length, given.context_overlap)
            if not has_audio(song):
                raise ValueError(f"{song}: no audio stream found, expected the song")
            channels = config.guidance.map_channels if self.draws else None
            if channels is not None and (found["maps"] is None or music_shape(found["maps"])[0] != channels):
                raise ValueError(f"maps of {channels} channels of the music wanted, expected their file; give maps")
            if found["pose_video"] is not None:
                self._check_video(given, found["pose_video"])
            elif found["pose"] is not None:
                pose_count(found["pose"])
            elif config.phase(self.weights.stage) == "guidance" and "music_to_pose" not in self.options.components:
                raise ValueError(
                    "no pose, and these weights have no MusicToPose; give poses, or --component music_to_pose=ADAPTER"
                )
            if found["photo_pose"] is not None and "arcface" not in self.options.components and self.draws:
                raise ValueError("photo_pose is given without arcface, which sees the face there, expected its file")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return DanceRequest(
            **self.common(given, entry, source),
            files=(song, *files, *(path for path in found.values() if path is not None)),
            given=given,
            song=song,
            photos=files,
            height=height,
            width=width,
            **found,
        )

    def _check_video(self, given: DanceFields, path: Path) -> None:
        if given.pose is not None:
            raise ValueError("both pose and pose_video are given, expected one of them")
        self.require(*ESTIMATORS)
        open_footage(path, given.pose_rate)

    def load(self) -> None:
        own = self.options
        network: Any = load_network(self.weights, own.base, dtype=own.dtype, quantize=own.quantize)
        parts: dict[str, Any] = dict(own.components)
        estimators = [parts.pop(name, None) for name in ESTIMATORS]
        self._estimator = open_pose_estimator(*estimators) if all(estimators) else None
        listening = parts.pop("music_to_pose", None)
        if listening is not None:
            listening = open_music_to_pose(listening, "raw", None, own.dtype)
        if self.draws and "vae" not in parts:
            parts["vae"] = self.config.weights.vae
        pipeline = DanceWithMusicPipeline.from_network(network, **parts, music_to_pose=listening)
        if own.vae_tiling and pipeline.vae is not None:
            if not hasattr(pipeline.vae, "use_tiling"):
                raise ValueError(
                    f"{type(pipeline.vae).__name__} decodes in no tiles; leave that out, frames are decoded 4 at a time"
                )
            pipeline.vae.enable_tiling()
        self.pipeline = to_device(pipeline, own)

    def answer(self, request: DanceRequest, folder: Path) -> dict[str, Any]:
        given, size = request.given, (request.height, request.width)
        told = request.pose is not None or request.pose_video is not None
        width = self._heard if not told or "music" in self.config.guidance.types else EDGE_DIM
        stride = self.config.frames.stride
        track = read_track(request.song, given.start, given.duration, stride, width, request.rows, request.maps)
        photos = [np.asarray(read_picture(path)) for path in request.photos]
        photo_pose = None
        if request.photo_pose is not None:
            xy, conf = read_poses(
                request.photo_pose, np.zeros(1, np.int64), PoseReading(given.unit), photos[0].shape[:2]
            )
            photo_pose = np.concatenate([xy, conf[..., None]], -1)[0]
        elif self._estimator is not None and (not told or "arcface" in self.options.components):
            photo_pose = estimate_photo(self._estimator, photos[0], request.photos[0])
        pose = self._poses(request, track) if told else None
        frames = track.frames if pose is None else min(track.frames, len(pose))
        sound = Sound(request.song, given.start)
        source = "predicted" if pose is None else "given" if request.pose_video is None else "estimated"
        if self.draws:
            found = self._sample(request, track, photos, photo_pose, pose, frames)
            danced = found.pose
        elif pose is None:
            start = self.pipeline.start_pose(photos, photo_pose, *size)
            embedding = self.pipeline.embed(photos).to(self.options.dtype)[:1]
            danced = self.pipeline.predict_poses(torch.from_numpy(track.rows), embedding, start).points[0].cpu()
        else:
            danced = pose[:frames]
        points = danced.numpy()
        write_poses(folder / "pose.json", points, track.rate, *size, source)
        write_json(folder / "beats.json", track.beats())
        if self.draws:
            photo = prepare_photos(photos, *size)[1][0]
            beat, onset = track.beat[:frames], track.onset[:frames]
            write_dance(folder, self._frames(found.frames[0]), points, photo, beat, onset, track.rate, sound)
        else:
            write_skeleton(folder / "skeleton.mp4", points, track.rate, size, sound)
        aligned, counted = beat_alignment(
            danced[None, ..., :2], danced[None, ..., 2], torch.from_numpy(track.beat[None, :frames]), *size, track.rate
        )
        return {
            "frames": frames,
            "fps": track.rate,
            "height": request.height,
            "width": request.width,
            "pose": source,
            "face": photo_pose is not None and self.draws,
            "beats": int(track.beat[:frames].sum()),
            "beat_alignment": round(aligned.item(), 4) if counted.item() and frames > 2 else None,
        }

    @property
    def _heard(self) -> int:
        """Numbers of music per frame."""
        listening = self.pipeline.music_to_pose
        return (self.config if listening is None else listening.network.config).m2p.music_dim

    def _poses(self, request: DanceRequest, track: Track) -> Tensor:
        """The poses of a file or a video at the network's rate, ``[T, 134, 3]``. Raises ``ValueError`` where they end
        before the song."""
        given, path, stride = request.given, request.pose or request.pose_video, self.config.frames.stride
        assert path is not None
        if request.pose is None:
            chosen = open_footage(path, given.pose_rate).chosen
        else:
            chosen = nearest_frames(np.arange(pose_count(path)) / given.pose_rate, 1 / given.pose_rate)
        seconds, chosen = len(chosen) / FRAME_RATE, chosen[::stride]
        if len(chosen) < track.frames - TAIL / stride:
            raise ValueError(
                f"{path}: poses of {seconds:.2f} s found for {track.frames / track.rate:.2f} s of {request.song}, "
                f"expected as many; give duration, or pose_rate where that is not {given.pose_rate:g}"
            )
        if request.pose is None:
            assert self._estimator is not None
            pose, size = estimate_video(self._estimator, path, given.pose_rate, stride, track.frames)
            return move_pose(pose, size, request.height, request.width)
        size = given.pose_size or (request.height, request.width)
        xy, conf = read_poses(path, chosen[: track.frames], PoseReading(given.unit, posture="any"), size)
        pose = torch.from_numpy(np.concatenate([xy, conf[..., None]], -1))
        return move_pose(pose, size, request.height, request.width)

    def _sample(
        self, request: DanceRequest, track: Track, photos: list, photo_pose: Any, pose: Tensor | None, frames: int
    ) -> Any:
        given = request.given

        def on_step(*_: Any) -> dict[str, Any]:
            self.options.on_step()
            return {}

        return self.pipeline(
            photos,
            track,
            pose,
            photo_pose,
            num_frames=frames,
            height=request.height,
            width=request.width,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            min_guidance_scale=given.min_guidance,
            withhold_pose=given.withhold_pose,
            context_length=given.context_length,
            context_overlap=given.context_overlap,
            scheduler=given.scheduler,
            generator=request_generators(request.seed, request.id, [0]),
            output_type="latent",
            callback_on_step_end=on_step,
        )

    def _frames(self, latents: Tensor) -> Iterator[np.ndarray]:
        """Decoded a few at a time, uint8 ``[H, W, 3]`` each."""
        for part in self.pipeline.decoded(latents):
            yield from to_uint8(part)
