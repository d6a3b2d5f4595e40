"""Safetensors files: the same content is the same bytes, and one that is damaged is named in one sentence."""

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stagecoach.data.files import sha256_json
from stagecoach.data.local_files import DamagedError, LocalFile, retried


def save_tensors(
    tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file whose bytes depend on its content alone.

    The library orders the tensors but leaves the keys of the metadata in the random order of a hash map.
    """
    save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    if metadata is None or len(metadata) < 2:
        return
    with open(path, "r+b") as handle:
        (size,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(content) > size:
            raise RuntimeError(f"{path}: its header takes {len(content)} bytes in order and {size} as written")
        handle.seek(8)
        handle.write(content.ljust(size))


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    """What ``safe_open`` gives for a regular file.

    Raises ``DamagedError`` naming it, also for what fails while the block reads from it, and ``UnreachableError`` where
    it cannot be opened.
    """
    where = Path(path)
    try:
        with retried(str(where), lambda: _open(where)) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{where}: not a readable safetensors file ({error}); was it cut short?") from error


def _open(where: Path) -> Any:
    LocalFile(where).close()  # the library would wait for the writer of a pipe
    try:
        return safe_open(where, framework="pt")
    except (FileNotFoundError, RuntimeError) as error:
        # Whatever keeps it from opening the file, the library says that there is none, and PyTorch gives no number.
        raise OSError(f"{error}, although it was opened just before") from error


def read_all(paths: Iterable[Path]) -> dict[str, torch.Tensor]:
    """All tensors of some files by name, on the CPU. Raises ``DamagedError``, also for a name in two of them."""
    found: dict[str, torch.Tensor] = {}
    for path in paths:
        with open_tensors(path) as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                if name in found:
                    raise DamagedError(f"{path}: holds {name!r}, which another file next to it holds too")
                found[name] = file.get_tensor(name)
    return found


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 of names, dtypes, shapes and bytes: the identity of weights, however files hold them."""
    return sha256_json(
        {name: [str(value.dtype), list(value.shape), _hash_bytes(value)] for name, value in tensors.items()}
    )


def _hash_bytes(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()
