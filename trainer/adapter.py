"""The adapter that a stage ends with and the next one starts from.

Cumulative: every tensor that this or an earlier stage has trained, and nothing else, under the network's names,
in fp32.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stagecoach import __version__
from stagecoach.data.files import (
    DamagedError,
    check_directory,
    commit_directory,
    seal_directory,
    temporary_name,
    write_json,
)
from stagecoach.data.reading import Count, read_json
from stagecoach.data.tensors import hash_tensors, open_tensors, read_all, save_tensors
from stagecoach.models.family import StageSpec
from stagecoach.trainer.freeze import trainable_names
from stagecoach.trainer.redact import redact_values

CARD = "adapter.json"
ENDING = ".safetensors"


@dataclass(frozen=True)
class AdapterCard:
    """What ``adapter.json`` says. Hashes are sha256, ``sha256`` that of the tensors' names, dtypes, shapes and bytes;
    ``predecessor`` is that of the adapter the stage started from."""

    family: str
    size: str
    stage: Count
    stage_name: str
    steps: Count
    recipe: str
    base: str
    predecessor: str | None
    export_weights: str
    config: dict[str, Any]
    """The family's typed config in this stage, so that the network can be built again without the recipe."""
    started_from: dict[str, Any] = field(default_factory=dict)
    """The adapter that the stage started from (``adapter``, ``stage``, ``sha256``), and whether that was a warm start,
    from one of this same stage (``warm_start``)."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What of the recipe and the data decides the result, by dotted names."""
    sha256: str = ""
    parameters: Count = 0
    version: str = ""
    """Of Stagecoach, which wrote the adapter."""


def write_adapter(
    directory: Path,
    tensors: dict[str, torch.Tensor],
    card: AdapterCard,
    part: Callable[[str], str] = lambda name: "model",
) -> AdapterCard:
    """Write an adapter under a temporary name, seal it and give it its name; called by one rank. One that is there and
    says and holds the same is left as it is. ``part`` gives the file, without its ending, that a tensor goes to."""
    card = replace(
        card,
        sha256=hash_tensors(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        version=__version__,
        config=redact_values(card.config),
    )
    if _is_there(directory, card):
        return card
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(directory)
    temporary.mkdir()
    metadata = {"format": "pt", "family": card.family, "stage": str(card.stage)}
    for name in sorted({part(tensor) for tensor in tensors}):
        members = {tensor: value for tensor, value in tensors.items() if part(tensor) == name}
        save_tensors(members, temporary / f"{name}{ENDING}", metadata)
    write_json(temporary / CARD, asdict(card))
    seal_directory(temporary)
    commit_directory(temporary, directory)
    return card


def _is_there(directory: Path, card: AdapterCard) -> bool:
    try:
        return directory.exists() and read_card(directory) == card
    except DamagedError:
        return False


def read_card(directory: Path) -> AdapterCard:
    """The card of a finished, undamaged adapter. Raises ``DamagedError``."""
    check_directory(directory)
    card = read_json(directory / CARD, AdapterCard)
    if card.sha256 != hash_tensors(read_tensors(directory)):
        raise DamagedError(
            f"{directory}: the content of {', '.join(file.name for file in _files(directory))} differs "
            f"from the sha256 in {CARD}; something was replaced"
        )
    return card


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of an adapter, by the network's names, on the CPU. Raises ``DamagedError``."""
    return read_all(_files(directory))


def trained_before(network: nn.Module, specs: tuple[StageSpec, ...], stage: int) -> set[str]:
    """Names that the stages before ``stage`` train, which the adapter handed to it must hold, no more and no fewer."""
    names: set[str] = set()
    for spec in specs:
        if spec.index < stage:
            names.update(trainable_names(network, spec))
    return names


def check_predecessor(
    card: AdapterCard, directory: Path, *, family: str, size: str, stage: int, base: str, warm: bool = False
) -> None:
    """Raise ``ValueError`` where an adapter is not one that ``stage`` of this family, size and base may start from:
    that of the stage before, or for a ``warm`` start of the same stage."""
    for what, found, expected in (
        ("family", card.family, [family]),
        ("size", card.size, [size]),
        ("stage", card.stage, [index for index in (stage - 1, stage if warm else 0) if index]),
        ("base weights", card.base, [base]),
    ):
        if found not in expected:
            raise ValueError(
                f"{directory}: adapter of {what} {found}, expected {' or '.join(map(str, expected))} to start stage "
                f"{stage}; "
                "give the right one with --init"
            )


def load_tensors(source: Path, network: nn.Module, expected: set[str], compare_only: bool = False) -> None:
    """Copy the tensors of ``source``, an adapter's folder or one file, into ``network``. Its names must be ``expected``
    exactly, with the network's shapes. ``compare_only`` leaves the network as it is.

    Raises ``ValueError`` naming the source and the tensors that are missing, left over or of another shape.
    """
    parameters = dict(network.named_parameters())
    with ExitStack() as stack:
        where: dict[str, Any] = {}
        for file in _files(source) if source.is_dir() else [source]:
            handle = stack.enter_context(open_tensors(file))
            where |= dict.fromkeys(handle.keys(), handle)
        found = set(where)
        shapes = {name: tuple(where[name].get_slice(name).get_shape()) for name in found}
        problems = [
            f"missing {_some(expected - found)}" if expected - found else "",
            f"left over {_some(found - expected)}" if found - expected else "",
        ]
        wrong = {name for name in found & expected if shapes[name] != _shape(parameters[name])}
        if wrong:
            first = min(wrong)
            problems.append(
                f"{len(wrong)} of another shape, first {first} {list(shapes[first])} where the network "
                f"has {list(_shape(parameters[first]))}"
            )
        if any(problems):
            raise ValueError(
                f"{source}: {'; '.join(filter(None, problems))}; expected the {len(expected)} tensors "
                "that training so far has changed; is it of another size or stage?"
            )
        for name in () if compare_only else sorted(found):
            _assign(parameters[name], where[name].get_tensor(name))


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{ENDING}"))


@torch.no_grad()
def _assign(parameter: nn.Parameter, value: torch.Tensor) -> None:
    if hasattr(parameter, "ds_tensor"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
            if parameter.numel():
                parameter.copy_(value)
    else:
        parameter.copy_(value)


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _some(names: set[str]) -> str:
    first = ", ".join(sorted(names)[:3])
    return f"{len(names)} ({first}{', ...' if len(names) > 3 else ''})"
