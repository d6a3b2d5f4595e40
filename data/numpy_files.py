"""Arrays of .npy and .npz files of numbers.

Not through ``np.load``: its parser of headers is not to be called in threads (``npy_header``), and files are read in
threads everywhere here.
"""

import zipfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np

from stagecoach.data.format.decode import npy_header

HEADER = 4096
"""Bytes in which the header of an array of plain numbers ends."""


def map_npy(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped into memory for reading. Raises ``OSError``, and ``ValueError`` for a file that
    is none of plain numbers or is cut."""
    with open(path, "rb") as file:
        start, dtype, shape, fortran = npy_header(memoryview(file.read(HEADER)))
        end = start + prod(shape) * dtype.itemsize
        if end != path.stat().st_size:
            raise ValueError(f"{path.stat().st_size} bytes, where its header tells of {end}")
        if end == start:
            return np.empty(shape, dtype)
        return np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")


class NpzFile(Mapping[str, np.ndarray]):
    """The arrays of a .npz file by name, each read when it is asked for; a context that closes the file.

    Raises ``OSError``, ``ValueError``, ``zipfile.BadZipFile`` or ``zlib.error`` for what is damaged, ``KeyError`` for
    a name that is not there."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        self._names = [name.removesuffix(".npy") for name in self._archive.namelist() if name.endswith(".npy")]

    def __enter__(self) -> "NpzFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        data = self._archive.read(f"{name}.npy")
        start, dtype, shape, fortran = npy_header(memoryview(data))
        if start + prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"{name} has {len(data) - start} bytes of numbers, where its header tells of more or less")
        return np.frombuffer(data, dtype, prod(shape), start).reshape(shape, order="F" if fortran else "C")

    def is_numbers(self, name: str) -> bool:
        """Whether an array is of plain numbers; reconstructions hold others too, as names of files."""
        with self._archive.open(f"{name}.npy") as member:
            try:
                npy_header(memoryview(member.read(HEADER)))
            except ValueError:
                return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
