"""One segment of a dance becomes frames of one size with their poses, music, faces and references."""

import hashlib
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.options import Argument
from stagecoach.data.building.raw_files import open_media, video_stream
from stagecoach.data.dance_with_music.footage import PICTURES, Footage, numbered_files, open_footage
from stagecoach.data.dance_with_music.music import (
    JUKEBOX_DIM,
    TAIL,
    Music,
    MusicKind,
    check_clock,
    read_music,
    read_vector,
)
from stagecoach.data.dance_with_music.persons import LARGEST
from stagecoach.data.dance_with_music.poses import Poses, check_poses, load_poses
from stagecoach.data.dance_with_music.raw import RawDance, Reference
from stagecoach.data.dance_with_music.schema import FACE_DIM, FRAME_RATE, LATENT_STRIDE
from stagecoach.data.dance_with_music.skeleton import face_boxes, five_points
from stagecoach.data.encoding.audio import has_audio
from stagecoach.data.pictures import CoverCrop, check_sides, read_picture

POSE_STEPS, CONFIDENCE_STEPS = 65535, 255
MASK = 127
"""Face masks are 255 inside."""
_log = logging.getLogger(__name__)
MICROSECONDS = 1_000_000
"""Units of a container's duration in a second (``av.time_base``)."""


@dataclass(frozen=True)
class SegmentOptions:
    """Size of the pictures, length of the segments, references each, and which rows of music. Raises ``ValueError``."""

    height: Annotated[int, Argument("pixels")] = 512
    width: Annotated[int, Argument("pixels")] = 512
    frames: Annotated[
        int, Argument("frames of the segments that long dances are cut into", flag="--segment", metavar="FRAMES")
    ] = 300
    min_frames: Annotated[int, Argument("a shorter dance is an error", metavar="FRAMES")] = 24
    references: Annotated[
        int,
        Argument(
            "references per segment: the picture of the dancer where there is one, and frames spread over the segment",
            metavar="R",
        ),
    ] = 4
    music: Annotated[
        MusicKind,
        Argument(
            f"edge: 35 numbers per frame, computed from the sound (default); jukebox: {JUKEBOX_DIM} from files; files: "
            "as many as these have, or pictures [C, H, W] of the music"
        ),
    ] = "edge"
    music_rate: Annotated[
        float | None, Argument("rows per second of files of music (default: 30; 60 in .h5)", metavar="X")
    ] = None
    short_song: Annotated[
        Literal["cut", "refuse"],
        Argument("what becomes of a dance that is longer than its song (default: cut to the song, which is said)"),
    ] = "cut"

    def __post_init__(self) -> None:
        check_sides(self.height, self.width, LATENT_STRIDE, "stride of the VAE")
        if not 1 <= self.references <= self.min_frames <= self.frames:
            raise ValueError(
                f"{self.references} references, at least {self.min_frames} frames and segments of "
                f"{self.frames} found, expected rising numbers from 1"
            )
        if self.music_rate is not None and self.music_rate <= 0:
            raise ValueError(f"music rate {self.music_rate} found, expected rows per second above 0")


@dataclass(frozen=True)
class SegmentExtent:
    """Segment ``index`` of ``count`` of a dance; each has ``frames`` frames but the last, which has the rest: half as
    many to one and a half."""

    dance: RawDance
    index: int
    count: int

    @property
    def key(self) -> str:
        return self.dance.key if self.count == 1 else f"{self.dance.key}-{self.index:03d}"


@dataclass(frozen=True)
class PreparedReference:
    """``picture`` uint8 [H, W, 3], cropped as the frames are; ``whole`` as it was, for CLIP; ``face`` uint8
    [112, 112, 3] aligned, or ``embedding`` float32 [512], or neither; ``frame`` of the segment, -1 for another."""

    picture: np.ndarray
    whole: np.ndarray
    frame: int
    face: np.ndarray | None = None
    embedding: np.ndarray | None = None


@dataclass(frozen=True)
class Segment:
    """``frames`` uint8 [F, H, W, 3]; ``arrays`` those fields of the schema that need no encoder."""

    frames: np.ndarray
    arrays: dict[str, np.ndarray]
    references: list[PreparedReference]
    meta: dict[str, Any] = field(default_factory=dict)


def segment_extents(dance: RawDance, options: SegmentOptions) -> list[SegmentExtent]:
    """The segments of a dance, by the length that its container declares, as far as its song goes. Raises
    ``RawError``."""
    seconds, song = declared_seconds(dance), None if dance.audio is None else declared_sound(dance.audio)
    if song is not None and dance.audio != dance.footage:
        song -= dance.offset
    if song is not None and song < seconds - TAIL / FRAME_RATE:
        said = f"{dance.audio}: the song lasts {song:.2f} s of the {seconds:.2f} s of {dance.footage}"
        if options.short_song == "refuse":
            raise RawError(f"{said}, expected as long a song; --short-song cut ends the dance with it")
        _log.warning("%s, the dance is cut to it", said)
        seconds = song
    count = max(int(seconds * FRAME_RATE / options.frames + 0.5), 1)
    return [SegmentExtent(dance, index, count) for index in range(count)]


def declared_seconds(dance: RawDance) -> float:
    """From the header of a video, or the number of pictures; what it says is not relied on."""
    if dance.footage.is_dir():
        return len(numbered_files(dance.footage, PICTURES)) / dance.rate
    with open_media(dance.footage, lambda error: f"not readable as a video ({error})") as container:
        stream = video_stream(container, dance.footage, "expected the dance")
        if stream.duration:
            return float(stream.duration * stream.time_base)
        return (container.duration or 0) / MICROSECONDS


def declared_sound(path: Path) -> float | None:
    """Seconds of sound by the header of a sound or video file, None where it says nothing. Raises ``RawError``."""
    with open_media(path, lambda error: f"not readable as audio or video ({error})") as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        if stream.duration:
            return float(stream.duration * stream.time_base)
        return container.duration / MICROSECONDS if container.duration and not container.streams.video else None


def check_segment(extent: SegmentExtent) -> None:
    """Look at what is cheap to look at, so that a bad file is found before hours of encoding. Raises ``RawError``."""
    dance = extent.dance
    declared_seconds(dance)
    if extent.index == 0:
        check_poses(dance.poses, dance.reading, open_footage(dance.footage, dance.rate).size)
    if dance.reference and dance.reference.embedding:
        _embedding(dance.reference.embedding)


def prepare_segment(extent: SegmentExtent, options: SegmentOptions, shape: tuple[int, ...] | None = None) -> Segment:
    """Read one segment; ``shape`` of a row of music of kind ``files``. Raises ``RawError``."""
    dance = extent.dance
    footage = open_footage(dance.footage, dance.rate)
    start = footage.start if dance.audio == dance.footage else dance.offset or None
    if dance.audio not in (None, dance.footage) and dance.footage.is_file() and has_audio(dance.footage):
        check_clock(dance.audio, start, dance.footage, footage.start, dance.bpm)
    where = str(dance.footage)
    music = read_music(options.music, dance.audio, start, dance.rows, dance.bpm, where, shape, options.music_rate)
    poses = load_poses(dance.poses, dance.reading, footage.size)
    places = pose_places(dance, footage, poses)
    total = _common_length(dance, footage, music, places, len(poses), options)
    first = extent.index * options.frames
    last = total if extent.index == extent.count - 1 else min(first + options.frames, total)
    if last - first < options.min_frames:
        raise RawError(
            f"{dance.footage}: {max(last - first, 0)} frames from frame {first} on found, expected at least "
            f"{options.min_frames} at {FRAME_RATE} per second with music and poses"
        )
    part = slice(first, last)
    chosen = footage.chosen[part]
    xy, conf = poses.at(places[part])
    wanted = _drawn_frames(extent.key, xy, conf, options.references - bool(dance.reference))
    frames, references, crop = [], [], None
    if dance.reference:
        references.append(_external(dance, dance.reference, options))
    for number, image in enumerate(footage.read(chosen)):
        crop = crop or CoverCrop.of(*image.shape[:2], options.height, options.width)
        frames.append(crop.image(image))
        references += [
            PreparedReference(frames[-1], image, number, _aligned(image, xy[number], conf[number]))
            for _ in range(wanted.count(number))
        ]
    arrays = _pose_arrays(crop.points(xy), conf)
    boxes, valid = face_boxes(crop.points(xy), conf) if dance.faces is None else mask_boxes(dance.faces, chosen, crop)
    arrays |= {
        "face_box": boxes.astype(np.float16),
        "face_valid": valid.astype(np.uint8),
        "music": music.rows[part].astype(np.float16),
        **({} if music.maps is None else {"music_map": music.maps[part].astype(np.float16)}),
        "beat": music.beat[part].astype(np.uint8),
        "onset": music.onset[part].astype(np.float16),
        "ref_frame": np.array([r.frame for r in references]),
    }
    meta = {
        "clip_id": extent.key,
        "video_id": dance.name,
        "song": dance.song,
        "subject": dance.subject,
        "genre": dance.genre,
        "fps": FRAME_RATE,
        "source_fps": round(footage.rate, 3),
        "start_frame": first,
        "n_frames": last - first,
        "height": options.height,
        "width": options.width,
        "music": options.music,
        "beats_from": music.beats_from,
        "persons": poses.persons,
    }
    return Segment(np.stack(frames), arrays, references, meta)


def pose_places(dance: RawDance, footage: Footage, poses: Poses) -> np.ndarray:
    """Where between the poses the frames at 30 per second are, float64 [F]: one pose for each picture, or at the rate
    that is given, or that their file says and that fits the video. Raises ``RawError``."""
    seconds = float(footage.times[-1] - footage.times[0]) + 1 / footage.rate
    spare = TAIL * max(footage.rate / FRAME_RATE, 1)
    one_each = abs(len(poses) - len(footage.times)) <= spare
    rate = dance.reading.rate or (None if one_each else poses.rate)
    if rate is not None and abs(len(poses) / rate - seconds) <= TAIL / FRAME_RATE:
        return (footage.times[footage.chosen] - footage.start) * rate
    if dance.reading.rate is None and one_each:
        return footage.chosen.astype(float)
    wanted = f"{rate:g} per second" if rate else "one for each frame"
    raise RawError(
        f"{dance.poses}: {len(poses)} poses found for a video of {len(footage.times)} frames at {footage.rate:.2f} per "
        f"second, expected {wanted} of {dance.footage}; over its {seconds:.2f} s they would be --pose-rate "
        f"{len(poses) / seconds:.4g}"
    )


def _common_length(
    dance: RawDance, footage: Footage, music: Music, places: np.ndarray, poses: int, options: SegmentOptions
) -> int:
    """Frames for which there are pictures, music and poses. Raises ``RawError`` where precomputed rows are much shorter
    or longer than the pictures: they belong to something else; and for a song that is, where that is asked for."""
    frames, rows = len(footage.chosen), len(music.rows)
    files = dance.rows if options.music != "edge" or dance.audio is None else None
    own = rows if music.maps is None else len(music.maps)
    if files is not None and abs(own - frames) > TAIL:
        raise RawError(
            f"{files}: {own} rows of music found for the {frames} frames of {dance.footage}, expected as many at "
            f"{FRAME_RATE} per second; rows are never stretched, give --music-rate where they are of another rate than "
            f"{options.music_rate or FRAME_RATE:g}"
        )
    if rows < frames - TAIL and options.short_song == "refuse":
        raise RawError(
            f"{dance.audio}: {rows} rows of music found for the {frames} frames of {dance.footage}, expected as long a "
            "song; --short-song cut ends the dance with it"
        )
    return min(int((places < poses).sum()), rows, own, frames)


def _drawn_frames(key: str, xy: np.ndarray, conf: np.ndarray, count: int) -> list[int]:
    """Frames for ``count`` references, one out of each of as many equal parts, where one can be had with a face."""
    drawn = []
    for part in range(count):
        low, high = len(xy) * part // count, len(xy) * (part + 1) // count
        faces = [k for k in range(low, high) if five_points(xy[k], conf[k]) is not None] or list(range(low, high))
        number = int.from_bytes(hashlib.sha256(f"reference/{key}/{part}".encode()).digest()[:8], "big")
        drawn.append(faces[number % len(faces)])
    return drawn


def _external(dance: RawDance, reference: Reference, options: SegmentOptions) -> PreparedReference:
    image = np.asarray(read_picture(reference.picture))
    picture = CoverCrop.of(*image.shape[:2], options.height, options.width).image(image)
    if reference.pose:
        reading = replace(dance.reading, canvas=None, person=LARGEST)
        pose = load_poses(reference.pose, reading, image.shape[:2])
        return PreparedReference(picture, image, -1, _aligned(image, pose.xy[0], pose.conf[0]))
    return PreparedReference(picture, image, -1, embedding=reference.embedding and _embedding(reference.embedding))


def _aligned(image: np.ndarray, xy: np.ndarray, conf: np.ndarray) -> np.ndarray | None:
    from stagecoach.data.encoding.face_encoder import align_face  # with the encoders, which take seconds to import

    points = five_points(xy, conf)
    return None if points is None else align_face(image, points * image.shape[1::-1])


def _embedding(path: Path) -> np.ndarray:
    vector = read_vector(path, FACE_DIM)
    if not np.linalg.norm(vector) > 0:
        raise RawError(
            f"{path}: an embedding of length 0 found, expected ArcFace's; leave the file out where no face was found"
        )
    return vector


def _pose_arrays(xy: np.ndarray, conf: np.ndarray) -> dict[str, np.ndarray]:
    inside = ((xy >= 0) & (xy <= 1)).all(-1)
    return {
        "pose_xy": (xy.clip(0, 1) * POSE_STEPS).round().astype(np.uint16),
        "pose_conf": (np.where(inside, conf, 0) * CONFIDENCE_STEPS).round().astype(np.uint8),
    }


def mask_boxes(folder: Path, chosen: np.ndarray, crop: CoverCrop) -> tuple[np.ndarray, np.ndarray]:
    """The boxes that the masks of source frames ``chosen`` span in the crop, float32 [F, 4] (x0 y0 x1 y1 divided by its
    width and height, 0 where there is none), and whether there is one, bool [F].

    A mask that covers nothing or everything says that no face was found (StableAnimator's writer fills it where its
    detector found none). Raises ``RawError``.
    """
    files = numbered_files(folder, PICTURES)
    names = [files[number] for number in sorted(files)]
    if len(names) <= chosen.max():
        raise RawError(
            f"{folder}: {len(names)} face masks found, expected one for each frame, {chosen.max() + 1} or more"
        )
    masks = {int(k): np.asarray(read_picture(names[k], behind="black")) for k in np.unique(chosen)}
    boxes = {k: _mask_box(mask[..., 0] > MASK) for k, mask in masks.items()}
    found = np.stack([boxes[int(k)] for k in chosen])
    valid = (found[:, 2:] > found[:, :2]).all(1)
    moved = crop.points(found.reshape(-1, 2, 2)).reshape(-1, 4).clip(0, 1)
    valid &= (moved[:, 2:] > moved[:, :2]).all(1)
    return (moved * valid[:, None]).astype(np.float32), valid


def _mask_box(mask: np.ndarray) -> np.ndarray:
    """x0 y0 x1 y1 divided by width and height, 0 where there is no face."""
    if not mask.any() or mask.all():
        return np.zeros(4)
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / np.tile(mask.shape[::-1], 2)
