"""Where frozen weights come from: a folder of safetensors, a file of another project, or numbers drawn by tensor name.

A backbone is built on the meta device. Its weights are then put in place unit by unit, so that a rank never holds more
than it keeps, plus one tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stagecoach.data.files import sha256_file, sha256_json

Shapes = Mapping[str, tuple[int, ...]]
Rename = Callable[[str], str | None]
"""From a name in a file to that in the model, None for what the model has no use for."""

CONFIG_FILE = "config.json"
VARIANTS = (".fp16.", ".bf16.", ".non_ema.")
"""Marks of files that hold the same weights again; those in 16 bits are read where the plain ones are missing."""


class WeightSource(ABC):
    """Named tensors."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor on the CPU, in the dtype it is stored in."""

    @abstractmethod
    def digest(self) -> str:
        """sha256 that stands for all of the weights."""


class SafetensorsFolder(WeightSource):
    """The ``*.safetensors`` of a folder in diffusers layout (of its index, where it has one).

    Raises ``ValueError`` naming the folder or the file where one is missing or unreadable, where the names are not
    exactly those of ``expected``, or where a shape differs.
    """

    def __init__(self, folder: str | Path, expected: Shapes, rename: Rename | None = None) -> None:
        self.folder = Path(folder)
        self.files = [self.folder / name for name in _list_files(self.folder)]
        if not self.files:
            raise ValueError(
                f"{self.folder}: no .safetensors file found, expected the weights of a model that diffusers saved"
            )
        self._where: dict[str, tuple[Path, str]] = {}
        for path in self.files:
            with _open(path) as file:
                shapes = _shapes(file)
            self._where |= {ours: (path, name) for ours, name in _match(path, shapes, expected, rename).items()}
        _check_all(self.folder, self._where, expected)

    def read(self, name: str) -> Tensor:
        path, stored = self._where[name]
        with _open(path) as file:
            return file.get_tensor(stored)

    def digest(self) -> str:
        return sha256_json({path.name: sha256_file(path) for path in self.files})


class WeightFile(WeightSource):
    """One file: ``.safetensors``, or what ``torch.save`` wrote, by itself or under ``state_dict``, as other projects
    publish their weights. It is mapped and not read at once. Raises ``ValueError`` as ``SafetensorsFolder`` does."""

    def __init__(self, path: str | Path, expected: Shapes, rename: Rename | None = None) -> None:
        self.path = Path(path)
        self._tensors: dict[str, Tensor] | None = None
        if self.path.suffix != ".safetensors":
            self._tensors = _map_tensors(self.path)
        self._where = _match(self.path, self.shapes(), expected, rename)
        _check_all(self.path, self._where, expected)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All that the file holds, under its own names."""
        if self._tensors is not None:
            return {name: tuple(value.shape) for name, value in self._tensors.items()}
        with _open(self.path) as file:
            return _shapes(file)

    def read(self, name: str) -> Tensor:
        stored = self._where[name]
        if self._tensors is not None:
            return self._tensors[stored]
        with _open(self.path) as file:
            return file.get_tensor(stored)

    def digest(self) -> str:
        return sha256_file(self.path)


class RandomWeights(WeightSource):
    """Weights drawn by tensor name: the same on every rank and whichever are read. Gains are 1, biases 0, tables and
    embeddings normal with std 1 / sqrt(width), other weights uniform within 1 / sqrt(fan in), PyTorch's default."""

    def __init__(self, expected: Shapes) -> None:
        self.expected = dict(expected)

    def read(self, name: str) -> Tensor:
        shape, kind = self.expected[name], name.rsplit(".", 1)[-1]
        if kind == "bias":
            return torch.zeros(shape)
        if kind == "weight" and len(shape) == 1:
            return torch.ones(shape)
        generator = torch.Generator().manual_seed(_seed(name))
        if kind != "weight":
            return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)

    def digest(self) -> str:
        return sha256_json({"random": {name: list(shape) for name, shape in self.expected.items()}})


def open_folder(
    base: str | None, model: nn.Module, settings: Mapping[str, Any], random: bool, what: str, key: str = "base"
) -> WeightSource:
    """Where the weights of ``model`` (on the meta device) are read from, checked: the folder ``base`` in diffusers
    layout, whose ``config.json`` must agree with ``settings``, or with ``random`` and no base numbers drawn by name.
    Raises ``ValueError`` where there is neither; ``what`` and ``key`` say in it what the setting ``key`` should hold.
    """
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if base is None:
        needs(key, f"the local path of {what} in diffusers layout", random)
        return RandomWeights(shapes)
    check_config(base, settings)
    return SafetensorsFolder(base, shapes)


def needs(key: str, what: str, random: bool) -> None:
    """Raises ``ValueError`` about the setting ``key``, which is not set, unless first values may be ``random``."""
    if not random:
        raise ValueError(
            f"{key} is not set, expected {what}; allow_random_init: true trains on random weights, for "
            "tests and benchmarks"
        )


def check_config(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Compare a folder's ``config.json`` with ``settings``: head counts and the like change no shape. Raises
    ``ValueError`` naming the file and the first setting that differs."""
    path = Path(folder) / CONFIG_FILE
    found = read_json(path)
    for name, expected in settings.items():
        value = found.get(name)
        if name not in found or (tuple(value) if isinstance(value, list) else value) != expected:
            raise ValueError(f"{path}: {name} is {value!r}, the recipe's backbone expects {expected!r}")


@torch.no_grad()
def materialise(
    module: nn.Module,
    source: WeightSource,
    base_name: Callable[[str], str | None],
    device: torch.device | str,
    dtype: Callable[[str], torch.dtype] | None = None,
) -> None:
    """Fill the parameters of ``module`` from ``source``: ``base_name`` maps a parameter's name to the source's (None:
    not from there), ``dtype`` the source's name to the dtype to keep it in (None: that which the parameter has).
    ``requires_grad`` stays as it is."""
    for name, parameter in list(module.named_parameters()):
        stored = base_name(name)
        if stored is None:
            continue
        # What a file maps is copied, for the mapping must not be written to nor kept.
        value = source.read(stored).to(device=device, dtype=dtype(stored) if dtype else parameter.dtype, copy=True)
        owner = module.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], nn.Parameter(value, requires_grad=parameter.requires_grad))


@contextmanager
def keyed_init(name: str, device: torch.device | str = "cpu") -> Iterator[None]:
    """Modules made inside start at values that depend on ``name`` alone, on every rank and in every stage; the random
    state outside is left as it was. Tensors are made on ``device``."""
    device = torch.device(device)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(device)
        torch.manual_seed(_seed(name))
        yield


def read_json(path: Path) -> dict:
    """Raises ``ValueError`` naming the file where it is not JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error


@contextmanager
def _open(path: Path) -> Iterator:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); was it cut short?") from error


def _list_files(folder: Path) -> list[str]:
    """Names of the weights' files: of an index before others, plain ones before those in 16 bits."""
    found = sorted(path.name for path in folder.glob("*.safetensors*"))
    plain = [name for name in found if not any(mark in name for mark in VARIANTS)]
    for names in (
        plain,
        [name for name in found if VARIANTS[0] in name],
        [name for name in found if VARIANTS[1] in name],
    ):
        indices = [name for name in names if name.endswith(".json")]
        if indices:
            return sorted(set(read_json(folder / indices[0])["weight_map"].values()))
        if names:
            return names
    return []


def _shapes(file: Any) -> dict[str, tuple[int, ...]]:
    names = list(file.keys())
    return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def _match(path: Path, shapes: Shapes, expected: Shapes, rename: Rename | None) -> dict[str, str]:
    """The model's name -> that in the file ``path``, which holds tensors of ``shapes``."""
    names = {name: rename(name) if rename else name for name in shapes}
    where = {ours: name for name, ours in names.items() if ours is not None}
    extra = sorted(name for ours, name in where.items() if ours not in expected)
    if extra:
        raise ValueError(f"{path}: {_some(extra)} not in the model that the config describes; is this another model?")
    for ours, name in where.items():
        if tuple(shapes[name]) != tuple(expected[ours]):
            raise ValueError(
                f"{path}: {name!r} has shape {list(shapes[name])}, the config expects {list(expected[ours])}"
            )
    return where


def _check_all(path: Path, where: Mapping[str, Any], expected: Shapes) -> None:
    missing = sorted(set(expected) - set(where))
    if missing:
        raise ValueError(
            f"{path}: {_some(missing)} of {len(expected)} weights missing; is this another model or an "
            "incomplete download?"
        )


def _map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save`` wrote."""
    try:
        # The layout before PyTorch 1.6, no zip, cannot be mapped.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: not readable as weights that torch.save wrote ({reason}); was it cut short?"
        ) from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a {type(found).__name__} found, expected tensors by name")
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{len(names)} names ({shown}{', ...' if len(names) > 3 else ''})"


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
