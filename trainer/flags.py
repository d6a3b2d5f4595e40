"""Flags of a command: what typer makes of a function's parameters and of dataclasses among them."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer

from stagecoach.data.building.options import Argument

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


def expand(function: Callable[..., T], types: dict[str, Any]) -> Callable[..., T]:
    """``function`` as typer takes it: a parameter whose type is a dataclass becomes one flag for each annotated field.

    ``types``: types of parameters that are known at run time only, also sequences of dataclasses, whose parameter is
    given as many objects. A field that is not annotated takes the value of the flag of its name, where there is one.
    """
    hints = get_type_hints(function, include_extras=True) | types
    given = inspect.signature(function).parameters
    groups = {name: kinds for name in given if (kinds := _kinds(hints[name])) is not None}
    parameters: dict[str, tuple[Any, Any]] = {}
    for name, parameter in given.items():
        if name in groups:
            for kind in groups[name]:
                parameters |= _flags(kind)
        else:
            parameters[name] = hints[name], parameter.default

    @wraps(function)
    def flat(**values: Any) -> T:
        given = {name: values[name] for name in hints if name in values and name not in groups}
        for name, kinds in groups.items():
            made: list[Any] = [_fill(kind, values) for kind in kinds]
            given[name] = made if name in types else made[0]
        return function(**given)

    flat.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
            for name, (hint, default) in parameters.items()
        ]
    )
    return flat


def _kinds(hint: Any) -> Sequence[type] | None:
    if isinstance(hint, list | tuple):
        return hint
    return [hint] if is_dataclass(hint) and isinstance(hint, type) else None


def _flags(kind: type) -> dict[str, tuple[Any, Any]]:
    """Type as typer takes it and default of each annotated field."""
    hints, found = get_type_hints(kind, include_extras=True), {}
    for entry in fields(kind):
        if get_origin(hints[entry.name]) is Annotated:
            hint, described = get_args(hints[entry.name])
            default = inspect.Parameter.empty if entry.default is MISSING else entry.default
            if isinstance(described, Argument):
                hint, described, default = _option(entry.name, hint, described, default)
            found[entry.name] = Annotated[hint, described], default
    return found


def _option(name: str, hint: Any, argument: Argument, default: Any) -> tuple[Any, Any, Any]:
    """Type, ``typer.Option`` and default for a field that is described by an ``Argument``."""
    if default is inspect.Parameter.empty and argument.default is not None:
        default = argument.default
    plain = hint
    if get_origin(hint) in (Union, UnionType):
        plain = next(part for part in get_args(hint) if part is not type(None))
        default = None if default is inspect.Parameter.empty else default
    metavar = argument.metavar or ("DIR" if plain is Path else None)
    if get_origin(plain) is tuple:
        hint, metavar = str, f"{metavar or 'WORD'},..."
        default = default if isinstance(default, str | type) else ",".join(default)
    elif argument.choices:
        hint = Literal[tuple(argument.choices)]
    shown = "default" not in argument.text and default not in (None, "", False)
    flag = argument.flag or "--" + name.replace("_", "-")
    return hint, typer.Option(flag, help=argument.text, metavar=metavar, show_default=shown), default


def _fill(kind: type[T], values: dict[str, Any]) -> T:
    """The dataclass with the values of its flags. Its own checks raise ``ValueError``."""
    hints, found = get_type_hints(kind, include_extras=True), {}
    for entry in fields(kind):  # type: ignore[arg-type]
        if entry.name not in values:
            continue
        value, hint = values[entry.name], hints[entry.name]
        if get_origin(hint) is Annotated and isinstance(get_args(hint)[1], Argument):
            hint, argument = get_args(hint)
            listed = get_origin(hint) is tuple
            value = [word for word in value.split(",") if word] if listed else value
            value = argument.parse(value) if argument.parse else value
            value = tuple(value) if listed else value
        found[entry.name] = value
    return kind(**found)
