"""Paths as people write them."""

import os
import re

_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|([A-Za-z_]\w*))")


def expand_path(text: str) -> str:
    """``~`` and ``$NAME`` or ``${NAME}`` of a path or URL filled in. Raises ``ValueError`` for an unknown variable."""

    def value(match: re.Match[str]) -> str:
        name = match[1] if match[1] is not None else match[2]
        if name not in os.environ:
            raise ValueError(
                f"{text}: the environment has no variable {name!r}; export it on every node or name the path"
            )
        return os.environ[name]

    return os.path.expanduser(_VARIABLE.sub(value, text))
