"""The crop of a clip, with its maps and cameras."""

from dataclasses import dataclass

import numpy as np

from stagecoach.data.pictures import CoverCrop


@dataclass(frozen=True)
class ClipCrop(CoverCrop):
    """The crop of a clip, with its maps and cameras."""

    def maps(self, maps: np.ndarray) -> np.ndarray:
        """[F, a, b, ...] of the same view in any resolution -> [F, H, W, ...], the nearest value at pixel centres:
        a mean across the edge of an object would be a surface that is not there."""
        rows = self._nearest(self.top, self.height, self.source_height, maps.shape[1])
        columns = self._nearest(self.left, self.width, self.source_width, maps.shape[2])
        return maps[:, rows[:, None], columns]

    def _nearest(self, start: float, size: int, source: int, available: int) -> np.ndarray:
        centres = start + (np.arange(size) + 0.5) / self.scale
        return np.clip(np.floor(centres / source * available).astype(np.int64), 0, available - 1)

    def intrinsics(self, intrinsics: np.ndarray) -> np.ndarray:
        """[..., 4] in source pixels -> clip pixels. With pixel centres at half numbers a resize is a plain factor; the
        index of a pixel goes from u to (u + 0.5) scale - 0.5 - left scale."""
        return (intrinsics - np.array([0, 0, self.left, self.top])) * self.scale
