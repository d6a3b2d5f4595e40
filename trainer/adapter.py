"""Writing the adapter that a stage ends with and the next one starts from.

Cumulative: every tensor that this or an earlier stage has trained, and nothing else, under the network's names,
in fp32.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from stagecoach import __version__
from stagecoach.data.files import DamagedError, commit_directory, seal_directory, temporary_name, write_json
from stagecoach.data.tensors import hash_tensors, save_tensors
from stagecoach.data.weight_files import CARD, ENDING
from stagecoach.models.weights.card import AdapterCard, read_card
from stagecoach.models.weights.network import copy_in
from stagecoach.trainer.redact import redact_values


def signed(card: AdapterCard) -> AdapterCard:
    """``card`` with the version that writes it and without secrets in its config."""
    return replace(card, version=__version__, config=redact_values(card.config))


def write_adapter(
    directory: Path,
    tensors: dict[str, torch.Tensor],
    card: AdapterCard,
    part: Callable[[str], str] = lambda name: "model",
) -> AdapterCard:
    """Write an adapter under a temporary name, seal it and give it its name; called by one rank. One that is there and
    says and holds the same is left as it is. ``part`` gives the file, without its ending, that a tensor goes to."""
    card = replace(
        signed(card), sha256=hash_tensors(tensors), parameters=sum(tensor.numel() for tensor in tensors.values())
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


def assign_gathered(parameter: nn.Parameter, value: torch.Tensor) -> None:
    """``copy_in`` into a parameter that ZeRO-3 may have partitioned. Every rank calls it."""
    if not hasattr(parameter, "ds_tensor"):
        return copy_in(parameter, value)
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
        if parameter.numel():
            copy_in(parameter, value)
