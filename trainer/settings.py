"""Settings read strictly: YAML 1.2 scalars, overlays, ``a.b=c`` overrides, and errors that say where and what."""

import copy
import difflib
import errno
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from stagecoach.data.reading import DamagedError, read_regular

OF_THE_MACHINE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO)
"""Numbers of errors of a disk or a mount, which are no mistake of the user."""


class RecipeError(ValueError):
    """A recipe says something that cannot be: file, dotted key, what was found and what was expected."""


class FirstRankError(RuntimeError):
    """Another rank has failed; raised on the ranks that have not, so that none waits for ever."""


class PeerLostError(RuntimeError):
    """Another rank, or what writes for one, is gone without a word."""


class Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2, in which ``1e-5`` is a number and ``off`` is a word, and no key twice."""

    yaml_implicit_resolvers: ClassVar[dict] = {}  # type: ignore[misc]  # the stub forgets that it is of the class

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


LARGEST = 1 << 20
"""Bytes of a recipe."""
NODES = 100_000
"""Values of a recipe, those behind each alias counted again: a few aliases of aliases would fill any memory."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ``yaml.YAMLError``, also where it is nested too deeply or too large."""
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_nodes(node, {}) > NODES:
            raise yaml.YAMLError(f"more than {NODES:,} values, with those behind its aliases")
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply, or an alias of what it is part of") from None
    finally:
        loader.dispose()


def _count_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    if id(node) not in known:
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = (part for entry in below for part in (entry if isinstance(entry, tuple) else (entry,)))
        known[id(node)] = 1 + sum(_count_nodes(part, known) for part in parts)
    return known[id(node)]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ``RecipeError``."""
    try:
        value = parse_yaml(read_regular(path, LARGEST).decode())
    except (DamagedError, UnicodeDecodeError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise RecipeError(f"{path}: {reason}; expected a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "somewhere"
        raise RecipeError(f"{path}: {where}: {getattr(error, 'problem', None) or error}; expected YAML") from error
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: holds a {type(value).__name__}, expected a mapping of keys to values")
    return value


def parse_override(text: str) -> tuple[tuple[str | int, ...], Any]:
    """``a.b=c`` as the path ``("a", "b")`` and the YAML value of ``c``. A part made of digits is a number."""
    dotted, equals, value = text.partition("=")
    parts = dotted.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {text}: found no key and value, expected a.b=c")
    try:
        parsed = parse_yaml(value)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"--set {text}: {value!r} is not a YAML value ({getattr(error, 'problem', None) or error}); quote it"
        ) from error
    return tuple(int(part) if part.isdigit() else part for part in parts), parsed


def nest(path: Iterable[str | int], value: Any) -> dict[str | int, Any]:
    for part in reversed(tuple(path)):
        value = {part: value}
    return value


def overlay(base: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """``base`` with the values of ``over``, mapping by mapping; lists are replaced whole. Neither is changed."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        below = result.get(key)
        result[key] = (
            overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else copy.deepcopy(value)
        )
    return result


def dotted(path: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in path)


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """``; did you mean 'x'?``, or what there is where nothing is near."""
    names = [str(one) for one in known]
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(names))}"


def check_keys(
    values: Mapping[Any, Any],
    model: type[BaseModel],
    where: str,
    path: tuple[str | int, ...] = (),
    below: Callable[[tuple[str | int, ...]], type[BaseModel] | None] = lambda path: None,
) -> None:
    """Raise ``RecipeError`` for the first key of ``values`` that ``model`` does not have, with the nearest one it has.

    ``below`` gives the model of a field that is declared as a plain mapping, by its path.
    """
    for key, value in values.items():
        here = (*path, key)
        if key not in model.model_fields:
            raise RecipeError(f"{where}: unknown key {dotted(here)}{did_you_mean(key, model.model_fields)}")
        inner, keyed = _model_of(model.model_fields[key].annotation)
        inner = inner or below(here)
        if inner is None or not isinstance(value, Mapping):
            continue
        for name, entry in value.items() if keyed else [(None, value)]:
            if isinstance(entry, Mapping):
                check_keys(entry, inner, where, here if name is None else (*here, name), below)


def explain(
    error: ValidationError, where: Callable[[tuple[str | int, ...]], str], path: tuple[str | int, ...] = ()
) -> RecipeError:
    """A pydantic error as one sentence about its first problem. ``path`` leads to the model that was validated and
    ``where`` names the file or the flag that a path came from."""
    errors = error.errors()
    # Of a value that may be of several kinds, the kind that got furthest; pydantic puts its name into the path.
    first = max((one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]), key=lambda one: len(one["loc"]))
    location = (*path, *(part for part in first["loc"] if "[" not in str(part)))
    found = first["input"]
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    elif first["type"] == "missing":
        message = "missing, expected a value"
    elif first["type"] == "value_error":
        message = str(first["ctx"]["error"])
    else:
        message = f"found {found!r}, expected {_expected(first['msg'])}"
    others = error.error_count() - 1
    more = f" (and {others} more like it)" if others else ""
    return RecipeError(f"{where(location)}: {dotted(location)}{': ' if location else ''}{message}{more}")


def _expected(message: str) -> str:
    for start in ("Input should be ", "Input should have ", "Input should "):
        if message.startswith(start):
            return message.removeprefix(start)
    return message


def _model_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The pydantic model inside an annotation, if any, and whether it is the value of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is dict:
        inner = _model_of(arguments[1])[0]
        return inner, inner is not None
    if origin in (Union, UnionType):
        for argument in arguments:
            inner, keyed = _model_of(argument)
            if inner is not None:
                return inner, keyed
    return None, False
