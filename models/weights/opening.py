"""Opening trained weights: what they are, whether they are whole, and where each tensor stands."""

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from stagecoach.data.files import DamagedError, check_directory
from stagecoach.data.reading import read_json
from stagecoach.data.tensors import hash_tensors, open_tensors
from stagecoach.data.weight_files import AVERAGE, CARD, ENDING, EXPORTED, STATE, WEIGHTS
from stagecoach.models import get_family
from stagecoach.models.family import Family
from stagecoach.models.trainable import trained_before
from stagecoach.models.weights.card import AdapterCard, adapter_files, from_metadata, read_card
from stagecoach.models.weights.stored import open_published, open_stored

Kind = Literal["adapter", "file", "checkpoint", "published", "base"]
Which = Literal["raw", "ema"]
Shapes = Mapping[str, tuple[int, ...]]
STORED = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


@dataclass(frozen=True)
class Weights:
    """Trained weights that are whole: of the names and shapes that their own config's network has. No tensor is held.
    ``files``: where each tensor stands, by the network's names."""

    kind: Kind
    source: Path | None
    card: AdapterCard
    files: Mapping[str, Path]
    dtypes: tuple[str, ...] = ()
    """In which the tensors are stored: ``fp32``, ``bf16``, ``fp16``."""

    @property
    def family(self) -> Family:
        return get_family(self.card.family)

    @property
    def size(self) -> str:
        return self.card.size

    @property
    def stage(self) -> int:
        return self.card.stage

    @property
    def sha256(self) -> str:
        """Of the tensors in fp32: the same for an adapter, its fp32 file and the checkpoint at its step."""
        return self.card.sha256

    @property
    def config(self) -> Any:
        """The family's typed config."""
        return _typed_config(self.card, self.source)

    def config_with(self, base: str | Path | Mapping[str, str | Path] | None) -> Any:
        """The config with other paths: of the setting ``base``, or by dotted names."""
        if base is None:
            return self.config
        paths = base if isinstance(base, Mapping) else {"base": base}
        values = self.config.model_dump()
        for name, path in paths.items():
            *above, last = name.split(".")
            here = values
            for part in above:
                here = here.setdefault(part, {})
            here[last] = str(path)
        try:
            return self.family.config_type.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(
                f"{'.'.join(map(str, first['loc']))}: {first['msg']} in the config of {self.card.family}, expected "
                "the settings that name its base weights"
            ) from error

    def tensors(self, names: Container[str] | None = None) -> dict[str, Tensor]:
        """All of them, or those of ``names``, on the CPU, in fp32."""
        return _read({name: file for name, file in self.files.items() if names is None or name in names})

    def check_base(self, found: str) -> None:
        """Raise ``ValueError`` unless ``found`` is the hash of the base that the weights were trained on, which of
        published ones is not known."""
        if self.kind not in ("base", "published") and found != self.card.base:
            raise ValueError(
                f"{self.source}: {self.kind} of base weights {self.card.base[:12]}, expected {found[:12]}, those that "
                "the config or the call names now (sha256); give the folder of the base that it was trained on"
            )

    def describe(self) -> str:
        """A few words for a log."""
        card = self.card
        what = f"{card.family} {card.size} stage {card.stage}"
        if self.source is None:
            return f"base of {what}"
        average = ", average" if self.kind == "checkpoint" and card.export_weights == "ema" else ""
        stored = f", stored in {' and '.join(self.dtypes)}" if self.dtypes != ("fp32",) else ""
        return f"{self.kind} {self.source} of {what} at step {card.steps}{average}{stored}"


def open_weights(
    source: str | Path | None,
    which: Which = "raw",
    *,
    family: str | None = None,
    size: str | None = None,
    stages: Iterable[int] | None = None,
    config: BaseModel | None = None,
    predecessor: str | Path | None = None,
    purpose: str = "",
) -> Weights:
    """Open trained weights and check that they are whole.

    Args:
        source: folder of an adapter, file or folder for a hub that ``export.py`` wrote, folder of a checkpoint (or the
            ``model.safetensors`` or ``ema.safetensors`` in it), a file that the method's authors published, or None: no
            training, the base of ``family`` and ``size`` (in the last stage, or that of ``stages``; at ``config`` where
            that is given).
        which: of a checkpoint, the weights themselves or their moving average.
        family, size, stages: what the weights must be of.
        predecessor: the adapter that a checkpoint's stage started from, which holds what earlier stages trained. None
            looks for it by its hash in the checkpoint's run.
        purpose: ends the sentence of an error on family, size or stage.

    Raises:
        DamagedError: something is not as it was written.
        ValueError: it is none of these, of another family, size or stage, or tensors are missing, left over or of
            another shape, by name.
    """
    wanted = _Wanted(family, size, tuple(stages) if stages is not None else None, purpose)
    if source is None:
        return _base(wanted, config)
    path = Path(source)
    if path.name in (WEIGHTS, AVERAGE) and (path.parent / STATE).is_file():
        path, which = path.parent, "ema" if path.name == AVERAGE else "raw"
    if (path / STATE).is_file():
        return _checkpoint(path, which, wanted, None if predecessor is None else Path(predecessor))
    if (path / EXPORTED).is_file() and not (path / CARD).exists():
        path = path / EXPORTED
    if predecessor is not None:
        raise ValueError(f"{path}: no checkpoint, and a predecessor ({predecessor}) is of one only; leave it out")
    if path.is_file():
        return _file(path, which, wanted)
    return _adapter(path, which, wanted)


@dataclass(frozen=True)
class _Wanted:
    family: str | None
    size: str | None
    stages: tuple[int, ...] | None
    purpose: str

    def check(self, kind: str, source: Path, card: AdapterCard) -> None:
        for what, found, expected in (
            ("family", card.family, None if self.family is None else [self.family]),
            ("size", card.size, None if self.size is None else [self.size]),
            ("stage", card.stage, self.stages),
        ):
            if expected is not None and found not in expected:
                raise ValueError(
                    f"{source}: {kind} of {what} {found}, expected {' or '.join(map(str, expected))}{self.purpose}"
                )


def _base(wanted: _Wanted, config: BaseModel | None) -> Weights:
    if wanted.family is None or wanted.size is None:
        raise ValueError("no weights are named, expected family and size of the base, or an adapter")
    family = get_family(wanted.family)
    if config is None and wanted.size not in family.sizes:
        raise ValueError(f"size {wanted.size!r} is unknown to family {family.name!r}, expected {sorted(family.sizes)}")
    config = config or family.sizes[wanted.size]
    specs = family.stages(config)
    spec = next((spec for spec in specs if spec.index in (wanted.stages or (specs[-1].index,))), None)
    if spec is None:
        raise ValueError(f"family {family.name!r} has no stage {wanted.stages}, expected {[s.index for s in specs]}")
    values = config.model_dump(mode="json")
    card = AdapterCard(wanted.family, wanted.size, spec.index, spec.name, 0, "", "", None, "raw", values)
    return Weights("base", None, card, {})


def _adapter(path: Path, which: Which, wanted: _Wanted) -> Weights:
    if not path.exists():
        raise ValueError(f"{path}: there is nothing, expected an adapter, a file that export.py wrote or a checkpoint")
    below = sorted(str(found.parent) for found in path.glob(f"stage*/*/{CARD}")) if path.is_dir() else []
    if below and not (path / CARD).exists():
        raise ValueError(f"{path}: no adapter and no checkpoint, expected a folder with {CARD}, such as {below[-1]}")
    card = read_card(path)
    wanted.check("adapter", path, card)
    _check_which(path, which, card)
    return _whole("adapter", path, card, {name: file for file in adapter_files(path) for name in _header(file)})


def _file(path: Path, which: Which, wanted: _Wanted) -> Weights:
    if path.suffix != ENDING:
        return _published(path, which, wanted)
    with open_tensors(path) as handle:
        card = from_metadata(path, handle.metadata() or {})
    wanted.check("file", path, card)
    _check_which(path, which, card)
    found = _whole("file", path, card, dict.fromkeys(_header(path), path))
    if found.sha256 != card.sha256:
        raise DamagedError(f"{path}: its tensors differ from the sha256 in its metadata; export it again")
    return found


def _published(path: Path, which: Which, wanted: _Wanted) -> Weights:
    family, file = open_published(path)
    spec = next(spec for spec in family.stages(file.config) if spec.index == file.stage)
    values = file.config.model_dump(mode="json")
    card = AdapterCard(family.name, file.size, spec.index, spec.name, 0, "", "", None, "raw", values)
    wanted.check("published file", path, card)
    _check_which(path, which, card)
    return _whole("published", path, card, dict.fromkeys(file.keys(), path))


def _checkpoint(path: Path, which: Which, wanted: _Wanted, predecessor: Path | None) -> Weights:
    file = path / (AVERAGE if which == "ema" else WEIGHTS)
    check_directory(path, hashes=(file.name, CARD))
    if not (path / CARD).is_file():
        raise ValueError(
            f"{path}: holds no {CARD}, so an earlier version wrote it; go on from it with --resume, which writes others"
        )
    if not file.is_file():
        raise ValueError(
            f"{path}: holds no {AVERAGE}, since its recipe keeps no average, expected one; take the weights themselves"
        )
    card = replace(read_json(path / CARD, AdapterCard), export_weights=which)
    wanted.check("checkpoint", path, card)
    files = dict.fromkeys(_header(file), file)
    lacking = set(_expected(card, path)) - set(files)
    if lacking:
        before = _find_predecessor(path, card, predecessor, lacking)
        files |= {name: before.files[name] for name in sorted(lacking & set(before.files))}
    return _whole("checkpoint", path, card, files)


def _find_predecessor(path: Path, card: AdapterCard, given: Path | None, lacking: set[str]) -> Weights:
    """The weights that the stage of a checkpoint started from."""
    what = f"{path}: {_some(lacking)} that earlier stages trained stand in the adapter that its stage started from"
    if card.predecessor is None:
        raise ValueError(
            f"{path}: {_some(lacking)} that earlier stages train are in no file, since its stage started from the "
            "base; train it to its end and take its adapter"
        )
    reasons = []
    for place in [given] if given is not None else _places(path, card):
        try:
            if (place / CARD).is_file() and not (place / STATE).exists():  # a look before all of it is read
                sha256 = read_json(place / CARD, AdapterCard).sha256
                if sha256 != card.predecessor:
                    raise ValueError(f"{place} is another ({sha256[:12]})")
            found = open_weights(place, family=card.family, size=card.size)
            if found.sha256 == card.predecessor:
                return found
            reasons.append(f"{place} is another ({found.sha256[:12]})")
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(
        f"{what}, sha256 {card.predecessor[:12]}, which was not found ({'; '.join(reasons) or 'nothing lies there'}); "
        "name it (predecessor= of from_adapter), or export the checkpoint with launch/export.py --predecessor ADAPTER "
        "and give that file"
    )


def _places(path: Path, card: AdapterCard) -> list[Path]:
    """Where the predecessor of a checkpoint may lie: where it was, in the run, among what was moved aside there."""
    found = [Path(text)] if (text := card.started_from.get("adapter")) else []
    for run in path.resolve().parents[2:5]:
        for stage in (card.stage - 1, card.stage):
            found += [run / f"stage{stage}" / "adapter", *sorted(run.glob(f"earlier/*/stage{stage}/adapter"))]
    return [place for place in dict.fromkeys(found) if place.exists()]


def _check_which(path: Path, which: Which, card: AdapterCard) -> None:
    if which == "ema" and card.export_weights != "ema":
        raise ValueError(
            f"{path}: holds {card.export_weights} weights, expected the average; name a checkpoint that has one, or "
            "train with export_weights: ema"
        )


def _whole(kind: Kind, source: Path, card: AdapterCard, files: dict[str, Path]) -> Weights:
    """Weights whose names and shapes are those of the network that their config describes."""
    headers = {file: _header(file) for file in dict.fromkeys(files.values())}
    found = {name: headers[file][name] for name, file in files.items()}
    compare(source, {name: shape for name, (shape, _) in found.items()}, _expected(card, source))
    if kind != "adapter":  # whose hash has been compared
        count = sum(math.prod(shape) for shape, _ in found.values())
        card = replace(card, sha256=hash_tensors(_read(files)), parameters=count)
    return Weights(kind, source, card, files, tuple(sorted({dtype for _, dtype in found.values()})))


def _expected(card: AdapterCard, source: Path) -> dict[str, tuple[int, ...]]:
    """What training has changed by the end of the card's stage."""
    config = _typed_config(card, source)
    family = get_family(card.family)
    specs = family.stages(config)
    if card.stage not in [spec.index for spec in specs]:
        raise ValueError(
            f"{source}: of stage {card.stage}, expected one that family {card.family!r} has, "
            f"{[spec.index for spec in specs]}"
        )
    network = family.build(config, card.stage, "meta", torch.float32)
    parameters = dict(network.named_parameters())
    names = trained_before(network, specs, card.stage + 1)
    return {name: tuple(parameters[name].shape) for name in sorted(names)}


def _typed_config(card: AdapterCard, source: Path | None) -> Any:
    try:
        return get_family(card.family).config_type.model_validate(card.config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(
            f"{source}: its config is none of family {card.family!r} ({'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}); was it written by another version?"
        ) from error


def compare(source: object, found: Shapes, expected: Shapes) -> None:
    """Raise ``ValueError`` naming ``source`` and the tensors that are missing, left over or of another shape."""
    wrong = sorted(name for name in found.keys() & expected.keys() if tuple(found[name]) != tuple(expected[name]))
    missing, left = expected.keys() - found.keys(), found.keys() - expected.keys()
    problems = [f"missing {_some(missing)}"] if missing else []
    problems += [f"left over {_some(left)}"] if left else []
    if wrong:
        problems.append(
            f"{len(wrong)} of another shape, first {wrong[0]} {list(found[wrong[0]])} where the network has "
            f"{list(expected[wrong[0]])}"
        )
    if problems:
        raise ValueError(
            f"{source}: {'; '.join(problems)}; expected the {len(expected)} tensors that training so far has changed; "
            "is it of another size or stage?"
        )


def _header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tensor of a file."""
    with open_stored(file) as handle:
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  # no mapping
        return {
            name: (tuple(one.get_shape()), STORED.get(one.get_dtype(), one.get_dtype())) for name, one in slices.items()
        }


def _read(files: Mapping[str, Path]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in dict.fromkeys(files.values()):
        with open_stored(file) as handle:
            found |= {name: handle.get_tensor(name).float() for name, place in files.items() if place == file}
    return found


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return f"{len(listed)} ({', '.join(listed[:3])}{', ...' if len(listed) > 3 else ''})"
