"""Names of files: a Mac writes é as e with an accent behind it (NFD), other systems as one letter (NFC)."""

import unicodedata
from pathlib import Path


def composed(name: str) -> str:
    """The name with composed letters (NFC), by which names are compared."""
    return unicodedata.normalize("NFC", name)


def as_spelled(path: Path) -> Path:
    """The path whose last part is spelled as the file is that is there; as given where there is none."""
    spelled = (path.with_name(unicodedata.normalize(form, path.name)) for form in ("NFC", "NFD"))
    return path if path.exists() else next((other for other in spelled if other.exists()), path)
