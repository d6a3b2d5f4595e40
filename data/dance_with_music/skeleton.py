"""DWPose's 134 points: their order, the limbs between them, and the face among them.

134 is COCO-WholeBody's 133 with a neck: 18 body points in OpenPose's order, 6 of the feet, 68 of the face (iBUG), 21 of
each hand.
"""

from itertools import pairwise

import numpy as np

KEYPOINTS = 134
BODY, FEET, FACE = slice(0, 18), slice(18, 24), slice(24, 92)
LEFT_HAND, RIGHT_HAND = slice(92, 113), slice(113, 134)
CONFIDENT = 0.3
"""A point below is taken as not found (DWPose's own threshold)."""

_ARMS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7))
_CHAINS = ((1, 8, 9, 10), (1, 11, 12, 13), (1, 0, 14, 16), (0, 15, 17))
BODY_LIMBS = (*_ARMS, *(limb for chain in _CHAINS for limb in pairwise(chain)))
"""In the order in which DWPose draws and colours them."""
HAND_LIMBS = tuple((0 if k % 4 == 1 else k - 1, k) for k in range(1, 21))

# Face box: the points reach from the brows to the chin; a detector's box has the forehead and some air.
SIDE_MARGIN, TOP_MARGIN = 0.1, 0.3


def five_points(xy: np.ndarray, conf: np.ndarray) -> np.ndarray | None:
    """From points [134, 2] and confidences [134] the five that ArcFace aligns by, float64 [5, 2]: eyes, nose, corners
    of the mouth, each the left one in the picture first; None where one was not found."""
    groups = [range(36, 42), range(42, 48), [30], [48], [54]]
    points, sure = xy[FACE], conf[FACE]
    if any(sure[list(group)].min() < CONFIDENT for group in groups):
        return None
    return np.stack([points[list(group)].astype(np.float64).mean(0) for group in groups])


def face_boxes(xy: np.ndarray, conf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From points [F, 134, 2] divided by width and height and confidences [F, 134]: boxes float32 [F, 4] (x0 y0 x1 y1,
    cut at the picture's edge, 0 where there is none) and whether there is one, bool [F].

    A face is there where half of its 68 points are. Its box spans them, widened by a tenth of its size on each side and
    by three tenths at the top.
    """
    points, sure = xy[:, FACE], conf[:, FACE] >= CONFIDENT
    low = np.where(sure[..., None], points, np.inf).min(1)
    high = np.where(sure[..., None], points, -np.inf).max(1)
    valid = sure.sum(1) >= sure.shape[1] // 2
    low, high = np.where(valid[:, None], low, 0), np.where(valid[:, None], high, 0)
    size = high - low
    boxes = np.concatenate([low - size * [SIDE_MARGIN, TOP_MARGIN], high + size * SIDE_MARGIN], 1).clip(0, 1)
    valid &= ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    return (boxes * valid[:, None]).astype(np.float32), valid
