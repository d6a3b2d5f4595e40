"""Options of a build: dataclasses, which the command line takes its arguments from."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class Argument:
    """What the command line says of a dataclass's field, as in ``frames: Annotated[int, Argument("of a clip")] = 81``.

    A field without a default is required, unless it may be None. ``flag``: where it is not the field's name. ``parse``
    makes the field's value of the argument's. ``default``: the argument's, where it is not the field's.
    """

    text: str
    flag: str | None = None
    metavar: str | None = None
    choices: Sequence[str] | None = None
    parse: Callable[[Any], Any] | None = None
    default: Any = None


def add_options(parser: ArgumentParser, kinds: Sequence[type]) -> None:
    """Add an argument for each field of the dataclasses that is annotated with an ``Argument``."""
    for kind in kinds:
        for name, (hint, argument, default) in _arguments(kind).items():
            _add_option(parser, name, hint, argument, default)


def read_options(arguments: Namespace, kind: type[T]) -> T:
    """The dataclass filled from parsed arguments. Its own checks raise ``ValueError``."""
    described, values = _arguments(kind), {}
    for entry in fields(kind):
        if hasattr(arguments, entry.name):
            value = getattr(arguments, entry.name)
            parse = described[entry.name][1].parse if entry.name in described else None
            value = parse(value) if parse else value
            values[entry.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _arguments(kind: type) -> dict[str, tuple[Any, Argument, Any]]:
    """Type without None, description and default of each annotated field."""
    defaults = {entry.name: entry.default for entry in fields(kind)}
    found = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if get_origin(hint) is Annotated:
            hint, argument = get_args(hint)
            default = defaults[name] if argument.default is None else argument.default
            if get_origin(hint) in (Union, UnionType):
                hint = next(part for part in get_args(hint) if part is not type(None))
                default = None if default is MISSING else default
            found[name] = hint, argument, default
    return found


def _add_option(parser: ArgumentParser, name: str, hint: Any, argument: Argument, default: Any) -> None:
    text, given = argument.text, dict[str, Any](dest=name)
    if hint is bool:
        given["action"] = "store_true"
    else:
        if get_origin(hint) is tuple:
            given |= {"nargs": "+", "metavar": argument.metavar, "choices": argument.choices}
        elif get_origin(hint) is Literal or argument.choices:
            given["choices"] = argument.choices or get_args(hint)
        else:
            given |= {"type": hint, "metavar": argument.metavar or ("DIR" if hint is Path else None)}
        if default is MISSING:
            given["required"] = True
        else:
            given["default"] = default
            text += "" if "default" in text or default in (None, ()) else f" (default: {default})"
    parser.add_argument(argument.flag or "--" + name.replace("_", "-"), help=text, **given)


@dataclass(frozen=True)
class BuildOptions:
    """Options of all families. Raises ``ValueError``."""

    holdout: Annotated[
        float, Argument("share of the items for the val split where the raw data does not say", metavar="SHARE")
    ] = 0.1
    skip_bad: Annotated[
        bool, Argument("leave bad items out and list them in skipped.jsonl (default: the first one stops)")
    ] = False
    replace: Annotated[
        bool,
        Argument(
            "build again where SHARDS holds finished shards, which stay until the new ones are whole, or where a build "
            "with other settings was begun"
        ),
    ] = False
    max_shard_bytes: Annotated[int, Argument("size of a tar (default: 1 GB)", metavar="N")] = 10**9
    part_items: Annotated[
        int | None,
        Argument("items that are made at once, or again after a kill (default: about a full tar)", metavar="N"),
    ] = None
    workers: Annotated[
        int,
        Argument(
            "processes to start on this machine, each with a GPU in turn (default: 1); one started by torchrun, "
            "deepspeed, srun or as a Slurm array takes its share",
            metavar="N",
        ),
    ] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout {self.holdout} found, expected a share of the items from 0 to below 1")
        for name in ("max_shard_bytes", "part_items", "workers"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name.replace('_', ' ')} {number} found, expected at least 1")
