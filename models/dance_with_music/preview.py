"""Pictures of held-out dances: true poses over predicted ones, or a drawn video next to the true one and its reference,
with the beats below."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stagecoach.data.dance_with_music.drawing import draw_skeleton
from stagecoach.data.dance_with_music.picture import BACKGROUND, beat_strip
from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.models.common.keyed import keyed_randn
from stagecoach.models.common.pictures import column, resized, titled, to_uint8
from stagecoach.models.dance_with_music.clip import Clip, References, take
from stagecoach.models.dance_with_music.conditions import Inputs, make_conditions, predict_poses, read_batch
from stagecoach.models.dance_with_music.metrics import identity_cosine
from stagecoach.models.dance_with_music.music_to_pose.heatmaps import coordinates
from stagecoach.models.dance_with_music.sampler import draw
from stagecoach.models.family import Batch, Progress
from stagecoach.models.metrics.dance import motion_beats
from stagecoach.models.metrics.record import Record

PANEL = 160
"""Height of a panel."""
TRUE, PREDICTED = (70, 200, 100), (235, 120, 40)
_TICKS = 6

Points = tuple[Tensor, Tensor]


@torch.no_grad()
def preview(network: torch.nn.Module, batch: Batch, progress: Progress) -> dict[str, np.ndarray]:
    """One picture per sample, uint8 ``[height, width, 3]``, by the sample's key, with ``sampling.shown`` frames spread
    over what is looked at.

    Stage A: true poses over predicted ones. Later, below them: true frames, and frames drawn from noise that is fixed
    per sample, next to their reference, from what training tells the network at this step (in stage B the true pose
    until scheduled sampling begins). Backbone ``champ`` draws single frames from all over the window in stage B. Where
    there is an ArcFace, the mean cosine of the drawn faces with the reference is reported.

    Below: the music's onsets and beats and the times that are shown (white); the slowest moments of the true dance
    (green) and of the predicted one (orange).
    """
    inputs, output, latents = _drawn(network, batch, replace(progress, training=False))
    clip, references, settings = inputs.clip, inputs.references, network.config.sampling
    predicted = None if output is None else _points(network, output)
    inner = _spread(inputs.target.xy.shape[1], settings.shown, len(clip.xy), clip.xy.device)
    seen = inner if inputs.frames is None else take(inputs.frames, inner)
    rows = _pose_rows(predicted, clip, seen)
    left: list[np.ndarray | None] = [None] * len(clip.xy)
    if latents is not None:
        drawn = take(latents, inner)
        target = inputs.target.at(inner)
        vae = progress.helpers["vae"]
        true, painted = (vae(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in (target.latents, drawn))
        cosine = _cosines(progress.helpers.get("arcface"), painted, target, references)
        rows.append([("true frames", picture) for picture in to_uint8(true)])
        rows.append([(f"drawn frames{note}", picture) for note, picture in zip(cosine, to_uint8(painted), strict=True)])
        left = list(to_uint8(vae(references.latents[:, 0])))
    beats = _beat_lines(clip, predicted, batch["onset"], seen, FRAME_RATE / network.config.frames.stride)
    return {key: _sheet([row[b] for row in rows], left[b], beats[b]) for b, key in enumerate(batch["key"])}


def _drawn(
    network: torch.nn.Module, batch: Batch, progress: Progress
) -> tuple[Inputs, dict[str, Tensor] | None, Tensor | None]:
    """What is looked at, MusicToPose's output, and latents drawn from noise that is fixed per sample (None in stage
    A)."""
    inputs, settings = read_batch(network, batch), network.config.sampling
    clip = inputs.clip
    if network.phase == "image" and network.config.backbone == "champ":
        frames = _spread(clip.xy.shape[1], settings.shown, len(clip.xy), clip.xy.device)
        inputs = replace(inputs, frames=frames, target=clip.at(frames))
    output = predict_poses(network, batch, inputs, progress)
    if network.phase == "m2p":
        return inputs, output, None
    conditions = make_conditions(network, batch, inputs, output, progress)
    return inputs, output, draw(network, _noise(network, batch, inputs.target), conditions)


SAMPLED = (
    *("psnr", "ssim", "ms_ssim", "lpips", "motion_error", "motion_amount", "motion_amount_true"),
    *("temporal_consistency", "pose_error_px", "beat_alignment"),
)
DECODED_AT_ONCE = 8


@torch.no_grad()
def sampled(network: torch.nn.Module, batch: Batch, progress: Progress) -> list[tuple[Record, Record]]:
    """The frames that a preview draws, all of them, and the poses that MusicToPose predicts, with the true ones. Frames
    that were drawn from all over a window are records of their own."""
    inputs, output, latents = _drawn(network, batch, replace(progress, training=False))
    clip, rate = inputs.clip, FRAME_RATE / network.config.frames.stride
    predicted = None if output is None else _points(network, output)
    pairs = []
    for b, key in enumerate(batch["key"]):
        frames = true = None
        if latents is not None:
            frames, true = (_decoded(progress.helpers["vae"], x[b]) for x in (latents, inputs.target.latents))
            if network.phase == "image" and network.config.backbone == "champ":
                pairs += [
                    (Record(key, frames=a[None]), Record(key, frames=t[None]))
                    for a, t in zip(frames, true, strict=True)
                ]
                frames = true = None
        if frames is not None or predicted is not None:
            pose = None if predicted is None else (predicted[0][b].float(), predicted[1][b].float())
            facts = {"rate": rate, "size": clip.picture, "beat": clip.beat[b]}
            truth = Record(key, frames=true, pose=(clip.xy[b], clip.conf[b]), **facts)
            pairs.append((Record(key, frames=frames, pose=pose, **facts), truth))
    return pairs


def _decoded(vae: torch.nn.Module, latents: Tensor) -> Tensor:
    """``[T, 4, h, w]`` -> ``[T, 3, H, W]`` in 0..1, on the CPU."""
    parts = [((vae(x) + 1) / 2).float().clamp(0, 1).cpu() for x in latents.split(DECODED_AT_ONCE)]
    return torch.cat(parts)


def _noise(network: torch.nn.Module, batch: Batch, clip: Clip) -> Tensor:
    """One noise per clip, and in single frames the same for all, so that what differs is the pose."""
    frames, *shape = clip.latents.shape[1:]
    alone = network.phase == "image" and network.config.backbone == "champ"
    noise = keyed_randn(batch, "preview_noise", (1 if alone else frames, *shape))
    return noise.expand(-1, frames, *shape)


def _spread(frames: int, count: int, samples: int, device: torch.device) -> Tensor:
    """int64 ``[B, K]``: at most ``count`` of ``frames``, from the first to the last."""
    chosen = np.unique(np.linspace(0, frames - 1, min(count, frames)).round().astype(np.int64))
    return torch.from_numpy(chosen).to(device).expand(samples, -1)


def _points(network: torch.nn.Module, output: dict[str, Tensor]) -> Points:
    return coordinates(output, network.config.m2p.temperature), output["conf"].sigmoid()


def _pose_rows(predicted: Points | None, clip: Clip, frames: Tensor) -> list[list[tuple[str, np.ndarray]]]:
    """Rows of titled panels ``[K, H, W, 3]`` for each sample, of the ``frames`` ``[B, K]``: predicted, true."""
    height, width = clip.picture
    blank = np.full((PANEL, max(round(width * PANEL / height), 1), 3), BACKGROUND, np.uint8)
    rows = []
    for title, points in (("true poses", (clip.xy, clip.conf)), ("predicted poses", predicted)):
        if points is not None:
            chosen = (take(x, frames).float().cpu().numpy().astype(np.float64) for x in points)
            rows.append(
                [
                    (title, np.stack([draw_skeleton(blank, xy, conf) for xy, conf in zip(*sample, strict=True)]))
                    for sample in zip(*chosen, strict=True)
                ]
            )
    return rows


def _cosines(arcface: torch.nn.Module | None, painted: Tensor, clip: Clip, references: References) -> list[str]:
    """What is said of the faces of each sample; nothing where there is no ArcFace or no face."""
    if arcface is None:
        return [""] * len(painted)
    total, count = identity_cosine(arcface, painted, clip, references)
    return [f", face cosine {a / n:.2f}" if n else "" for a, n in zip(total.tolist(), count.tolist(), strict=True)]


def _beat_lines(clip: Clip, predicted: Points | None, onset: Tensor, seen: Tensor, rate: float) -> list[np.ndarray]:
    """For each sample beats and slowest moments, drawn one column per frame: uint8 ``[h, T, 3]``."""
    size = clip.picture
    moves = [(motion_beats(clip.xy, clip.conf, *size, rate).cpu().numpy(), TRUE)]
    if predicted is not None:
        moves.append((motion_beats(*predicted, *size, rate).cpu().numpy(), PREDICTED))
    lines = []
    for b, beat in enumerate(clip.beat.cpu().numpy()):
        strip = [beat_strip(beat, onset[b].float().cpu().numpy(), seen[b].tolist(), len(beat))]
        for low, colour in moves:
            ticks = np.full((_TICKS, len(beat), 3), BACKGROUND, np.uint8)
            ticks[1:, np.flatnonzero(low[b])] = colour
            strip.append(ticks)
        lines.append(np.concatenate(strip))
    return lines


def _sheet(rows: Sequence[tuple[str, np.ndarray]], reference: np.ndarray | None, beats: np.ndarray) -> np.ndarray:
    """Titled rows of panels below each other, the reference to the left of the last, the beats below."""
    lines = [titled(np.concatenate([_panel(frame) for frame in frames], 1), title) for title, frames in rows]
    if reference is not None:
        side = titled(_panel(reference), "reference")
        lines[-1] = np.concatenate([side, lines[-1]], 1)
    width = sum(_panel(frame).shape[1] for frame in rows[0][1])
    return column([*lines, resized(beats, width, len(beats), nearest=True)], right=True)


def _panel(picture: np.ndarray) -> np.ndarray:
    return resized(picture, height=PANEL)
