"""Samples read from files: the folders of ``launch/sample.py``, videos and pictures of any tool, and lists of them."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import open_media, read_json, video_stream
from stagecoach.data.dance_with_music.poses import PoseReading, pose_count, read_poses
from stagecoach.data.fantasy_world.camera_files import load_cameras
from stagecoach.data.fantasy_world.readers import read_frames
from stagecoach.data.files import MANIFEST, check_directory
from stagecoach.data.movie_post_production.requests import parse_request
from stagecoach.data.numpy_files import NpzFile
from stagecoach.data.outputs.point_cloud import read_ply
from stagecoach.data.pictures import SUFFIXES, read_picture, unread_pictures, warn_of_others
from stagecoach.models.metrics.record import Cameras, Pose, Record, ShownObject

log = logging.getLogger(__name__)

RESULT = "result.json"
FILES = {
    "frames": ("video.mp4", "picture.png"),
    "depth": ("depth.npz",),
    "cameras": ("cameras.json",),
    "given": ("cameras_given.json",),
    "points": ("points.ply",),
    "pose": ("pose.json",),
    "estimated": ("estimated_pose.json",),
    "beat": ("beats.json",),
    "flow": ("flow.npz",),
    "reference": ("reference.png",),
    "faces": ("faces.json",),
}
"""What each field of a ``Record`` is read from in a sample's folder."""
VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".gif")
PICTURES = tuple(suffix for suffix in SUFFIXES if suffix not in VIDEOS)


def find_samples(folder: Path) -> dict[str, Path]:
    """The samples of a folder by name: its folders that hold a file of ``FILES`` or a result, and its videos and
    pictures. Raises ``ValueError`` where there is none."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not there, expected a folder of samples")
    known = {RESULT, *(name for names in FILES.values() for name in names)}
    found, others = {}, []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if any((path / name).is_file() for name in known):
                found[path.name] = path
        elif path.suffix.lower() in (*VIDEOS, *PICTURES):
            found[path.stem] = path
        else:
            others.append(path)
    warn_of_others(folder, unread_pictures(others))
    if not found:
        raise ValueError(
            f"{folder}: holds no sample, expected folders as launch/sample.py writes them, videos or pictures"
        )
    return found


def read_sample(name: str, path: Path) -> Record:
    """A sample of ``find_samples``. Raises ``ValueError`` for files that are damaged or other than expected. Predicted
    cameras that cannot be (a negative focal length) are none, which is logged."""
    if path.is_file():
        return read_files(name, {"frames": path})
    if (path / MANIFEST).is_file():
        check_directory(path, hashes=False)
    files = {field: path / name for field, names in FILES.items() for name in names if (path / name).is_file()}
    is_answer = (path / RESULT).is_file()
    predicted = files.pop("cameras", None) if is_answer else None
    record = read_files(name, files)
    if predicted is not None:
        try:
            record = replace(record, cameras=_cameras(predicted, record))
        except RawError as error:
            log.warning(f"{name}: its cameras are not measured: {error}")
    if is_answer:
        record = _described(record, read_json(path / RESULT, "what a sample is"), path)
    return record


def read_files(name: str, files: Mapping[str, Path], **known: Any) -> Record:
    """What the ``files`` by field say. Cameras are brought to the clip's frames. Raises ``ValueError``."""
    values: dict[str, Any] = dict(known)
    if "frames" in files:
        values |= read_pixels(files["frames"])
    readers: dict[str, Callable[[Path], Any]] = {
        "depth": lambda path: torch.from_numpy(_array(path, "depth", 3).astype(np.float32)),
        "flow": lambda path: torch.from_numpy(_array(path, "flow", 4).astype(np.float32)),
        "points": lambda path: read_ply(path).points,
        "pose": _pose,
        "estimated": _pose,
        "beat": _beats,
        "reference": lambda path: np.asarray(read_picture(path)),
    }
    values |= {field: readers[field](path) for field, path in files.items() if field in readers}
    record = Record(name, **values)
    for field in ("cameras", "given"):
        if field in files:
            more: dict[str, Any] = {field: _cameras(files[field], record)}
            record = replace(record, **more)
    if "faces" in files:
        record = replace(record, **_faces(files["faces"]))
    return record


def read_pixels(path: Path) -> dict[str, Any]:
    """``frames`` and ``rate`` of a video or a picture. Raises ``RawError``."""
    if not path.is_file():
        raise RawError(f"{path}: is not there, expected a video or a picture")
    if path.suffix.lower() in PICTURES:
        return {"frames": _floats(np.asarray(read_picture(path))[None])}
    frames = list(read_frames(path))
    if not frames:
        raise RawError(f"{path}: holds no frame, expected a video")
    with open_media(path, lambda error: f"not readable as a video ({error})") as container:
        rate = video_stream(container, path, "expected a video").average_rate
    return {"frames": _floats(np.stack(frames)), "rate": float(rate) if rate else None}


def _floats(pixels: np.ndarray) -> Tensor:
    """uint8 ``[F, H, W, 3]`` -> fp32 ``[F, 3, H, W]`` in 0..1."""
    return torch.from_numpy(pixels.copy()).movedim(-1, 1).float() / 255


def _array(path: Path, name: str, axes: int) -> np.ndarray:
    try:
        with NpzFile(path) as archive:
            found = archive[name]
    except Exception as error:  # zipfile.BadZipFile and zlib.error share no base with OSError and ValueError
        raise RawError(f"{path}: not readable ({error}), expected an array named {name!r}") from error
    if found.ndim != axes or found.dtype.kind != "f":
        raise RawError(f"{path}: {name} of shape {found.shape} and {found.dtype} found, expected {axes} axes of floats")
    return found


def _pose(path: Path) -> Pose:
    xy, conf = read_poses(path, np.arange(pose_count(path)), PoseReading(posture="any"))
    return torch.from_numpy(xy), torch.from_numpy(conf)


def _beats(path: Path) -> Tensor:
    """``{"frames": F, "beat_frames": [frame, ...]}``."""
    content = read_json(path, "beats")
    beats = content.get("beat_frames") if isinstance(content, dict) else None
    frames = content.get("frames") if isinstance(content, dict) else None
    if (
        not isinstance(frames, int)
        or not isinstance(beats, list)
        or not all(isinstance(b, int) and 0 <= b < frames for b in beats)
    ):
        raise RawError(f"{path}: expected the number of 'frames' and the list 'beat_frames' of those that have one")
    found = torch.zeros(frames)
    found[beats] = 1
    return found


def _cameras(path: Path, record: Record) -> Cameras:
    """Cameras of a file, one for each frame, with intrinsics in pixels of the depth where there is one, or of the
    frames."""
    maps = record.depth if record.depth is not None else record.frames
    if maps is None:
        content = read_json(path, "cameras")
        listed = content.get("frames") if isinstance(content, dict) else None
        if not isinstance(listed, list):
            raise RawError(f"{path}: no list of cameras and no frames beside it, expected cameras.json or a video")
        count, height, width = len(listed), int(content.get("height", 1)), int(content.get("width", 1))
    else:
        count, (height, width) = len(maps), maps.shape[-2:]
    rate = record.rate
    if rate is None:
        content = read_json(path, "cameras") if path.suffix == ".json" else {}
        rate = (content.get("fps") if isinstance(content, dict) else None) or 16.0
    found = load_cameras(path, count, height, width, rate)
    return torch.from_numpy(np.asarray(found.extrinsics)).double(), torch.from_numpy(
        np.asarray(found.intrinsics)
    ).double()


def _faces(path: Path) -> dict[str, Any]:
    """``{"frames": [[five points, ...], ...], "reference": [five points, ...]}``, points in pixels."""
    content = read_json(path, "faces")
    if not isinstance(content, dict) or not isinstance(content.get("frames", []), list):
        raise RawError(f"{path}: expected 'frames', a list of faces for each, and 'reference', a list of faces")

    def faces(listed: Any) -> list[np.ndarray]:
        found = [np.asarray(face, np.float64) for face in listed]
        if any(face.shape != (5, 2) for face in found):
            raise RawError(f"{path}: a face of {[f.shape for f in found]} points found, expected [5, 2] in pixels")
        return found

    try:
        values: dict[str, Any] = {
            "faces": [faces(frame) for frame in content["frames"]] if "frames" in content else None
        }
        if "reference" in content:
            values["reference_faces"] = [faces(content["reference"])]
    except (TypeError, ValueError) as error:
        raise RawError(f"{path}: {error}") from error
    return values


def _described(record: Record, content: Any, folder: Path) -> Record:
    """With what ``result.json`` says: the request's words and objects, and how long it took."""
    if not isinstance(content, dict):
        raise RawError(f"{folder / RESULT}: holds {type(content).__name__}, expected an object")
    request = content.get("request")
    request = request if isinstance(request, dict) else {}
    entry, seed = request.get("entry", request), request.get("seed")
    facts, seconds, peak = {}, content.get("seconds"), content.get("peak_bytes")
    if isinstance(seconds, int | float) and seconds > 0:
        facts["seconds_per_sample"] = float(seconds)
        if record.frames is not None:
            facts["frames_per_second"] = len(record.frames) / seconds
    if isinstance(peak, int) and peak:
        facts["peak_memory"] = peak / 2**30
    source = content.get("source")  # the answers of others hold none
    words = asked(entry, Path(source) if isinstance(source, str) else folder) if isinstance(entry, dict) else {}
    said = content.get("facts")
    said = said if isinstance(said, dict) else {}
    if record.frames is None and all(type(said.get(name)) in (int, float) for name in ("fps", "height", "width")):
        words |= {"rate": float(said["fps"]), "size": (int(said["height"]), int(said["width"]))}
    return replace(record, facts=facts, seed=seed if isinstance(seed, int) else None, **words)


def asked(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """``prompt`` and ``objects`` of a request whose paths are relative to ``folder``; a reference that is not there is
    left out."""
    if "objects" not in entry and "annos" not in entry:
        prompt = entry.get("prompt")
        return {"prompt": prompt} if isinstance(prompt, str) else {}
    try:
        found = parse_request(entry, str(folder / RESULT), folder)
    except RawError:
        listed = [{k: v for k, v in o.items() if "ref" not in k} for o in entry.get("objects", entry.get("annos", []))]
        name = "annos" if "annos" in entry else "objects"
        found = parse_request({**entry, name: listed}, str(folder / RESULT), folder)
    objects = tuple(
        ShownObject(o.box, o.category, o.caption, o.reference.cut() if o.reference is not None else None)
        for o in found.objects
    )
    return {"prompt": found.caption, "objects": objects}
