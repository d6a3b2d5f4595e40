"""Trained weights in a file that others published, under our names."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from stagecoach.models.common.materialise import Shapes, WeightFile, WeightSource

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class PublishedFile(WeightSource):
    """The tensors of ``shapes``, by our names, in a file that has them by ``theirs`` and may give them more dimensions
    of size 1. It is also read as an open safetensors file is.

    Args:
        unused: names in the file that the network has no use for.
        size, stage, config: of which network its family takes them to be.

    Raises ``ValueError`` naming the file and the tensors that are missing, left over or of another shape.
    """

    def __init__(
        self,
        path: str | Path,
        shapes: Shapes,
        theirs: Callable[[str], str],
        unused: re.Pattern[str],
        size: str = "",
        stage: int = 0,
        config: BaseModel | None = None,
    ) -> None:
        self.size, self.stage, self.config = size, stage, config
        self.expected, self.where = dict(shapes), f"from {path}"
        held = stored_shapes(path)
        ours = {theirs(name): name for name in shapes}
        left = [name for name in held if name not in ours and not unused.fullmatch(name)]
        missing = [name for name in ours if name not in held]
        wrong = [name for name in ours if name in held and _bare(held[name]) != _bare(shapes[ours[name]])]
        problems = [f"missing {_some(missing)}"] if missing else []
        problems += [f"left over {_some(left)}"] if left else []
        if wrong:
            first = wrong[0]
            problems.append(
                f"{len(wrong)} of another shape, first {first} {list(held[first])} where the network has "
                f"{list(shapes[ours[first]])}"
            )
        if problems:
            raise ValueError(
                f"{path}: {'; '.join(problems)}; expected the {len(ours)} tensors of the published {size or 'model'}; "
                "is this another model or an incomplete download?"
            )
        self.file = WeightFile(path, {ours[name]: held[name] for name in ours}, ours.get)

    def read(self, name: str) -> Tensor:
        return self.file.read(name).reshape(self.expected[name])

    def digest(self) -> str:
        return self.file.digest()

    get_tensor = read

    def keys(self) -> Iterable[str]:
        return self.expected.keys()

    def get_slice(self, name: str) -> Any:
        dtype = self.file.read(name).dtype
        return SimpleNamespace(
            get_shape=lambda: list(self.expected[name]), get_dtype=lambda: DTYPES.get(dtype, str(dtype))
        )


def stored_shapes(path: str | Path) -> Shapes:
    """All that a file of weights holds, under its own names."""
    return WeightFile(path, {}, lambda name: None).shapes()


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
