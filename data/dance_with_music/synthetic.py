"""A synthetic raw data set: drawn dancers on synthesised songs, in the documented layout, with exact points.

Dance ``i`` of a seed is the same in a set of any size. Four neighbouring dances share two songs and two dancers, which
no others do, so that songs and dancers can be held out together.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stagecoach.data.dance_with_music.dancer import Looks, dancer_points, draw_dancer, pose_angles
from stagecoach.data.dance_with_music.raw import METADATA
from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.data.dance_with_music.song import Song
from stagecoach.data.synthetic import Steps, write_set, write_video

GROUP, SHARED = 4, 2
CONFIDENCE = 0.95


@dataclass(frozen=True)
class SyntheticDance:
    """``video`` uint8 [F, H, W, 3] at 30 per second; ``sound`` float32 [n] at 44,100; ``points`` float64 [F, 134, 2]
    divided by width and height; ``portrait`` another picture of the dancer, with ``portrait_points``."""

    video: np.ndarray
    sound: np.ndarray
    points: np.ndarray
    portrait: np.ndarray
    portrait_points: np.ndarray
    song: Song
    looks: Looks


def write_synthetic(
    directory: str | Path, dances: int, frames: int, height: int, width: int, seed: int, steps: Steps = iter
) -> None:
    """Write a raw data set of ``dances`` dances (see ``data.synthetic.write_set``).

    Raises ``ValueError`` for a size that cannot be written and for a directory that holds something else.
    """
    if height < 32 or width < 32 or height % 2 or width % 2:
        raise ValueError(
            f"dances of {height} x {width} asked for, expected even numbers from 32 on for 4:2:0 video in "
            f"which a face is seen"
        )
    if dances < 1 or frames < 2:
        raise ValueError(f"{dances} dances of {frames} frames asked for, expected at least one, of two")

    def write(base: Path, index: int) -> dict[str, Any]:
        return _write_dance(base, f"dance_{index:05d}", render_dance(seed, index, frames, height, width))

    described = {"dances": dances, "frames": frames, "height": height, "width": width, "seed": seed}
    write_set(directory, dances, write, described, ("videos", "poses", "reference_images"), METADATA, steps)


def render_dance(seed: int, index: int, frames: int, height: int, width: int) -> SyntheticDance:
    """Dance ``index`` of a seed, in pixels ``height`` x ``width``."""
    group, member = divmod(index, GROUP)
    song = Song.of(seed, group * SHARED + member % SHARED)
    looks = Looks.of(seed, group * SHARED + member // SHARED)
    random = np.random.default_rng([seed, index, 3])
    background = _background(random, height, width)
    points = np.stack([dancer_points(pose_angles(song, k / FRAME_RATE), looks, width / height) for k in range(frames)])
    video = np.stack([draw_dancer(xy, looks, background) for xy in points])
    still = dancer_points(pose_angles(song, random.uniform(0, 60)), looks, width / height)
    portrait = draw_dancer(still, looks, _background(random, height, width))
    return SyntheticDance(video, song.render(frames / FRAME_RATE), points, portrait, still, song, looks)


def _background(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    top, bottom = random.uniform(60, 200, (2, 3))
    rows = np.linspace(0, 1, height)[:, None, None]
    floor = np.where(rows > 0.85, 0.7, 1.0)
    return np.broadcast_to(((1 - rows) * top + rows * bottom) * floor, (height, width, 3)).astype(np.uint8)


def _write_dance(base: Path, name: str, dance: SyntheticDance) -> dict[str, Any]:
    write_video(base / "videos" / f"{name}.mp4", dance.video, FRAME_RATE, dance.sound)
    (base / "poses" / name).mkdir()
    for number, xy in enumerate(dance.points):
        _write_pose(base / "poses" / name / f"frame_{number:03d}.json", xy, number)
    Image.fromarray(dance.portrait).save(base / "reference_images" / f"{name}.png")
    _write_pose(base / "reference_images" / f"{name}.json", dance.portrait_points, 0)
    return {
        "id": name,
        "song": dance.song.name,
        "subject": dance.looks.name,
        "genre": "synthetic",
        "bpm": dance.song.bpm,
    }


def _write_pose(path: Path, xy: np.ndarray, number: int) -> None:
    inside = ((xy >= 0) & (xy <= 1)).all(-1)
    points = [
        [round(x, 6), round(y, 6), CONFIDENCE if there else 0.0]
        for (x, y), there in zip(xy.tolist(), inside.tolist(), strict=True)
    ]
    path.write_text(json.dumps({"keypoints": points, "pose_type": "dance", "frame_id": number}))
