"""Secrets are taken out of all that a run writes: keys, tokens, passwords, credentials and signatures in URLs."""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_NAME = (
    r"(?:[\w-]*[_.-])?(?:secret|token|passwd|password|passphrase|pwd|signature|sig|credentials?|authorization|"
    r"(?:api|access|secret|private|account|auth|shared)[_-]?key|key[_-]?id|secret[_-]?access[_-]?key)"
)
_IS_SECRET = re.compile(f"(?i){_NAME}")
_USER = re.compile(r"(?<=://)(?:[^/\s'\"<>?#]*|[^\s@'\"<>?#:]*:[^\s@'\"<>?#]*)@")
_PAIR = re.compile(
    rf"(?i)(?<![\w-])((?:[\w-]+\.)*{_NAME})(['\"]?\s*[=:]\s*['\"]?)(?!\*\*\*|bearer )([^\s&'\",;]{{4,}})"
)
_TOKEN = re.compile(r"\b(?:AKIA[0-9A-Z]{16}|(?:hf_|sk-|ghp_|glpat-)[\w-]{16,})|(?<=[Bb]earer )\S+")
SHORTEST = 8
"""Characters of an environment variable's value that is taken for a secret; shorter ones are words of the language."""


def redact(text: str) -> str:
    """``text`` without secrets: those of the environment, in URLs, after a name like ``api_key=``, and known forms."""
    for name, value in os.environ.items():
        # A path is none (PWD is that of the working directory).
        if len(value) < SHORTEST or value not in text or value.startswith("/"):
            continue
        if _IS_SECRET.fullmatch(name) or name.lower().endswith("_key"):
            text = text.replace(value, HIDDEN)
    text = _USER.sub(f"{HIDDEN}@", text)
    text = _TOKEN.sub(HIDDEN, text)
    return _PAIR.sub(rf"\g<1>\g<2>{HIDDEN}", text)


_PLACE = re.compile(r"(?:~|\.{0,2}[/\\]|[A-Za-z]:[/\\]|[A-Za-z][\w+.-]*:/).*", re.DOTALL)


def without_places(value: Any) -> Any:
    """JSON values with the last part alone of each string that is a path or a URL."""
    if isinstance(value, str):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if _PLACE.fullmatch(value) else value
    if isinstance(value, Mapping):
        return {name: without_places(one) for name, one in value.items()}
    return [without_places(one) for one in value] if isinstance(value, list | tuple) else value


def redact_values(value: Any) -> Any:
    """JSON values with each string redacted, and whole where its key says that it is a secret."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if isinstance(one, str) and one and _IS_SECRET.fullmatch(str(name)) else redact_values(one)
            for name, one in value.items()
        }
    return [redact_values(one) for one in value] if isinstance(value, list | tuple) else value
