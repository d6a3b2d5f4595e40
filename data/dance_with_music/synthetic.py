"""A synthetic raw data set: drawn dancers on synthesised songs, in the documented layout, with exact points.

Dance ``i`` of a seed is the same whatever their number. Four neighbouring dances share two songs and two dancers, which
no others do, so that songs and dancers can be held out together.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from stagecoach.data.dance_with_music.dancer import Looks, dancer_points, draw_dancer, pose_angles
from stagecoach.data.dance_with_music.raw import METADATA
from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.data.dance_with_music.song import SOUND_RATE, Song
from stagecoach.data.files import commit_directory, refuse_foreign, temporary_name, write_json

MARKER = "synthetic.json"
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
    directory: str | Path,
    dances: int,
    frames: int,
    height: int,
    width: int,
    seed: int,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> None:
    """Write a raw data set of ``dances`` dances; ``directory`` appears when all of it is written, and replaces an older
    synthetic one. ``track`` may show how far it is.

    Raises ``ValueError`` for a size that cannot be written and for a directory that holds something else.
    """
    directory = Path(directory)
    if height < 32 or width < 32 or height % 2 or width % 2:
        raise ValueError(
            f"dances of {height} x {width} asked for, expected even numbers from 32 on for 4:2:0 video in "
            f"which a face is seen"
        )
    if dances < 1 or frames < 2:
        raise ValueError(f"{dances} dances of {frames} frames asked for, expected at least one, of two")
    refuse_foreign(directory, MARKER)
    temporary = temporary_name(directory)
    try:
        for folder in ("videos", "poses", "reference_images"):
            (temporary / folder).mkdir(parents=True)
        entries = [
            _write_dance(temporary, f"dance_{i:05d}", render_dance(seed, i, frames, height, width))
            for i in track(range(dances))
        ]
        (temporary / METADATA).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        write_json(
            temporary / MARKER, {"dances": dances, "frames": frames, "height": height, "width": width, "seed": seed}
        )
        commit_directory(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def render_dance(seed: int, index: int, frames: int, height: int, width: int) -> SyntheticDance:
    group, place = divmod(index, GROUP)
    song = Song.of(seed, group * SHARED + place % SHARED)
    looks = Looks.of(seed, group * SHARED + place // SHARED)
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
    write_video(base / "videos" / f"{name}.mp4", dance.video, dance.sound)
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


def write_video(path: Path, video: np.ndarray, sound: np.ndarray | None = None, rate: int = FRAME_RATE) -> None:
    """H.264 at a quality where compression is not seen, and AAC; one thread, so that the file is the same each time.
    ``sound`` float32 [n] at ``SOUND_RATE``."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "8", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        audio = container.add_stream("aac", rate=SOUND_RATE, layout="mono") if sound is not None else None
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = SOUND_RATE, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
