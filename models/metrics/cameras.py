"""Camera paths of a clip against the true ones: extrinsics ``[F, 3, 4]``, world to camera (see
``data.fantasy_world.cameras``). Computed in fp64.

Rotation and translation errors are defined by CameraCtrl (arXiv 2404.02101, section 4), whose script and scale are not
published; the scale here is ours. AUC follows VGGT's evaluation (arXiv 2503.11651, section 4.1).
"""

import torch
from torch import Tensor

from stagecoach.data.fantasy_world.cameras import canonicalise, centres
from stagecoach.models.common.reduce import Measured
from stagecoach.models.metrics.metric import Metric, Unavailable

SCALED = "of the path's reach"
AUC_LIMITS = (30, 15, 5, 3)
METRICS = (
    Metric("rotation_error", "degree", needs="cameras of the generated video"),
    Metric("translation_error", SCALED, needs="cameras of the generated video"),
    Metric("cam_mc", needs="cameras of the generated video"),
    *(Metric(f"auc_{limit}", "0..1", True, needs="cameras of the generated video") for limit in AUC_LIMITS),
    Metric("ate", "scene units", needs="cameras of the generated video"),
    Metric("rpe_translation", "scene units", needs="cameras of the generated video"),
    Metric("rpe_rotation", "degree", needs="cameras of the generated video"),
)
STILL = 1e-3
"""A path that gets no further than this from its start has no scale; nor has a pair of cameras a direction that are
nearer than this part of the furthest pair."""


def path_errors(generated: Tensor, truth: Tensor) -> dict[str, float]:
    """``rotation_error``, ``translation_error`` and ``cam_mc`` of a clip: means over the frames behind the first, to
    which both paths are relative.

    The translation is that of the camera in the world, and each path's is divided by its largest length, so that a
    scaled path has no error; one that stays within ``STILL`` keeps its lengths. ``cam_mc`` is the Frobenius norm of the
    difference of (R | t), camera to world.
    """
    (turn, place), (true_turn, true_place) = _from_first(generated), _from_first(truth)
    place, true_place = _unit_reach(place), _unit_reach(true_place)
    matrix = torch.cat([turn - true_turn, (place - true_place)[..., None]], -1)
    return {
        "rotation_error": angle(turn, true_turn)[1:].mean().item(),
        "translation_error": (place - true_place).norm(dim=-1)[1:].mean().item(),
        "cam_mc": matrix.flatten(1).norm(dim=-1)[1:].mean().item(),
    }


def pair_errors(generated: Tensor, truth: Tensor) -> Tensor:
    """Degrees ``[F (F - 1) / 2]``: of each pair of frames the larger of the angles between the relative rotations and
    between the directions of the relative translations, the latter without sign (at most 90).

    Where the true cameras stand in one place there is no direction, and the rotation alone counts (ours: VGGT's script
    has 90 degrees there)."""
    first, second = torch.triu_indices(len(truth), len(truth), 1)
    (turn, shift), (true_turn, true_shift) = (_relative(_checked(x), first, second) for x in (generated, truth))
    turned = angle(turn, true_turn)
    lengths, true_lengths = shift.norm(dim=-1), true_shift.norm(dim=-1)
    cosine = (shift * true_shift).sum(-1).abs() / (lengths * true_lengths).clamp_min(1e-12)
    direction = torch.rad2deg(torch.acos(cosine.clamp(max=1)))
    direction = torch.where(lengths < 1e-9, 90.0, direction)
    there = true_lengths > STILL * true_lengths.max().clamp_min(STILL)
    return torch.where(there, torch.maximum(turned, direction), turned)


def pose_auc(errors: Tensor, limit: int) -> Measured:
    """Sum and count over pairs of the area under the curve of accuracy over thresholds of 1 to ``limit`` degrees, which
    pools pairs over clips when sums and counts are added: a pair in bin k (k to k + 1 degrees, the last one closed)
    is right at ``limit - k`` of them."""
    bins = errors.double().floor()
    bins = torch.where(errors == limit, float(limit - 1), bins)
    return (limit - bins).clamp_min(0).sum() / limit, torch.tensor(float(len(errors)))


def trajectory_errors(generated: Tensor, truth: Tensor) -> dict[str, float]:
    """After the similarity that takes the generated camera centres nearest to the true ones: ``ate``, the root mean
    square of their distances; ``rpe_translation`` and ``rpe_rotation`` (degrees), that of the differences of motions
    from one frame to the next. Raises ``Unavailable`` where the generated or the true cameras stand in one place."""
    turn, place = _from_first(generated)
    true_turn, true_place = _from_first(truth)
    if not (true_place - true_place.mean(0)).norm(dim=-1).max() > STILL:
        raise Unavailable(f"the {len(truth)} true cameras stand in one place, so that any path shrinks onto it")
    scale, rotation, shift = umeyama(place, true_place)
    aligned = scale * place @ rotation.T + shift
    steps = turn[:-1].mT @ turn[1:], true_turn[:-1].mT @ true_turn[1:]
    moves = [
        (r[:-1].mT @ p.diff(dim=0)[..., None])[..., 0] for r, p in ((turn, scale * place), (true_turn, true_place))
    ]
    return {
        "ate": _rms((aligned - true_place).norm(dim=-1)),
        "rpe_translation": _rms((moves[0] - moves[1]).norm(dim=-1)),
        "rpe_rotation": _rms(angle(*steps)),
    }


def umeyama(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, rotation ``[3, 3]`` and shift ``[3]`` that take points ``[N, 3]`` nearest to others in the least-squares
    sense (S. Umeyama, 1991). Raises ``Unavailable`` where all source points are one."""
    source, target = source.double(), target.double()
    middle, aim = source.mean(0), target.mean(0)
    x, y = source - middle, target - aim
    spread = x.square().sum()
    if not spread > 1e-18:
        raise Unavailable(f"{len(source)} camera centres stand in one place, a similarity has no scale there")
    u, values, vh = torch.linalg.svd(y.T @ x)
    sign = torch.ones(3, dtype=torch.float64, device=source.device)
    sign[2] = torch.det(u @ vh).sign()
    rotation = u @ torch.diag(sign) @ vh
    scale = (values * sign).sum() / spread
    return scale, rotation, aim - scale * rotation @ middle


def angle(rotation: Tensor, truth: Tensor) -> Tensor:
    """Degrees between rotations ``[..., 3, 3]``: arccos((tr(R Q^T) - 1) / 2), by the sine of its half, which is exact
    for small angles as well."""
    half = (rotation - truth).flatten(-2).norm(dim=-1) / 8**0.5
    return torch.rad2deg(2 * torch.asin(half.clamp(max=1)))


def _checked(extrinsics: Tensor) -> Tensor:
    if extrinsics.ndim != 3 or extrinsics.shape[-2:] != (3, 4) or len(extrinsics) < 2:
        raise ValueError(f"cameras of shape {list(extrinsics.shape)} found, expected [F, 3, 4] of at least two frames")
    return extrinsics.double()


def _from_first(extrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations and positions of the cameras in the first one's frame (camera to world)."""
    relative = canonicalise(_checked(extrinsics))
    return relative[..., :3].mT, centres(relative)


def _unit_reach(place: Tensor) -> Tensor:
    reach = place.norm(dim=-1).max()
    return place / reach if reach > STILL else place


def _relative(extrinsics: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation and translation of camera ``second`` seen from ``first``."""
    rotation, shift = extrinsics[..., :3], extrinsics[..., 3]
    turn = rotation[second] @ rotation[first].mT
    return turn, shift[second] - (turn @ shift[first][..., None])[..., 0]


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
