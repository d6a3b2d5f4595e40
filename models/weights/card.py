"""What is written with trained weights: ``adapter.json`` of an adapter and of a checkpoint, metadata of an exported
file."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from stagecoach.data.files import DamagedError, check_directory
from stagecoach.data.reading import Count, read_json
from stagecoach.data.tensors import hash_tensors, read_all
from stagecoach.data.weight_files import CARD, ENDING


@dataclass(frozen=True)
class AdapterCard:
    """What ``adapter.json`` says. Hashes are sha256, ``sha256`` that of the tensors' names, dtypes, shapes and bytes in
    fp32; ``predecessor`` is that of the adapter the stage started from. In a checkpoint, which is sealed by its
    manifest, ``sha256`` is empty until it is opened."""

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


def read_card(directory: Path) -> AdapterCard:
    """The card of a finished, undamaged adapter. Raises ``DamagedError``."""
    check_directory(directory)
    card = read_json(directory / CARD, AdapterCard)
    if card.sha256 != hash_tensors(read_tensors(directory)):
        raise DamagedError(
            f"{directory}: the content of {', '.join(file.name for file in adapter_files(directory))} differs "
            f"from the sha256 in {CARD}; something was replaced"
        )
    return card


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of an adapter, by the network's names, on the CPU. Raises ``DamagedError``."""
    return read_all(adapter_files(directory))


def adapter_files(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{ENDING}"))


METADATA = {
    "family": "family",
    "size": "size",
    "stage": "stage",
    "stage_name": "stage_name",
    "steps": "steps",
    "predecessor_sha256": "predecessor",
    "base_sha256": "base",
    "recipe_sha256": "recipe",
    "export_weights": "export_weights",
    "version": "version",
}
"""Key of an exported file's metadata -> field of the card, besides ``config``, ``layout``, ``dtype``,
``adapter_sha256`` (of the adapter that was exported) and ``sha256`` (of the file's own tensors)."""


def to_metadata(card: AdapterCard, dtype: str, layout: str, sha256: str) -> dict[str, str]:
    """Metadata of a file that holds the tensors of ``card`` in ``dtype``, whose own are of hash ``sha256``."""
    found = {key: str(getattr(card, name) or "") for key, name in METADATA.items()}
    config = json.dumps(card.config, sort_keys=True)
    own = {"format": "pt", "dtype": dtype, "layout": layout, "config": config}
    return own | found | {"adapter_sha256": card.sha256, "sha256": sha256}


def from_metadata(path: Path, metadata: dict[str, str]) -> AdapterCard:
    """The card of an exported file. Raises ``ValueError`` naming what its metadata lack."""
    lacking = sorted({"config", "layout", "sha256", *METADATA} - metadata.keys())
    if lacking:
        raise ValueError(
            f"{path}: its metadata lack {', '.join(lacking[:4])}, expected a file that this version's export.py wrote; "
            "give the adapter's or the checkpoint's folder, or export it again"
        )
    if metadata["layout"] != "adapter":
        raise ValueError(
            f"{path}: holds LoRA alone, in the layout of {metadata['layout']}, expected a file that export.py wrote "
            "with --to adapter"
        )
    found: dict[str, Any] = {name: metadata[key] for key, name in METADATA.items()}
    try:
        found |= {name: int(found[name] or 0) for name in ("stage", "steps")}
        card = AdapterCard(**found, config=json.loads(metadata["config"]), sha256=metadata["sha256"])
    except ValueError as error:
        raise DamagedError(f"{path}: its metadata are not readable ({error}); export it again") from error
    return replace(card, predecessor=card.predecessor or None)
