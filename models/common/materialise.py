"""The frozen base of a network: where its weights come from, and how they get into place.

A base is built on the meta device (``meta_model``). ``load_base`` then fills it unit by unit from a folder of
safetensors, a file of another project, or random numbers that depend on a tensor's name, so that a rank never holds
more than it keeps, plus one tensor.
"""

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
from torch import Tensor, nn

from stagecoach.data.files import sha256_file, sha256_json
from stagecoach.data.reading import below, read_regular
from stagecoach.data.tensors import open_tensors

Shapes = Mapping[str, tuple[int, ...]]
Rename = Callable[[str], str | None]
"""From a name in a file to that in the model, None for what the model has no use for."""

OnLoaded = Callable[[nn.Module], None]
"""Called with each frozen unit when its weights are in place; ``frozen: shard`` partitions the unit there and then."""

CONFIG_FILE = "config.json"
VARIANTS = (".fp16.", ".bf16.", ".non_ema.")
"""Marks of files that hold the same weights again; those in 16 bits are read where the plain ones are missing."""


class WeightSource(ABC):
    """Named tensors. ``expected``: their names and shapes; ``where``: a few words for a message."""

    expected: Shapes
    where: str

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
        self.folder, self.expected, self.where = Path(folder), expected, f"from {folder}"
        self.files = [self.folder / name for name in _list_files(self.folder)]
        if not self.files:
            raise ValueError(
                f"{self.folder}: no .safetensors file found, expected the weights of a model that diffusers saved"
            )
        self._where: dict[str, tuple[Path, str]] = {}
        for path in self.files:
            with open_tensors(path) as file:
                shapes = _shapes(file)
            self._where |= {ours: (path, name) for ours, name in _match(path, shapes, expected, rename).items()}
        _check_all(self.folder, self._where, expected)

    def read(self, name: str) -> Tensor:
        path, stored = self._where[name]
        with open_tensors(path) as file:
            return file.get_tensor(stored)

    def digest(self) -> str:
        return sha256_json({path.name: sha256_file(path) for path in self.files})


class WeightFile(WeightSource):
    """One file: ``.safetensors``, or what ``torch.save`` wrote, by itself or under ``state_dict``, as other projects
    publish their weights. It is mapped and not read at once. Raises ``ValueError`` as ``SafetensorsFolder`` does."""

    def __init__(self, path: str | Path, expected: Shapes, rename: Rename | None = None) -> None:
        self.path, self.expected, self.where = Path(path), expected, f"from {path}"
        self._tensors: dict[str, Tensor] | None = None
        if self.path.suffix != ".safetensors":
            self._tensors = _map_tensors(self.path)
        self._where = _match(self.path, self.shapes(), expected, rename)
        _check_all(self.path, self._where, expected)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All that the file holds, under its own names."""
        if self._tensors is not None:
            return {name: tuple(value.shape) for name, value in self._tensors.items()}
        with open_tensors(self.path) as file:
            return _shapes(file)

    def read(self, name: str) -> Tensor:
        stored = self._where[name]
        if self._tensors is not None:
            return self._tensors[stored]
        with open_tensors(self.path) as file:
            return file.get_tensor(stored)

    def digest(self) -> str:
        return sha256_file(self.path)


class RandomWeights(WeightSource):
    """Weights drawn by tensor name: the same on every rank and whichever are read. Gains are 1, biases 0, tables and
    embeddings normal with std 1 / sqrt(width), other weights uniform within 1 / sqrt(fan in), PyTorch's default."""

    where = "drawn at random"

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


class Parts(WeightSource):
    """Several sources as one: tensor ``name`` of part ``p`` is ``p/name``. A source may serve two parts."""

    def __init__(self, parts: Mapping[str, WeightSource]) -> None:
        self.parts = dict(parts)
        self.expected = {f"{part}/{n}": shape for part, source in parts.items() for n, shape in source.expected.items()}
        self.where = ", ".join(f"{part} {source.where}" for part, source in parts.items())

    def read(self, name: str) -> Tensor:
        part, _, inner = name.partition("/")
        return self.parts[part].read(inner)

    def digest(self) -> str:
        digests = {id(source): source.digest() for source in {id(s): s for s in self.parts.values()}.values()}
        return sha256_json({part: digests[id(source)] for part, source in self.parts.items()})


def open_folder(
    base: str | None, kind: type[nn.Module], settings: Mapping[str, Any], random: bool, what: str, key: str = "base"
) -> WeightSource:
    """The weights of ``kind(**settings)``, checked by name and shape: the folder ``base`` in diffusers layout, whose
    ``config.json`` must agree with ``settings``, or with ``random`` and no base numbers drawn by name. Raises
    ``ValueError`` where there is neither; ``what`` and ``key`` say in it what the setting ``key`` should hold."""
    shapes = {name: tuple(value.shape) for name, value in meta_model(kind, settings).state_dict().items()}
    if base is None:
        needs(key, f"the local path of {what} in diffusers layout", random)
        return RandomWeights(shapes)
    check_config(base, settings)
    return SafetensorsFolder(base, shapes)


def needs(key: str, what: str, random: bool) -> None:
    """Raises ``ValueError`` about the setting ``key``, which is not set, unless initial values may be ``random``."""
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


def meta_model(kind: type[nn.Module], settings: Mapping[str, Any], dtype: torch.dtype | None = None) -> nn.Module:
    """``kind(**settings)``, a model of diffusers, frozen, on the meta device, where it costs nothing and lends its
    parts; in ``dtype``, but for what diffusers keeps in fp32."""
    with torch.device("meta"):
        model = kind(**settings)
    model = model.to("meta").requires_grad_(False)  # some modules make tensors on the CPU in any case
    kept = set(getattr(kind, "_keep_in_fp32_modules", None) or ())
    for name, value in model.state_dict(keep_vars=True).items() if dtype else ():
        if value.is_floating_point() and not kept & set(name.split(".")):
            value.data = value.data.to(dtype)
    return model


@torch.no_grad()
def load_base(
    network: nn.Module,
    source: WeightSource,
    base_name: Callable[[str], str | None],
    device: torch.device | str,
    on_loaded: OnLoaded | None = None,
    split: Callable[[nn.Module], bool] = lambda module: False,
) -> str:
    """Fill all of ``network`` that is on the meta device, parameters and persistent buffers, and return the sha256 that
    stands for ``source``.

    Args:
        base_name: from a name in the network to that in ``source``, None where it has none.
        on_loaded: called with each frozen unit as soon as it is filled.
        split: whether a module is too large for a unit.

    Tensors keep their dtype and ``requires_grad``. Raises ``ValueError`` naming a tensor that stays on the meta device.
    """
    for prefix, unit, whole in units(network, split):
        arriving = whole and any(p.is_meta for p in unit.parameters())
        for name, tensor in [*unit.named_parameters(recurse=whole), *unit.named_buffers(recurse=whole)]:
            stored = base_name(f"{prefix}{name}") if tensor.is_meta else None
            if stored is not None and stored in source.expected:
                put(unit, name, source.read(stored), device)
        if on_loaded is not None and arriving and not any(p.requires_grad for p in unit.parameters()):
            on_loaded(unit)
    left = [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]
    if left:
        raise ValueError(
            f"{_some(left)} of {type(network).__name__} still on the meta device once the base is loaded "
            f"({source.where}), expected among its weights; a tensor that a module computes for itself must be made on "
            "the network's device when that is built"
        )
    return source.digest()


def units(
    module: nn.Module, split: Callable[[nn.Module], bool], prefix: str = ""
) -> Iterator[tuple[str, nn.Module, bool]]:
    """The largest sub-modules, lists aside, whose parameters are alike: all train or none, all on the meta device or
    none. Gives the prefix of its names, the module, and True; False for a module that is split, for what it holds
    itself."""
    kinds = {(p.requires_grad, p.is_meta) for p in module.parameters()}
    whole = bool(prefix) and len(kinds) < 2 and not isinstance(module, nn.ModuleList) and not split(module)
    yield prefix, module, whole
    if not whole:
        for name, child in module.named_children():
            yield from units(child, split, f"{prefix}{name}.")


def without_lora(name: str) -> str:
    """The name of a layer's own tensor before ``peft`` wrapped the layer."""
    return name.replace(".base_layer.", ".")


def put(module: nn.Module, name: str, value: Tensor, device: torch.device | str) -> None:
    """Put ``value`` on ``device`` where ``module`` has the parameter or buffer ``name``, in its dtype."""
    path, _, own = name.rpartition(".")
    owner = module.get_submodule(path)
    old = getattr(owner, own)
    # What a file maps is copied, for the mapping must not be written to nor kept.
    value = value.to(device=device, dtype=old.dtype, copy=True)
    setattr(owner, own, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)


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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of another project. Raises ``ValueError`` naming the file where it is none."""
    try:
        found = json.loads(read_regular(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({str(error).removeprefix(f'{path}: ')})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}, expected a JSON object")
    return found


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
            listed = read_json(folder / indices[0]).get("weight_map")
            if not isinstance(listed, dict) or not listed or not all(isinstance(n, str) for n in listed.values()):
                raise ValueError(f"{folder / indices[0]}: holds no weight_map from tensors to files, expected one")
            for name in set(listed.values()):
                below(folder, name)  # a link may lead out of it: hub caches are made of them
            return sorted(set(listed.values()))
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
