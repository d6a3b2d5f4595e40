"""Trained weights as one safetensors file that says by itself what it is, or their LoRA as diffusers' pipelines load
it."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stagecoach.data.files import atomic_file
from stagecoach.data.tensors import hash_tensors, save_tensors
from stagecoach.models.weights.card import to_metadata
from stagecoach.models.weights.opening import Which, open_weights

EXPORT_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

log = logging.getLogger(__name__)


def export_adapter(
    adapter: Path,
    output: Path,
    dtype: str = "bf16",
    layout: str = "adapter",
    which: Which = "raw",
    predecessor: Path | None = None,
) -> dict[str, str]:
    """Write the tensors of ``adapter`` in ``dtype`` to ``output`` and return the file's metadata: family, size, stage,
    ``config`` (the family's typed config as JSON), and the sha256 of adapter, predecessor, base weights and recipe.

    Args:
        adapter: an adapter, a checkpoint or an exported file, as ``open_weights`` takes it with ``which`` and
            ``predecessor``.
        layout: ``diffusers`` writes its LoRA alone, under the names that diffusers' pipelines load.

    Raises:
        DamagedError: the weights are not intact.
        ValueError: as ``open_weights``; a family has no LoRA; a value is out of the range of fp16.
    """
    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: expected a name that ends in .safetensors")
    weights = open_weights(adapter, which, predecessor=predecessor)
    found = weights.tensors()
    if layout == "diffusers":
        found = weights.family.diffusers_lora(weights.config, weights.stage, found)
    if dtype == "fp16":
        check_fp16(adapter, found)
    tensors = {name: tensor.to(EXPORT_DTYPES[dtype]).contiguous() for name, tensor in found.items()}
    own = hash_tensors({name: tensor.float() for name, tensor in tensors.items()})
    metadata = to_metadata(weights.card, dtype, layout, own)
    with atomic_file(output) as handle:
        # By name, since safetensors writes tensor by tensor into a file but only whole into a handle.
        save_tensors(tensors, handle.name, metadata)
    return metadata


def check_fp16(source: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` naming ``source`` and the tensor that fp16 cannot hold, and log how many values become 0."""
    largest = torch.finfo(torch.float16).max
    lost, count = 0, 0
    for name, tensor in tensors.items():
        top = float(tensor.abs().max()) if tensor.numel() else 0.0
        if not top <= largest:
            raise ValueError(
                f"{source}: {name} holds {top:g}, expected at most {largest:g}, the largest number of fp16; take bf16"
            )
        lost += int(((tensor != 0) & (tensor.half() == 0)).sum())
        count += tensor.numel()
    if lost:
        log.warning(f"{lost:,} of {count:,} values are too small for fp16 and became 0 ({source}); bf16 keeps them")
