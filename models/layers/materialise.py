"""Where frozen weights come from: a folder of safetensors, or numbers drawn by tensor name.

A backbone is built on the meta device. Its weights are then put in place unit by unit, so that a rank never holds more
than it keeps, plus one tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data.files import sha256_file, sha256_json

Shapes = Mapping[str, tuple[int, ...]]


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

    def __init__(self, folder: str | Path, expected: Shapes) -> None:
        self.folder = Path(folder)
        indices = sorted(self.folder.glob("*.safetensors.index.json"))
        if indices:
            files = sorted(set(read_json(indices[0])["weight_map"].values()))
        else:
            files = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{self.folder}: no .safetensors file found, expected the weights of a model that "
                             "diffusers saved")
        self.files = [self.folder / name for name in files]
        self._where: dict[str, Path] = {}
        for path in self.files:
            self._list(path, expected)
        missing = sorted(set(expected) - set(self._where))
        if missing:
            raise ValueError(f"{self.folder}: {_some(missing)} of {len(expected)} weights missing; is this another "
                             "model or an incomplete download?")

    def _list(self, path: Path, expected: Shapes) -> None:
        with _open(path) as file:
            names = list(file.keys())
            extra = sorted(set(names) - set(expected))
            if extra:
                raise ValueError(f"{path}: {_some(extra)} not in the model that the config describes; is this another "
                                 "model?")
            for name in names:
                shape = tuple(file.get_slice(name).get_shape())
                if shape != tuple(expected[name]):
                    raise ValueError(f"{path}: {name!r} has shape {list(shape)}, the config expects "
                                     f"{list(expected[name])}")
                self._where[name] = path

    def read(self, name: str) -> Tensor:
        with _open(self._where[name]) as file:
            return file.get_tensor(name)

    def digest(self) -> str:
        return sha256_json({path.name: sha256_file(path) for path in self.files})


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


@torch.no_grad()
def materialise(module: nn.Module, source: WeightSource, base_name: Callable[[str], str | None],
                device: torch.device | str, dtype: Callable[[str], torch.dtype]) -> None:
    """Fill the parameters of ``module`` from ``source``: ``base_name`` maps a parameter's name to the source's (None:
    not from there), ``dtype`` the source's name to the dtype to keep it in. ``requires_grad`` stays as it is."""
    for name, parameter in list(module.named_parameters()):
        stored = base_name(name)
        if stored is None:
            continue
        value = source.read(stored).to(device=device, dtype=dtype(stored))
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


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{len(names)} names ({shown}{', ...' if len(names) > 3 else ''})"


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
