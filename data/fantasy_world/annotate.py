"""From plain videos to FantasyWorld's raw layout: clips without cuts, with depth, cameras and prompts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from stagecoach.data.annotation.job import Annotated as Found
from stagecoach.data.annotation.job import AnnotateJob, Unannotated
from stagecoach.data.annotation.paths import check_models, find_videos, frame_rate
from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.options import Argument
from stagecoach.data.building.raw_files import read_json, read_text
from stagecoach.data.fantasy_world.footage import Footage
from stagecoach.data.fantasy_world.options import Axes, ClipOptions, Convention, DepthKind
from stagecoach.data.fantasy_world.raw import METADATA
from stagecoach.data.fantasy_world.readers import IntrinsicsUnit, read_frames
from stagecoach.data.files import atomic_file, write_json
from stagecoach.data.numpy_files import map_npy
from stagecoach.data.outputs.sheet import contact_sheet
from stagecoach.data.outputs.video import open_video
from stagecoach.data.pictures import depth_colours

GIVEN = ".annotate-metadata.json"
"""The metadata that were there before, in the output."""
CLIPS, DEPTH, CAMERAS = "clips", "depth", "camera_params"
READING = ("intrinsics", "camera_convention", "camera_axes", "depth_kind", "depth_scale")
CRF = 12
"""Quality of the clips, at which compression is not seen."""


@dataclass(frozen=True)
class AnnotateClips:
    """Which models, and what their results have to agree in. Raises ``ValueError``."""

    depth: Annotated[
        Path | None, Argument("folder of a depth network (Depth Anything, metric or relative); cameras are COLMAP's")
    ] = None
    captioner: Annotated[
        Path | None, Argument("folder of BLIP, Florence-2 or Qwen-VL, for videos that have no <video>.txt next to them")
    ] = None
    frames: Annotated[int, Argument("frames of the clips that shots are cut into")] = 81
    cut_threshold: Annotated[
        float, Argument("change of a picture that is a cut (PySceneDetect's content detector; 0: no cuts)")
    ] = 27.0
    focal: Annotated[
        float, Argument("focal length divided by the width, where it is known; 0: COLMAP finds it", metavar="NUMBER")
    ] = 0.0
    max_depth_error: Annotated[
        float, Argument("largest median relative error of depth at the points of the cameras", metavar="SHARE")
    ] = 0.15
    max_warp_error: Annotated[
        float, Argument("largest error of frame 0's depth warped into a later frame; 1: no limit", metavar="SHARE")
    ] = 0.02
    intrinsics: Annotated[
        IntrinsicsUnit, Argument("as build's, of cameras without depth: normalised (default) or pixel")
    ] = "normalised"
    camera_convention: Annotated[Convention, Argument("as build's, of such cameras: w2c (default) or c2w")] = "w2c"
    camera_axes: Annotated[Axes, Argument("as build's, of such cameras: opencv (default), opengl or ned")] = "opencv"
    depth_kind: Annotated[DepthKind, Argument("as build's, of depth without cameras: depth (default) or disparity")] = (
        "depth"
    )
    depth_scale: Annotated[float | None, Argument("as build's, of depth without cameras", metavar="X")] = None

    @property
    def reading(self) -> ClipOptions:
        """How given files are read."""
        return ClipOptions(**{name: getattr(self, name) for name in READING})

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ValueError(
                f"clips of {self.frames} frames asked for, expected at least 2, between which a camera moves"
            )


class AnnotateFantasyWorld(AnnotateJob):
    """Videos below ``raw`` and ``raw/videos``, or the entries of ``raw/metadata.json``: one with depth and cameras gets
    a prompt, one with one of them the other too, one with neither becomes clips. Raises ``EncoderError`` where a model
    is not where it should be."""

    def __init__(self, raw: Path, output: Path, options: AnnotateClips) -> None:
        check_models({"depth": options.depth, "captioner": options.captioner})
        self._raw, self.output, self._options = raw, output, options
        self._depth: Any = None
        self._cameras: Any = None
        self._captioner: Any = None

    def items(self) -> list[Unannotated]:
        entries = self._given()
        if entries is None:
            return [Unannotated(key, [path], {"video": str(path)}) for key, path in find_videos(self._raw)]
        return [
            Unannotated(f"entry-{number:06d}", self._sources(entry), self._absolute(entry))
            for number, entry in enumerate(entries)
        ]

    def models(self) -> Mapping[str, Mapping[str, Any]]:
        from stagecoach.data.annotation.cameras import colmap_entry
        from stagecoach.data.annotation.captions import caption_entry
        from stagecoach.data.annotation.cuts import cut_entry
        from stagecoach.data.annotation.depth import depth_entry

        options = self._options
        found: dict[str, Mapping[str, Any]] = {}
        if options.depth:
            found["depth"] = depth_entry(options.depth)
        if self._finds_cameras():
            found["cameras"] = colmap_entry()
        if options.captioner:
            found["captioner"] = caption_entry(options.captioner)
        if options.cut_threshold:
            found["cuts"] = cut_entry()
        return found

    def settings(self) -> dict[str, Any]:
        options = self._options
        names = ("frames", "cut_threshold", "focal", "max_depth_error", "max_warp_error", *READING)
        return {name: getattr(options, name) for name in names}

    def start(self) -> None:
        if self._options.depth:
            from stagecoach.data.annotation.depth import TransformersDepth

            self._depth = TransformersDepth(self._options.depth)
        if self._finds_cameras():
            from stagecoach.data.annotation.cameras import ColmapCameras

            self._cameras = ColmapCameras(self._options.focal)
        if self._options.captioner:
            from stagecoach.data.annotation.captions import TransformersCaptioner

            self._captioner = TransformersCaptioner(self._options.captioner)

    def use(self, depth: Any, cameras: Any) -> None:
        """Take these (``DepthEstimator``, ``CameraEstimator``)."""
        self._depth, self._cameras = depth, cameras

    def targets(self, item: Unannotated) -> list[str]:
        return [f"{CLIPS}/{item.key}", f"{DEPTH}/{item.key}", f"{CAMERAS}/{item.key}"]

    def annotate(self, item: Unannotated, given: frozenset[str]) -> Found:
        entry, video = item.record, Path(item.record["video"])
        if entry.get("camera_params") or entry.get("depth") or entry.get("points"):
            return self._complete(item, given)
        if self._depth is None:
            raise RawError(f"{video}: neither depth nor cameras found, expected them or --depth, a network for them")
        if given:
            raise RawError(
                f"{self.output}: {sorted(given)} found, which clips of {video} are to be called; expected none of "
                "these, so move them away or give another --output"
            )
        starts = self._starts(video)
        from stagecoach.data.annotation.cuts import pieces

        made = Found(numbers={"cuts": starts[1:], "clips": []})
        for number, (first, frames) in enumerate(pieces(read_frames(video), starts, self._options.frames)):
            self._clip(made, item, number, first, frames)
        if not made.entries:
            raise RawError(
                f"{video}: no shot of {self._options.frames} frames between its cuts {starts[1:]} found, expected one; "
                "give fewer --frames"
            )
        return made

    def finish(self, found: Mapping[str, Found]) -> None:
        write_json(self.output / METADATA, [entry for key in found for entry in found[key].entries])

    def preview(self, item: Unannotated) -> np.ndarray | None:
        """Frames of the first clip, and their depth."""
        clips = sorted((self.output / CLIPS / item.key).glob("*.mp4"))
        if not clips:
            return None
        frames, folder = np.stack(list(read_frames(clips[0]))), self.output / DEPTH / item.key / clips[0].stem
        maps = np.stack([map_npy(folder / f"frame_{k:04d}.npy") for k in range(len(frames))])
        return contact_sheet({clips[0].stem: frames, "depth": depth_colours(maps.astype(np.float32))})

    def _complete(self, item: Unannotated, given: frozenset[str]) -> Found:
        """Give an entry that has cameras or depth the other one."""
        entry, video, made = item.record, Path(item.record["video"]), Found()
        cameras, depth = entry.get("camera_params"), entry.get("depth")
        if not cameras and not depth:
            raise RawError(f"{video}: points without cameras given, expected the cameras that they were found with")
        added = {}
        if not (cameras and (depth or entry.get("points"))):
            if given:
                raise RawError(f"{self.output}: holds {sorted(given)} already, expected room for what {video} lacks")
            added = self._other(made, item, video)
        prompt = entry.get("prompt") or self._prompt(video, [next(Footage(video).read([0]))])
        made.entries.append(self._relative({**entry, **added, "prompt": prompt}))
        return made

    def _other(self, made: Found, item: Unannotated, video: Path) -> dict[str, str]:
        """Depth for the cameras of an entry, or cameras for its depth."""
        from stagecoach.data.fantasy_world.complete import cameras_for_depth, depth_for_cameras

        entry, options = item.record, self._options
        errors, name = (options.max_depth_error, options.max_warp_error), f"{item.key}/{item.key}"
        if entry.get("depth"):
            found = cameras_for_depth(video, Path(entry["depth"]), options.reading, self._cameras, errors)
            lacking, file = "camera_params", f"{CAMERAS}/{name}.txt"
            _write_cameras(self.output / file, found.numbers, found.intrinsics, found.agreed.extrinsics)
        elif self._depth is None:
            raise RawError(f"{video}: cameras without depth given, expected it or --depth, a network for it")
        else:
            inner = entry.get("intrinsics")
            inner = tuple(map(float, inner)) if isinstance(inner, list) else Path(inner) if inner else None
            networks = self._depth, self._cameras
            found = depth_for_cameras(video, Path(entry["camera_params"]), inner, options.reading, *networks, errors)
            lacking, file = "depth", f"{DEPTH}/{name}"
            for number, one in zip(found.numbers, found.depth, strict=True):
                with atomic_file(self.output / file / f"frame_{number:04d}.npy") as opened:
                    np.save(opened, one)
        made.files.append(file)
        warp = found.agreed.warp
        made.numbers = {"depth_error": round(found.agreed.error, 5), "warp_error": warp and round(warp, 5)}
        return {lacking: str(self.output / file)}

    def _clip(self, made: Found, item: Unannotated, number: int, first: int, frames: list[np.ndarray]) -> None:
        from stagecoach.data.annotation.depth import agree

        key, entry, video = item.key, item.record, Path(item.record["video"])
        height, width = (side // 2 * 2 for side in frames[0].shape[:2])  # 4:2:0 video has even sides
        frames = [frame[:height, :width] for frame in frames]
        where = f"{video}, frames {first} to {first + len(frames) - 1}"
        options = self._options
        cameras = self._cameras.estimate(frames, where)
        maps = self._depth.estimate(frames)
        errors = options.max_depth_error, options.max_warp_error
        agreed = agree(maps, self._depth.metric, cameras, where, *errors)
        name = f"{key}/{key}-{number:03d}"
        files = [f"{CLIPS}/{name}.mp4", f"{CAMERAS}/{name}.txt", f"{DEPTH}/{name}"]
        with open_video(self.output / files[0], frame_rate(video), crf=CRF) as writer:
            for frame in frames:
                writer.add(frame)
        size = np.array([width, height] * 2)
        _write_cameras(self.output / files[1], range(len(frames)), cameras.intrinsics / size, agreed.extrinsics)
        for k, depth in enumerate(agreed.depth):
            with atomic_file(self.output / files[2] / f"frame_{k:04d}.npy") as file:
                np.save(file, depth.astype(np.float16))
        made.files += files
        prompt = entry.get("prompt") or self._prompt(video, frames)
        kept = {name: entry[name] for name in ("split",) if name in entry}
        made.entries.append({"video": files[0], "camera_params": files[1], "depth": files[2], "prompt": prompt, **kept})
        numbers = {"first_frame": first, "depth_error": round(agreed.error, 5)}
        made.numbers["clips"].append({**numbers, "warp_error": agreed.warp and round(agreed.warp, 5)})

    def _prompt(self, video: Path, frames: Sequence[np.ndarray]) -> str:
        beside = video.with_suffix(".txt")
        if beside.exists():
            return " ".join(read_text(beside, "a prompt").split())
        if self._captioner is None:
            raise RawError(f"{video}: no prompt found, expected {beside.name} beside it, or --captioner")
        return self._captioner.caption(frames)

    def _starts(self, video: Path) -> list[int]:
        if not self._options.cut_threshold:
            return [0]
        from stagecoach.data.annotation.cuts import CutDetector

        return CutDetector(self._options.cut_threshold).starts(video)

    def _finds_cameras(self) -> bool:
        alone = (entry.get("depth") and not entry.get("camera_params") for entry in self._given() or ())
        return self._options.depth is not None or any(alone)

    def _given(self) -> list[dict[str, Any]] | None:
        """The entries of the metadata that the raw data set had before it was annotated in place."""
        path, kept = self._raw / METADATA, self.output / GIVEN
        if self._raw.resolve() == self.output.resolve():
            if not kept.exists():
                from stagecoach.data.annotation.run import RECORDS

                begun = (self.output / RECORDS).exists()
                write_json(kept, read_json(path, "a list of clips") if path.exists() and not begun else None)
            path = kept
        entries = read_json(path, "a list of clips") if path.exists() else None
        if entries is not None and not (
            isinstance(entries, list) and all(isinstance(e, dict) and isinstance(e.get("video"), str) for e in entries)
        ):
            raise RawError(f"{path}: no list of entries with 'video' found, expected clips to annotate")
        return entries

    def _sources(self, entry: dict[str, Any]) -> list[Path]:
        rest = (self._raw / entry[name] for name in PATHS[1:] if _is_path(name, entry.get(name)))
        return [self._raw / entry["video"], *(path for path in rest if path.exists())]

    def _absolute(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {k: str(self._raw / v) if _is_path(k, v) else v for k, v in entry.items()}

    def _relative(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {k: os.path.relpath(v, self.output) if _is_path(k, v) else v for k, v in entry.items()}


def _is_path(name: str, value: Any) -> bool:
    return name in PATHS and isinstance(value, str) and bool(value)


def _write_cameras(path: Path, numbers: Iterable[int], intrinsics: np.ndarray, extrinsics: np.ndarray) -> None:
    """Intrinsics divided by width and height."""
    with atomic_file(path, "w") as file:
        for number, inner, outer in zip(numbers, intrinsics, extrinsics, strict=True):
            words = [str(number), *(f"{v:.9f}" for v in inner), "0 0", *(f"{v:.9f}" for v in outer.flat)]
            file.write(" ".join(words) + "\n")


PATHS = ("video", "camera_params", "depth", "points", "mask", "intrinsics")
"""Of an entry; intrinsics may be numbers."""
