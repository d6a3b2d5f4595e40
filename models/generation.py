"""The seam between the commands that sample and the families: what a request is, and who answers it.

A family has one ``Generation`` (``models/<family>/generate.py``), which ``Family.generation`` opens: from the weights
alone, so that requests are checked before anything large is read; ``load`` brings the rest.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import Field, ValidationError

from stagecoach.data.encoding.encoders import hash_files
from stagecoach.data.paths import expand_path
from stagecoach.models.common.config import Section
from stagecoach.models.common.quantize import Kind
from stagecoach.models.weights import Weights

Fields = TypeVar("Fields", bound="RequestFields")
CPU = torch.device("cpu")
ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")


@dataclass(frozen=True)
class GenerationOptions:
    """How requests are answered, but for what each says itself.

    ``base`` as ``load_network`` takes it; ``components``: local folders (or files) of the parts around the network, by
    the names in ``Generation.components``; those that are not given are looked for by name in the folder ``parts``, a
    tokenizer also next to its text encoder. ``steps`` and ``guidance`` None are the family's; a request's own come
    first, as its ``seed`` does. ``offload`` has on the device only the part that computes; ``quantize`` keeps the
    base's linear layers in 8 bits. ``on_step`` is called after each step of denoising; what it raises ends the request.
    """

    base: str | Path | Mapping[str, str | Path] | None = None
    components: Mapping[str, Path] = field(default_factory=dict)
    parts: Path | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    offload: bool = False
    vae_tiling: bool = False
    quantize: Kind | None = None
    on_step: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Source:
    """Where the entry of a request stands: ``where`` in words (file and line), the ``folder`` that its paths are
    relative to, and the ``name`` of one that has no ``id``."""

    where: str
    folder: Path = Path()
    name: str = "request"


class RequestFields(Section):
    """What an entry of any family may say."""

    id: str | int | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0)


@dataclass(frozen=True)
class Request:
    """One request, checked. ``id`` names its folder and, with ``seed``, its noise; ``entry`` is what was written,
    ``files`` those whose content it depends on. A family adds fields of its own."""

    id: str
    seed: int
    steps: int
    guidance: float
    entry: Mapping[str, Any]
    files: tuple[Path, ...]

    def identity(self) -> dict[str, Any]:
        """All that the answer depends on but weights and options, as JSON; files by their content."""
        return {
            "id": self.id,
            "seed": self.seed,
            "steps": self.steps,
            "guidance": self.guidance,
            "entry": dict(self.entry),
            "files": [hash_content(path) for path in self.files],
        }


class Generation(ABC):
    """A family that answers requests with ``weights``, under ``options``.

    Raises ``ValueError`` for components that the family does not know.
    """

    components: ClassVar[tuple[str, ...]] = ()
    """Names of the parts around the network that may be given."""
    fields: ClassVar[type[RequestFields]] = RequestFields
    """What an entry may say; ``read`` checks it."""
    shown: tuple[str, ...]
    """Files of an answer that stand for it on a page, the main one first: .mp4 or .png."""
    steps: int
    guidance: float
    """Where neither a request nor the options have others."""

    def __init__(self, weights: Weights, options: GenerationOptions) -> None:
        unknown = sorted(set(options.components) - set(self.components))
        if unknown:
            raise ValueError(
                f"component {unknown[0]!r} is none of family {weights.card.family!r}, expected some of "
                f"{', '.join(self.components)}"
            )
        self.weights, self.options = weights, replace(options, components=self._find(options))
        self.config: Any = weights.config_with(options.base)

    def _find(self, options: GenerationOptions) -> dict[str, Path]:
        """The components that are given or found."""
        found = dict(options.components)
        for name in self.components:
            encoder = options.components.get(name.replace("tokenizer", "text_encoder"))
            for folder in (None if encoder is None else encoder.parent, options.parts):
                if name not in found and folder is not None and (folder / name).exists():
                    found[name] = folder / name
        return found

    @abstractmethod
    def parse(self, entry: Mapping[str, Any], source: Source) -> Request:
        """The request of a JSON object. Raises ``ValueError`` naming ``source.where``."""

    @abstractmethod
    def load(self) -> None:
        """Read base and components and put them where they compute; once, before the first ``answer``. Raises
        ``ValueError``."""

    @abstractmethod
    def answer(self, request: Any, folder: Path) -> dict[str, Any]:
        """Sample a request of ``parse``, write its files into ``folder``, which is there and empty, and return facts
        about them as JSON. Raises ``ValueError`` for what shows only now to be wrong with the request."""

    def identity(self) -> dict[str, Any]:
        """All of weights and options that answers depend on, as JSON. Reads all component files, and the base's where
        nothing was trained on it."""
        base = self.weights.card.base or self.weights.family.open_base(self.config).digest()
        return {
            "family": self.weights.card.family,
            "size": self.weights.size,
            "stage": self.weights.stage,
            "config": self.weights.card.config if self.weights.kind == "base" else {},
            "weights": self.weights.sha256,
            "base": base,
            "components": {name: hash_content(path) for name, path in sorted(self.options.components.items())},
            "dtype": str(self.options.dtype).removeprefix("torch."),
            "vae_tiling": self.options.vae_tiling,
            "quantize": self.options.quantize,
        }

    def require(self, *names: str) -> None:
        """Raise ``ValueError`` for a component of ``names`` that is not given."""
        for name in names:
            if name not in self.options.components:
                raise ValueError(
                    f"no {name} is given, expected its folder: --component {name}=DIR, or --components DIR"
                )

    def read(self, entry: Mapping[str, Any], source: Source) -> Any:
        """The entry as ``fields``. Raises ``ValueError`` naming ``source.where`` and the field."""
        try:
            return self.fields.model_validate(dict(entry))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name, known = ".".join(map(str, first["loc"])), ", ".join(self.fields.model_fields)
            expected = f", expected some of {known}" if first["type"] == "extra_forbidden" else ""
            found = "" if first["type"] == "missing" else f", found {first['input']!r:.80}"
            raise ValueError(f"{source.where}: {name}: {first['msg']}{found}{expected}") from error

    def common(self, given: RequestFields, entry: Mapping[str, Any], source: Source) -> dict[str, Any]:
        """The fields of ``Request`` but ``files``. Raises ``ValueError`` for an id that names no folder."""
        name = source.name if given.id is None else str(given.id)
        if not ID.fullmatch(name):
            raise ValueError(
                f"{source.where}: id is {name!r:.120}, expected up to 100 letters, digits and . _ -, the first "
                "a letter or digit, as it names the folder"
            )
        own = self.options
        return {
            "id": name,
            "seed": own.seed if given.seed is None else given.seed,
            "steps": given.steps or own.steps or self.steps,
            "guidance": next(g for g in (given.guidance, own.guidance, self.guidance) if g is not None),
            "entry": dict(entry),
        }


def find_file(text: str, name: str, source: Source) -> Path:
    """The file (or folder) that the field ``name`` of an entry says. Raises ``ValueError`` where it is not there."""
    path = source.folder / expand_path(text)
    if not path.exists():
        raise ValueError(f"{source.where}: {name}: {path} is not there, expected a file that this host sees")
    return path


def hash_content(path: Path) -> str:
    """sha256 of a file, or of the names and hashes of the files in a folder."""
    return hash_files([path] if path.is_file() else sorted(path.iterdir()))


def to_device(pipeline: Any, options: GenerationOptions) -> Any:
    """The pipeline where it computes, without bars of its own."""
    pipeline.set_progress_bar_config(disable=True)
    if options.offload:
        pipeline.enable_model_cpu_offload(device=options.device)
        return pipeline
    return pipeline.to(options.device)
