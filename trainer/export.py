"""Trained weights as one safetensors file that says by itself what it is, or their LoRA as diffusers' pipelines load
it."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stagecoach.data.files import atomic_file
from stagecoach.data.tensors import hash_tensors, save_tensors
from stagecoach.models.weights.card import to_metadata
from stagecoach.models.weights.opening import Which, open_weights
from stagecoach.trainer.redact import redact_values, without_places

EXPORT_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LAYOUTS = ("adapter", "diffusers-lora")

log = logging.getLogger(__name__)


def export_adapter(
    adapter: Path,
    output: Path,
    dtype: str = "bf16",
    layout: str = "adapter",
    which: Which = "raw",
    predecessor: Path | None = None,
    public: bool = False,
) -> dict[str, str]:
    """Write the tensors of ``adapter`` in ``dtype`` to ``output`` and return the file's metadata: family, size, stage,
    ``config`` (the family's typed config as JSON), and the sha256 of adapter, predecessor, base weights and recipe.

    Args:
        adapter: an adapter, a checkpoint or an exported file, as ``open_weights`` takes it with ``which`` and
            ``predecessor``.
        layout: ``adapter``, or ``diffusers-lora``: its LoRA alone, under the names that diffusers' pipelines load.
        public: leave secrets and places of this machine out of the config.

    Raises:
        DamagedError: the weights are not intact.
        ValueError: as ``open_weights`` and ``Family.diffusers_lora``; a value is out of the range of fp16.
    """
    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: expected a name that ends in .safetensors")
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
    weights = open_weights(adapter, which, predecessor=predecessor)
    found = weights.tensors()
    if layout == "diffusers-lora":
        found = weights.family.diffusers_lora(weights.config, weights.stage, found)
    if dtype == "fp16":
        check_fp16(adapter, found)
    tensors = {name: tensor.to(EXPORT_DTYPES[dtype]).contiguous() for name, tensor in found.items()}
    own = hash_tensors({name: tensor.float() for name, tensor in tensors.items()})
    card = weights.card
    if public:
        card = replace(card, config=without_places(redact_values(card.config)))
    metadata = to_metadata(card, dtype, layout, own)
    with atomic_file(output) as handle:
        # By name, since safetensors writes tensor by tensor into a file but only whole into a handle.
        save_tensors(tensors, handle.name, metadata)
    return metadata


def export_onnx(
    adapter: Path,
    output: Path,
    component: str,
    int8: bool = False,
    which: Which = "raw",
    predecessor: Path | None = None,
    base: str | Path | Mapping[str, str | Path] | None = None,
    vae: Path | None = None,
    frames: int | None = None,
) -> dict[str, Any]:
    """Write ``component`` of the family to ``output`` and return the file's metadata and ``differences``: by output,
    how far onnxruntime's is from PyTorch's (``write_onnx``). Arguments as of ``open_weights`` and ``OnnxRequest``.

    Raises ``ValueError`` as these, and naming the components that there are."""
    from stagecoach.models.common.onnx_export import OnnxRequest, write_onnx

    if output.suffix != ".onnx":
        raise ValueError(f"{output}: expected a name that ends in .onnx")
    weights = open_weights(adapter, which, predecessor=predecessor)
    components = weights.family.onnx_components(weights.config, weights.stage)
    if component not in components:
        raise ValueError(
            f"--component {component}: {weights.card.family} has none of that name in stage {weights.stage}, expected "
            f"one of {', '.join(components)}"
        )
    part = components[component](OnnxRequest(weights, base, vae, frames))
    card = weights.card
    about = {
        "family": card.family,
        "size": card.size,
        "stage": str(card.stage),
        "component": component,
        "dtype": "int8" if int8 else "fp32",
        "adapter_sha256": card.sha256,
        "version": card.version,
    }
    found = write_onnx(part, output, about, int8)
    return {"metadata": about, "differences": {name: asdict(difference) for name, difference in found.items()}}


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
