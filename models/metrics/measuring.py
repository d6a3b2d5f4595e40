"""One sample against its truth, by the names of metrics: from what is known of both to sums and counts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stagecoach.models.common.reduce import Measured
from stagecoach.models.metrics import cameras as camera_paths
from stagecoach.models.metrics import dance, depth, identity, layout, pictures, points, reprojection, similarity
from stagecoach.models.metrics import temporal as motions
from stagecoach.models.metrics.metric import Absent, Unavailable, measured
from stagecoach.models.metrics.record import Record
from stagecoach.models.metrics.registry import METRICS
from stagecoach.models.metrics.weights import Models

Value = tuple[float, float]
"""Sum and count of one sample."""
Found = Mapping[str, float | Measured]
GENERATED, TRUE, ASKED = "of what was generated", "of the truth", "of what was asked for"


@dataclass(frozen=True)
class Group:
    """Metrics that one function measures, those of a (generated, true) pair. ``modules`` are those of the package that
    declare them, ``names`` picks among these."""

    names: tuple[str, ...]
    function: Callable[[Record, Record, Models], Found]


def measure(generated: Record, truth: Record, models: Models, names: Iterable[str]) -> dict[str, Value | Absent]:
    """Of each of the ``names`` that one sample has (``PER_SAMPLE``) its sum and count, or why there is none."""
    wanted, results = set(names), {}
    if wanted & {*POSED}:
        generated = _with_poses(generated, models)
    for group in GROUPS:
        chosen = [name for name in group.names if name in wanted]
        if chosen:
            found = measured(group.function, generated, truth, models)
            for name in chosen:
                results[name] = found if isinstance(found, Absent) else _value(name, found)
    return results


def _value(name: str, found: Found) -> Value | Absent:
    if name not in found:
        return Absent("not measured of such a sample")
    value = found[name]
    total, count = (float(value), 1.0) if isinstance(value, float) else (float(value[0].sum()), float(value[1].sum()))
    if not count > 0:
        return Absent("nothing to measure in this sample")
    return (total, count) if np.isfinite(total) else Absent("not finite")


def _true_cameras(generated: Record, truth: Record) -> Tensor:
    """The true ones, or those that were asked for."""
    pair = truth.cameras or truth.given or generated.given
    if pair is None:
        raise Unavailable(f"no cameras {TRUE}, nor {ASKED}")
    return pair[0]


def _cameras(generated: Record) -> Tensor:
    return generated.need("cameras", "of the generated video")[0]


def _same_length(a: Tensor, b: Tensor, what: str) -> None:
    if a.shape != b.shape:
        raise Unavailable(f"{what} of shape {list(a.shape)} found, expected {list(b.shape)} as the truth has")


def _both_cameras(generated: Record, truth: Record) -> tuple[Tensor, Tensor]:
    found, true = _cameras(generated), _true_cameras(generated, truth)
    _same_length(found, true, "cameras")
    return found, true


def _paths(generated: Record, truth: Record, models: Models) -> Found:
    found, true = _both_cameras(generated, truth)
    errors = camera_paths.pair_errors(found, true)
    return {
        **camera_paths.path_errors(found, true),
        **{f"auc_{limit}": camera_paths.pose_auc(errors, limit) for limit in camera_paths.AUC_LIMITS},
    }


def _trajectories(generated: Record, truth: Record, models: Models) -> Found:
    return camera_paths.trajectory_errors(*_both_cameras(generated, truth))


def _depths(generated: Record, truth: Record, models: Models) -> Found:
    found, true = generated.need("depth", GENERATED), truth.need("depth", TRUE)
    _same_length(found, true, "depth")
    valid = (true > 0) & torch.isfinite(true) & torch.isfinite(found)
    alignments: tuple[depth.Alignment, ...] = ("raw", "median", "affine")
    return {k: v for each in alignments for k, v in depth.depth_errors(found, true, valid, each).items()}


def _clouds(generated: Record, truth: Record, models: Models) -> Found:
    return points.cloud_errors(generated.need("points", GENERATED), truth.need("points", TRUE))


def _reprojections(given: bool) -> Callable[[Record, Record, Models], Found]:
    def function(generated: Record, truth: Record, models: Models) -> Found:
        maps = generated.need("depth", GENERATED)
        pair = generated.need("given", ASKED) if given else generated.need("cameras", "of the generated video")
        frames = generated.frames
        if frames is not None and frames.shape[-2:] != maps.shape[-2:]:
            frames = None
        return reprojection.reprojection_errors(maps, pair[0], pair[1], frames, given=given)

    return function


def _both_frames(generated: Record, truth: Record) -> tuple[Tensor, Tensor]:
    found, true = generated.need("frames", GENERATED), truth.need("frames", TRUE)
    _same_length(found, true, "frames")
    return found[None], true[None]


def _picture(function: Callable[[Tensor, Tensor], Measured], name: str) -> Callable[[Record, Record, Models], Found]:
    return lambda generated, truth, models: {name: function(*_both_frames(generated, truth))}


def _lpips(generated: Record, truth: Record, models: Models) -> Found:
    network, pair = models("lpips"), _both_frames(generated, truth)
    device = next(network.buffers()).device
    return {"lpips": pictures.lpips(network, *(frames.to(device) for frames in pair))}


def _motion(generated: Record, truth: Record, models: Models) -> Found:
    return motions.motion(*_both_frames(generated, truth))


def _warp(generated: Record, truth: Record, models: Models) -> Found:
    return {"warp_error": motions.warp_error(generated.need("frames", GENERATED), truth.need("flow", TRUE))}


def _seen(generated: Record) -> list[np.ndarray]:
    """The frames as uint8 ``[H, W, 3]``."""
    frames = generated.need("frames", GENERATED)
    return list((frames.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy())


def _clip_text(generated: Record, truth: Record, models: Models) -> Found:
    prompt = generated.prompt if generated.prompt is not None else truth.need("prompt", ASKED)
    clip = models("clip")
    return {"clip_score": similarity.similarity(clip.pictures(_seen(generated)), clip.texts([prompt]))}


def _clip_frames(generated: Record, truth: Record, models: Models) -> Found:
    return {"temporal_consistency": motions.temporal_consistency(models("clip").pictures(_seen(generated)))}


def _style(generated: Record, truth: Record, models: Models) -> Found:
    reference = generated.reference if generated.reference is not None else truth.need("reference", ASKED)
    clip = models("clip")
    features, asked = clip.pictures(_seen(generated)), clip.pictures([reference])
    return {"style_consistency": motions.style_consistency(features, asked[0])}


def _objects(generated: Record, truth: Record):
    """Those in the truth, whose references are there, or else in the request."""
    return truth.objects if truth.objects is not None else generated.need("objects", ASKED)


def _crops(model: str, name: str, by_caption: bool) -> Callable[[Record, Record, Models], Found]:
    def function(generated: Record, truth: Record, models: Models) -> Found:
        objects = [o for o in _objects(generated, truth) if (o.caption if by_caption else o.reference is not None)]
        if not objects:
            raise Unavailable(f"no object with a {'caption' if by_caption else 'reference'}")
        network, picture = models(model), _seen(generated)[0]
        crops = network.pictures([similarity.crop(picture, o.box) for o in objects])
        others = network.texts([o.caption for o in objects]) if by_caption else None
        if others is None:
            others = network.pictures([o.reference for o in objects])
        return {name: similarity.similarity(crops, others)}

    return function


def _detected(generated: Record, categories: Sequence[str], models: Models) -> list[Tensor]:
    """Boxes by category, of the file of detections where one is given, else of the detector."""
    if models.given("detections"):
        return layout.detected(models("detections"), generated.name, categories)
    return models("grounding_dino").detect(_seen(generated)[0], categories)


def _layout(generated: Record, truth: Record, models: Models) -> Found:
    objects = _objects(generated, truth)
    boxes = torch.tensor([o.box for o in objects], dtype=torch.float32).view(-1, 4)
    found = _detected(generated, [o.category for o in objects], models)
    return {"layout_grounding_score": layout.layout_grounding_score(boxes, found)}


def _reference_objects(generated: Record, truth: Record, models: Models) -> Found:
    objects = [o for o in _objects(generated, truth) if o.reference is not None]
    if not objects:
        raise Unavailable("no object with a reference")
    dino, picture = models("dino"), _seen(generated)[0]
    found = _detected(generated, [o.category for o in objects], models)
    candidates = [
        dino.pictures([similarity.crop(picture, box.tolist()) for box in boxes[: similarity.MOST_DETECTIONS]])
        if len(boxes)
        else torch.zeros(0, 1)
        for boxes in found
    ]
    references = dino.pictures([o.reference for o in objects])
    return {"reference_similarity": similarity.reference_similarity(candidates, references)}


def _found_faces(generated: Record, models: Models) -> list[list[np.ndarray]]:
    """Faces detected on the frames, or those of the poses estimated on them."""
    if generated.faces is not None:
        return generated.faces
    if generated.estimated is None and not models.given(ESTIMATOR):
        raise Unavailable("no faces detected on the generated frames, nor poses estimated on them")
    xy, conf = (x.numpy() for x in _estimated(generated, models))
    return [identity.pose_faces(a, b, *generated.picture) for a, b in zip(xy, conf, strict=True)]


def _face_rate(generated: Record, truth: Record, models: Models) -> Found:
    return {
        "face_detection_rate": identity.face_detection_rate(
            [torch.zeros(len(f), 1) for f in _found_faces(generated, models)]
        )
    }


def _faces(generated: Record, truth: Record, models: Models) -> Found:
    source = generated if generated.reference is not None and truth.reference is None else truth
    source = generated if generated.reference_faces is not None else source
    reference = source.need("reference", ASKED)
    if source.reference_faces is None and models.given(ESTIMATOR):
        pose = models(ESTIMATOR).estimate([reference])[0]
        points_of = [identity.pose_faces(pose[:, :2], pose[:, 2], *reference.shape[:2])]
    else:
        points_of = source.need("reference_faces", ASKED)
    found, encoder = _found_faces(generated, models), models("arcface")
    wanted = identity.face_vectors(encoder, reference, points_of[0])
    if not len(wanted):
        raise Unavailable("no face on the reference")
    frames = _seen(generated)
    vectors = [
        identity.face_vectors(encoder, f, p) if len(p) else torch.zeros(0, 1)
        for f, p in zip(frames, found, strict=True)
    ]
    recalls = [identity.face_recall(wanted, v) for v in vectors]
    return {
        "face_similarity": identity.face_similarity(wanted[0], vectors),
        "face_recall": (torch.stack([r[0] for r in recalls]).sum(), torch.stack([r[1] for r in recalls]).sum()),
    }


def _batched(pose: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return pose[0][None], pose[1][None]


def _pose_error(generated: Record, truth: Record, models: Models) -> Found:
    (xy, _), (target, conf) = (_batched(r.need("pose", w)) for r, w in ((generated, GENERATED), (truth, TRUE)))
    _same_length(xy, target, "poses")
    return {"pose_error_px": dance.pose_error_px(xy, target, conf, *_size(generated, truth))}


def _size(generated: Record, truth: Record) -> tuple[int, int]:
    return (truth if generated.frames is None and truth.frames is not None else generated).picture


def _beats(generated: Record, truth: Record, models: Models) -> Found:
    beat = generated.beat if generated.beat is not None else truth.need("beat", "of the music")
    xy, conf = _batched(generated.need("pose", GENERATED))
    rate = generated.rate or truth.rate or dance.FRAME_RATE
    frames = xy.shape[1]
    if len(beat) < frames:
        raise Unavailable(f"beats of {len(beat)} frames found, expected the {frames} of the poses")
    beat = beat[:frames]
    return {"beat_alignment": dance.beat_alignment(xy, conf, beat[None], *_size(generated, truth), rate)}


def _following(generated: Record, truth: Record, models: Models) -> Found:
    asked = _batched(generated.need("pose", ASKED))
    found = _batched(_estimated(generated, models))
    _same_length(found[0], asked[0], "estimated poses")
    return dance.pose_following(*asked, *found, *generated.picture)


POSED = ("face_detection_rate", "face_similarity", "face_recall", "pose_following_px", "pose_following_pck")
ESTIMATOR = "pose_estimator"


def _with_poses(generated: Record, models: Models) -> Record:
    """With the poses that an estimator finds on the frames, where there is one and they are not known."""
    if not models.given(ESTIMATOR) or generated.estimated is not None or generated.frames is None:
        return generated
    found = measured(lambda: models(ESTIMATOR).estimate(_seen(generated)))
    if isinstance(found, Absent):
        return generated
    pose = torch.from_numpy(found)
    return replace(generated, estimated=(pose[..., :2], pose[..., 2]))


def _estimated(generated: Record, models: Models) -> tuple[Tensor, Tensor]:
    """Poses on the generated frames. Raises ``Unavailable``, with the estimator's reason where it is given."""
    if generated.estimated is None and models.given(ESTIMATOR):
        models(ESTIMATOR)
    found: tuple[Tensor, Tensor] = generated.need("estimated", "on the generated video (an estimator's poses)")
    return found


SPEED = ("seconds_per_sample", "frames_per_second", "peak_memory")


def _speed(generated: Record, truth: Record, models: Models) -> Found:
    found = {name: generated.facts[name] for name in SPEED if name in generated.facts}
    if not found:
        raise Unavailable("its result does not say how long it took")
    return found


def _names(module, but: Iterable[str] = ()) -> tuple[str, ...]:
    return tuple(metric.name for metric in module.METRICS if metric.name not in but)


TRAJECTORIES = ("ate", "rpe_translation", "rpe_rotation")
GROUPS = (
    Group(_names(camera_paths, TRAJECTORIES), _paths),
    Group(TRAJECTORIES, _trajectories),
    Group(_names(depth), _depths),
    Group(_names(points), _clouds),
    Group(("reprojection_depth", "reprojection_colour"), _reprojections(False)),
    Group(("reprojection_depth_given", "reprojection_colour_given"), _reprojections(True)),
    Group(("psnr",), _picture(pictures.psnr, "psnr")),
    Group(("ssim",), _picture(pictures.ssim, "ssim")),
    Group(("ms_ssim",), _picture(pictures.ms_ssim, "ms_ssim")),
    Group(("lpips",), _lpips),
    Group(("motion_error", "motion_amount", "motion_amount_true"), _motion),
    Group(("warp_error",), _warp),
    Group(("clip_score",), _clip_text),
    Group(("temporal_consistency",), _clip_frames),
    Group(("style_consistency",), _style),
    Group(("clip_t",), _crops("clip", "clip_t", True)),
    Group(("clip_i",), _crops("clip", "clip_i", False)),
    Group(("dino_i",), _crops("dino", "dino_i", False)),
    Group(("layout_grounding_score",), _layout),
    Group(("reference_similarity",), _reference_objects),
    Group(("face_detection_rate",), _face_rate),
    Group(("face_similarity", "face_recall"), _faces),
    Group(("pose_error_px",), _pose_error),
    Group(("beat_alignment",), _beats),
    Group(("pose_following_px", "pose_following_pck"), _following),
    Group(SPEED, _speed),
)
PER_SAMPLE = tuple(name for group in GROUPS for name in group.names)
OF_SETS = tuple(name for name in METRICS if name not in PER_SAMPLE)
"""Measured on many samples at once; see ``sets``."""
COMPARED = (
    *(name for name in _names(camera_paths)),
    *_names(depth),
    "psnr",
    "ssim",
    "ms_ssim",
    "lpips",
    "motion_error",
    "pose_error_px",
)
"""Those that compare with the truth, so that a trivial predictor (``record.trivial``) has a number."""
