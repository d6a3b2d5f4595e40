"""Windows over a dance that is longer than the network is trained on: where they lie, and how they are mixed."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Windows of ``length`` frames, each starting ``length - overlap`` after the one before; the last ends with the
    dance and so may share more. One where the dance is no longer than that.

    ``anchored``: frame 0 stands before each run of ``length - 1`` later frames (StableAnimator, arXiv 2411.17697, and
    its code). ``shifted``: the starts move from step to step, so that no frame is at an edge in all of them (CHAMP's
    and AnimateDiff's context scheduler does it by the same sequence, but joins the end of a dance to its start)."""

    length: int
    overlap: int
    anchored: bool = False
    shifted: bool = True

    def __post_init__(self) -> None:
        least = 1 + self.anchored
        if self.length < least or not 0 <= self.overlap < self.length:
            raise ValueError(
                f"windows of {self.length} frames that share {self.overlap} asked for, expected at least {least} "
                "frames, of which fewer are shared"
            )

    def at(self, frames: int, step: int = 0) -> list[Tensor]:
        """The frames of each window in ``step``, int64 ``[length]`` on the CPU, so that all ``frames`` are covered."""
        if frames <= self.length:
            return [torch.arange(frames)]
        head = int(self.anchored)
        run, stride, last = self.length - head, self.length - self.overlap, frames - self.length
        if self.anchored:  # a stride over the runs, which are one shorter, leaves no hole between them
            stride = min(stride, run)
        shift = int(bit_reversed(step) * stride) if self.shifted else 0
        starts = sorted({0, *range(shift, last, stride), last})
        return [torch.tensor([*range(head), *range(head + start, head + start + run)]) for start in starts]


def triangle(length: int) -> Tensor:
    """Weights fp32 ``[length]``, rising to the middle and falling: min(w, 2 - w) with w = (2 k + 1) / ``length``
    (StableAnimator's code)."""
    w = (2 * torch.arange(length) + 1) / length
    return torch.minimum(w, 2 - w)


def bit_reversed(step: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, ...: the bits of ``step`` behind the point, the last one first (van der Corput)."""
    found, part = 0.0, 0.5
    while step:
        found += part * (step % 2)
        step, part = step // 2, part / 2
    return found


def fades(frames: int, windows: Windows) -> Iterator[tuple[slice, Tensor]]:
    """Unshifted ``windows`` one after the other, and how much each counts against what stands there by the earlier
    ones, fp32 ``[length]``: rising over the frames that they share, 1 behind them."""
    done = 0
    for part in windows.at(frames):
        start, stop = int(part[0]), int(part[-1]) + 1
        shared = done - start
        weight = torch.ones(stop - start)
        weight[:shared] = (torch.arange(shared) + 0.5) / max(shared, 1)
        yield slice(start, stop), weight
        done = stop
