"""A file of trained weights opened by the network's names: ours, or one that others published."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stagecoach.data.tensors import open_tensors
from stagecoach.data.weight_files import ENDING
from stagecoach.models import FAMILIES, get_family
from stagecoach.models.common.published import PublishedFile
from stagecoach.models.family import Family

SAVED = (".pth", ".pt", ".bin", ".ckpt")
"""Endings of what ``torch.save`` wrote."""


@contextmanager
def open_stored(file: Path) -> Iterator[Any]:
    """What ``open_tensors`` gives. Raises as that and ``open_published``."""
    if file.suffix == ENDING:
        with open_tensors(file) as handle:
            yield handle
    else:
        yield open_published(file)[1]


def open_published(file: Path) -> tuple[Family, PublishedFile]:
    """The family that knows the layout of ``file``, and its tensors by our names. Raises ``ValueError``."""
    for name in FAMILIES if file.suffix in SAVED else ():
        family = get_family(name)
        found = family.open_published(file)
        if found is not None:
            return family, found
    raise ValueError(
        f"{file}: expected a file ending in {ENDING}, which export.py wrote, published weights in a layout that a "
        f"family knows ({', '.join(SAVED)}), or an adapter's folder"
    )
