"""Windows of long clips: a run of frames, drawn by the position in the order and nothing else."""

import hashlib
from dataclasses import dataclass, replace

from stagecoach.data.format.schema import SampleSchema, SchemaError
from stagecoach.data.streaming.dataset import Sample


@dataclass(frozen=True)
class Window:
    """``frames`` frames, each ``stride`` after the one before, along the schema's ``window`` dimension."""

    frames: int
    stride: int = 1

    def __post_init__(self) -> None:
        if self.frames < 1 or self.stride < 1:
            raise ValueError(f"a window of {self.frames} frames at stride {self.stride}, expected at least 1 of each")

    @property
    def span(self) -> int:
        """Frames of the clip that it reaches over, the shortest clip that it fits into."""
        return (self.frames - 1) * self.stride + 1


def window_start(window: Window, length: int, seed: int, uid: int) -> int:
    """First frame of the window that the sample at position ``uid`` gets in a clip of ``length`` frames: uniform over
    all starts where it fits. The number stays the same in a run that was resumed, at any world size."""
    starts = length - window.span + 1
    if starts < 1:
        raise SchemaError(
            f"a clip of {length} frames, expected at least {window.span} for a window of {window.frames} "
            f"frames at stride {window.stride}; build longer clips or take a shorter window"
        )
    drawn = hashlib.blake2b(f"{seed}/window/{uid}".encode(), digest_size=8).digest()
    # 64 bits over at most some thousand starts: the bias is below 1e-15.
    return int.from_bytes(drawn, "little") * starts >> 64


def cut(schema: SampleSchema, sample: Sample, window: Window, seed: int, uid: int) -> tuple[Sample, int]:
    """The sample with each field that has the window's dimension cut along it (views), and the first frame.

    Raises ``SchemaError`` naming the sample if the clip is too short.
    """
    length = next(
        (
            array.shape[spec.shape.index(schema.window)]
            for spec in schema.fields
            if schema.window in spec.shape and (array := sample.arrays.get(spec.name)) is not None
        ),
        0,
    )
    try:
        start = window_start(window, length, seed, uid)
    except SchemaError as error:
        raise SchemaError(f"{sample.shard}: sample {sample.key!r}: {error}") from error
    part = slice(start, start + window.span, window.stride)
    arrays = dict(sample.arrays)
    for spec in schema.fields:
        if spec.name in arrays and schema.window in spec.shape:
            axis = spec.shape.index(schema.window)
            arrays[spec.name] = arrays[spec.name][(slice(None),) * axis + (part,)]
    return replace(sample, arrays=arrays), start
