"""What is written of a dance: its poses, and videos of it with the song - as it is, as a skeleton, side by side."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from stagecoach.data.dance_with_music.drawing import draw_skeleton
from stagecoach.data.dance_with_music.picture import beat_strip
from stagecoach.data.files import atomic_file
from stagecoach.data.outputs.sheet import WIDTH, spread, write_picture
from stagecoach.data.outputs.video import Sound, open_video, write_video
from stagecoach.data.pictures import column, resized, titled

DIGITS = 5
"""Of a coordinate: a hundredth of a pixel at 1,000 pixels."""


def write_poses(path: str | Path, pose: np.ndarray, rate: float, height: int, width: int, source: str) -> None:
    """Poses [F, 134, 3] (x and y divided by width and height, confidence) as one JSON file, which ``read_poses`` reads:
    ``poses`` with ``frame_id`` and ``keypoints``, and the ``source`` (given or predicted)."""
    frames = [
        {"frame_id": k, "keypoints": points} for k, points in enumerate(pose.astype(float).round(DIGITS).tolist())
    ]
    size = {"height": height, "width": width}
    content = {"version": 1, "fps": rate, **size, "unit": "normalised", "source": source, "poses": frames}
    with atomic_file(path) as file:
        file.write(json.dumps(content).encode())


def skeletons(pose: np.ndarray, height: int, width: int) -> Iterator[np.ndarray]:
    """Poses [F, 134, 3] drawn on black, uint8 [H, W, 3] each."""
    black = np.zeros((height, width, 3), np.uint8)
    for points in pose.astype(np.float64):
        yield draw_skeleton(black, points[:, :2], points[:, 2])


def write_skeleton(path: str | Path, pose: np.ndarray, rate: float, size: tuple[int, int], sound: Sound) -> None:
    """The video of the poses [F, 134, 3] alone, of ``size`` (height, width)."""
    write_video(path, skeletons(pose, *size), rate, sound)


def write_dance(
    folder: Path,
    frames: Iterable[np.ndarray],
    pose: np.ndarray,
    photo: np.ndarray,
    beat: np.ndarray,
    onset: np.ndarray,
    rate: float,
    sound: Sound,
) -> None:
    """``video.mp4``, ``skeleton.mp4``, ``side_by_side.mp4`` (photo, skeleton, video), each with the sound, and
    ``contact.png`` with the beats below, of F ``frames`` uint8 [H, W, 3] that come one by one.

    Args:
        pose: [F, 134, 3].
        photo: uint8 [H, W, 3].
        beat, onset: [F], as ``beat_strip`` takes them.
    """
    drawn = skeletons(pose, *photo.shape[:2])
    kept: dict[str, list[np.ndarray]] = {"video": [], "skeleton": []}
    shown = spread(len(pose))
    with ExitStack() as stack:
        video, skeleton, both = (
            stack.enter_context(open_video(folder / f"{name}.mp4", rate, sound))
            for name in ("video", "skeleton", "side_by_side")
        )
        for k, (frame, limbs) in enumerate(zip(frames, drawn, strict=True)):
            video.add(frame)
            skeleton.add(limbs)
            both.add(np.concatenate([photo, limbs, frame], 1))
            for title, picture in (("video", frame), ("skeleton", limbs)) if k in shown else ():
                kept[title].append(titled(resized(picture, width=WIDTH), f"{title}, frame {k}"))
    sheet = column([np.concatenate(row, 1) for row in kept.values()])
    strip = beat_strip(beat, onset, shown, sheet.shape[1])
    write_picture(folder / "contact.png", np.concatenate([sheet, strip]))
